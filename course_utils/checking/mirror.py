"""Objects that two processes hold alike: what one side changes, the other is told, as data.

Nothing that crosses can carry code: a message is JSON, and the bytes of tensors and arrays. Each side has a
`Mirror` with the same numbered objects. Before it speaks it writes down what is new or changed; the other
side changes its own objects accordingly. So aliases, views and changes in place look alike on both sides,
also those that happen after a call has returned.
"""

import collections
import ctypes
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Message = tuple[dict[str, Any], list[bytes]]
MANY = 200_000  # objects of one exchange; more are refused
MOST_ALIKE = 100  # keys of one dict or set with the same hash: two or three have it by chance
LONGEST = 2**24  # bytes of a message's JSON: as objects it takes twenty times as much
MOST_MEMORY = 2**29  # bytes of all memory that came from the other side, and of any tensor in it
MOST_VIEWED = 2**31  # bytes of all tensors in it together: many may lie in the same memory
PLAIN = "biufc"  # kinds of numpy's dtypes that are numbers


class Opaque:
    """Stands for something that does not cross: only the name of its type is known."""


class Strange(Exception):
    """A message, or an object, that cannot cross."""


class Mirror:
    """One side's numbered objects.

    Args:
        find: from "module:name" to a class or function; raises `Strange` where it must not be used here.
        far: whether an object stays where it is, and is only named: an object of a learner's class.
        make_far: from (number, name of the class) to what stands for such an object on this side.
        join: from tensors that depend on earlier ones, with their numbers, to tensors that gradients can be
            sent back from; None where gradients are computed here.
    """

    def __init__(
        self, find: Callable[[str], Any], far: Callable[[Any], bool] = lambda value: False,
        make_far: Callable[[int, str], Any] = lambda number, name: opaque(name),
        join: Callable[[list[int], list[Tensor]], list[Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.find, self.far, self.make_far, self.join = find, far, make_far, join
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # id -> number
        self.known: list[str] = []  # number -> what both sides know of the object
        self.foreign: set[int] = set()  # objects that only the other side can describe
        self.areas: list[Tensor] = []  # pieces of memory, as uint8
        self.places: dict[int, int] = {}  # address -> number of the area
        self.contents: list[bytes] = []
        self.keep: list[Any] = []  # owners of the memory, so that no address is used twice
        self.received = self.viewed = 0  # bytes of memory, and of the tensors in it

    def pack(self, root: Any) -> Message:
        """Write down a value, and everything that is new or changed since the last message.

        Args:
            root: the value.

        Returns:
            (what becomes JSON, bytes of memory).

        Raises:
            Strange: too many objects.
        """
        written = self._write(root)
        nodes, number = {}, 0
        while number < len(self.objects):  # grows on the way
            if number not in self.foreign:
                content = self._content(self.objects[number])
                text = json.dumps(content)
                if number == len(self.known):
                    self.known.append("")
                if text != self.known[number]:
                    self.known[number], nodes[str(number)] = text, content
            number += 1
        areas, blobs = {}, []
        for n, area in enumerate(self.areas):
            content = area.numpy().tobytes()
            if n == len(self.contents):
                self.contents.append(None)
            if content != self.contents[n]:
                self.contents[n] = content
                areas[str(n)] = len(blobs)
                blobs.append(content)
        return {"root": written, "nodes": nodes, "areas": areas}, blobs

    def unpack(self, header: dict[str, Any], blobs: list[bytes]) -> Any:
        """Change this side's objects as the other side's have changed.

        Args:
            header: as `pack` made it.
            blobs: bytes of memory.

        Returns:
            The value.

        Raises:
            Strange: the message is not as `pack` makes it.
        """
        try:
            return self._unpack(header, blobs)
        except Strange:
            raise
        except Exception as error:
            raise Strange(f"a value that cannot be read ({type(error).__name__})") from error

    def _unpack(self, header: dict[str, Any], blobs: list[bytes]) -> Any:
        if len(self.objects) + len(header["nodes"]) > MANY:
            raise Strange("too many objects")
        most = len(self.objects) + len(header["nodes"])
        nodes = {number: header["nodes"][str(number)] for number in range(most)
                 if str(number) in header["nodes"]}
        if len(nodes) < len(header["nodes"]):
            raise Strange("a number is left out")
        for number, place in sorted((int(n), place) for n, place in header["areas"].items()):
            self._fill(number, blobs[place])
        ends, begun = [], {}
        for number in sorted(nodes):  # first the objects themselves, then what is in them
            if number > len(self.objects):
                raise Strange("a number is left out")
            if number == len(self.objects):
                made = self._make(number, nodes[number])
                self.objects.append(made)
                self.known.append("")
                begun[number] = made
                if isinstance(made, Tensor) and nodes[number]["rg"] and not nodes[number]["leaf"]:
                    ends.append(number)
        if ends and self.join is not None:
            joined = self.join(ends, [self.objects[number] for number in ends])
            for number, end in zip(ends, joined, strict=True):
                self.objects[number] = end
        for number in nodes:
            self.numbers[id(self.objects[number])] = number
        for number in sorted(nodes):
            self._update(number, nodes[number], number in begun)
        root = self._read(header["root"])
        for number in nodes:
            if number not in self.foreign:
                self.known[number] = json.dumps(self._content(self.objects[number]))
        return root

    # --- from objects to data -----------------------------------------------------------------------------

    def _write(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if value is ...:
            return {"ellipsis": 1}
        if kind in (tuple, torch.Size) or isinstance(value, tuple):
            return {"tuple": [self._write(item) for item in tuple.__iter__(value)]}
        if kind is bytes:
            return {"bytes": value.hex()}
        if isinstance(value, np.generic) and value.dtype.kind in PLAIN + "?b":
            return {"scalar": value.dtype.str, "bytes": value.tobytes().hex()}
        for base, convert in ((bool, bool), (int, int.__int__), (float, float.__float__),
                              (str, str.__str__)):
            if isinstance(value, base):  # a subclass: what it says of itself does not cross
                return convert(value)
        if isinstance(value, complex):
            return {"complex": [complex(value).real, complex(value).imag]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, slice):
            return {"slice": [self._write(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return {"named": f"{value.__module__}:{value.__qualname__}"}
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
            if number > MANY:
                raise Strange("too many objects")
        return {"n": number}

    def _content(self, value: Any) -> dict[str, Any]:
        write = self._write
        if isinstance(value, Tensor):
            return self._tensor_content(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in PLAIN + "b":
            area, offset = self._array_area(value)
            return {"k": "array", "area": area, "dtype": value.dtype.str, "size": list(value.shape),
                    "stride": list(value.strides), "offset": offset}
        if isinstance(value, range | collections.deque):
            return {"k": "list", "v": [write(item) for item in value]}
        if isinstance(value, list):
            return {"k": "list", "v": [write(item) for item in list.__iter__(value)]}
        if isinstance(value, dict):
            items = [[write(key), write(item)] for key, item in dict.items(value)]
            return {"k": "dict", "ordered": isinstance(value, collections.OrderedDict), "v": items}
        if isinstance(value, set | frozenset):
            return {"k": "set", "frozen": isinstance(value, frozenset), "v": [write(item) for item in value]}
        if isinstance(value, torch.Generator):
            return {"k": "generator", "state": bytes(value.get_state().tolist()).hex()}
        if isinstance(value, types.GeneratorType):
            return {"k": "iterator", "v": [write(item) for item in value] if not self.far(value) else []}
        name = type(value).__name__
        if self.far(value):
            return {"k": "far", "name": name}
        if isinstance(getattr(value, "__dict__", None), dict) and not callable(getattr(value, "send", None)):
            name = f"{type(value).__module__}:{type(value).__qualname__}"
            return {"k": "object", "class": name, "v": [[key, write(v)] for key, v in vars(value).items()]}
        return {"k": "opaque", "name": name}

    def _tensor_content(self, value: Tensor) -> dict[str, Any]:
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            return {"k": "opaque", "name": f"{value.device.type} tensor"}
        value = value.as_subclass(Tensor) if type(value) not in (Tensor, torch.nn.Parameter) else value
        storage = value.untyped_storage()
        area = self.places.get(storage.data_ptr()) if storage.nbytes() else -1
        if area is None:
            area = self._add(torch.empty(0, dtype=torch.uint8).set_(storage), storage.data_ptr())
        grad = self._write(value.grad) if value.is_leaf else None
        return {"k": "tensor", "area": area, "dtype": str(value.dtype).removeprefix("torch."),
                "size": list(value.shape), "stride": list(value.stride()), "offset": value.storage_offset(),
                "rg": value.requires_grad, "leaf": value.is_leaf, "grad": grad,
                "parameter": isinstance(value, torch.nn.Parameter)}

    def _array_area(self, value: np.ndarray) -> tuple[int, int]:
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if not value.size:
            return -1, 0
        low, high = np.lib.array_utils.byte_bounds(owner)
        start = value.__array_interface__["data"][0]
        for area in (n for address, n in self.places.items() if address <= start
                     < address + len(self.areas[n])):
            return area, start - self.areas[area].data_ptr()
        memory = np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), dtype=np.uint8)
        self.keep.append(owner)
        return self._add(torch.from_numpy(memory), low), start - low

    def _add(self, area: Tensor, address: int) -> int:
        self.areas.append(area)
        self.places[address] = len(self.areas) - 1
        return len(self.areas) - 1

    # --- from data to objects -----------------------------------------------------------------------------

    def _fill(self, number: int, content: bytes) -> None:
        if number < len(self.areas):
            if len(self.areas[number]) != len(content):
                raise Strange("memory that has changed its size")
            self.areas[number].copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            self.contents[number] = content
            return
        if number > len(self.areas) or not content:
            raise Strange("a piece of memory is left out")
        self.received += len(content)
        if self.received > MOST_MEMORY:
            raise Strange("a value that is too large")
        area = torch.frombuffer(bytearray(content), dtype=torch.uint8).clone()
        self._add(area, area.untyped_storage().data_ptr())
        self.contents.append(content)

    def _read(self, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        (tag, value), *rest = written.items()
        if tag == "n":
            return self.objects[value]
        if tag == "tuple":
            return tuple(self._read(item) for item in value)
        if tag == "ellipsis":
            return ...
        if tag == "bytes":
            return bytes.fromhex(value)
        if tag == "scalar":
            return np.frombuffer(bytes.fromhex(rest[0][1]), dtype=np.dtype(value))[0]
        if tag == "complex":
            return complex(*value)
        if tag == "dtype":
            return _dtype(value)
        if tag == "device":
            return torch.device(value)
        if tag == "slice":
            return slice(*(self._read(part) for part in value))
        if tag == "named":
            try:
                return self.find(value)
            except Strange:
                return opaque(str(value).rpartition(":")[2])
        raise Strange("an unknown kind of value")

    def _make(self, number: int, content: dict[str, Any]) -> Any:
        kind = content["k"]
        if kind == "tensor":
            return self._tensor(content)
        if kind == "array":
            dtype = np.dtype(content["dtype"])
            if dtype.kind not in PLAIN + "b":
                raise Strange("an array of objects")
            self._check_extent(content, dtype.itemsize)
            if content["area"] < 0:
                return np.empty(content["size"], dtype)
            return np.ndarray(content["size"], dtype, self.areas[content["area"]].numpy().data,
                              content["offset"], content["stride"])
        if kind in ("list", "iterator"):
            return []
        if kind == "dict":
            return collections.OrderedDict() if content["ordered"] else {}
        if kind == "set":
            return set()
        if kind == "generator":
            return torch.Generator()
        if kind == "object":
            try:
                cls = self.find(content["class"])
            except Strange:
                kind, content = "opaque", {"name": content["class"].rpartition(":")[2]}
            else:
                return cls.__new__(cls)
        self.foreign.add(number)
        return self.make_far(number, content["name"]) if kind == "far" else opaque(content["name"])

    def _check_extent(self, content: dict[str, Any], item: int) -> None:
        """Refuse a shape that would take more memory than came: by repeating it, or without any."""
        size, stride = content["size"], content["stride"]
        if not all(type(n) is int and n >= 0 for n in size) or not all(type(n) is int for n in stride):
            raise Strange("no shape")
        count = math.prod(size)
        self.viewed += count * item
        empty = content["area"] < 0
        if count * item > MOST_MEMORY or self.viewed > MOST_VIEWED or (empty and count):
            raise Strange("a value that is too large")

    def _tensor(self, content: dict[str, Any]) -> Tensor:
        dtype = _dtype(content["dtype"])
        self._check_extent(content, dtype.itemsize)
        with torch.no_grad():
            if content["area"] < 0:
                value = torch.empty(content["size"], dtype=dtype)
            else:
                end = content["offset"] + 1 + sum(
                    (n - 1) * step for n, step in zip(content["size"], content["stride"], strict=True))
                if end * dtype.itemsize > len(self.areas[content["area"]]):
                    raise Strange("a tensor beyond its memory")  # torch would make the memory larger
                storage = self.areas[content["area"]].untyped_storage()
                value = torch.empty(0, dtype=dtype).set_(
                    storage, content["offset"], content["size"], content["stride"])
        if content["parameter"]:
            return torch.nn.Parameter(value, requires_grad=content["rg"])
        if content["rg"]:
            if content["leaf"]:
                value.requires_grad_()
            elif self.join is None:  # such as a tensor that was computed from others: it may be overwritten
                leaf = value.clone().requires_grad_()
                value = _Same.apply(leaf, value)
        return value

    def _update(self, number: int, content: dict[str, Any], new: bool) -> None:
        value, kind = self.objects[number], content["k"]
        if number in self.foreign:
            return
        if kind == "tensor" and isinstance(value, Tensor):
            if not new:
                self._reshape(value, content)
            if content["leaf"] and value.is_leaf:
                if value.requires_grad != content["rg"]:
                    value.requires_grad_(content["rg"])
                value.grad = self._read(content["grad"])
        elif kind in ("list", "iterator") and isinstance(value, list):
            value[:] = [self._read(item) for item in content["v"]]
            if kind == "iterator":
                self.objects[number] = (item for item in list(value))
                self.foreign.add(number)
        elif kind == "dict" and isinstance(value, dict):
            items = [(self._read(key), self._read(item)) for key, item in content["v"]]
            _check_hashes(key for key, _ in items)
            value.clear()
            value.update(items)
        elif kind == "set" and isinstance(value, set):
            items = [self._read(item) for item in content["v"]]
            _check_hashes(items)
            value.clear()
            value.update(items)
        elif kind == "generator" and isinstance(value, torch.Generator):
            value.set_state(torch.tensor(list(bytes.fromhex(content["state"])), dtype=torch.uint8))
        elif kind == "object" and hasattr(value, "__dict__"):
            state = {key: self._read(item) for key, item in content["v"]}
            value.__dict__.clear()
            value.__dict__.update(state)
        elif kind != "array":
            raise Strange("an object has become another one")

    def _reshape(self, value: Tensor, content: dict[str, Any]) -> None:
        same = (list(value.shape) == content["size"] and list(value.stride()) == content["stride"]
                and value.storage_offset() == content["offset"] and value.dtype == _dtype(content["dtype"])
                and (self._tensor_content(value)["area"] == content["area"]))  # fmt: skip
        if not same:
            plain = content | {"rg": False, "parameter": False}
            value.data = self._tensor(plain)


class _Same(torch.autograd.Function):
    """A tensor with ancestors of its own, in the memory that is given."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, value: Tensor) -> Tensor:
        return torch.empty(0, dtype=value.dtype).set_(
            value.untyped_storage(), value.storage_offset(), value.shape, value.stride())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def opaque(name: str) -> Opaque:
    """Something that stands for an object that did not cross.

    Args:
        name: of its type.

    Returns:
        An object of an empty class of that name.
    """
    return type(str(name)[:60], (Opaque,), {})()


def _check_hashes(keys: Iterable[Any]) -> None:
    """Refuse keys that are made to have one hash: a dict looks at all of them for each further one."""
    if max(collections.Counter(map(hash, keys)).values(), default=0) > MOST_ALIKE:
        raise Strange("keys that cannot be told apart quickly")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise Strange("no dtype")
    return found


def frames(message: Message) -> Iterator[bytes]:
    """A message as bytes.

    Args:
        message: as `Mirror.pack` made it, with whatever else its header says.

    Yields:
        Length of the header (8 bytes), the header with the lengths of the blobs, the blobs.
    """
    header, blobs = message
    text = json.dumps(header | {"lengths": [len(blob) for blob in blobs]}).encode()
    yield len(text).to_bytes(8, "little") + text
    yield from blobs


def parse(read: Callable[[int], bytes], most: int) -> Message:
    """Read a message.

    Args:
        read: returns that many bytes.
        most: bytes of one message; a longer one is refused.

    Returns:
        (header, blobs).

    Raises:
        Strange: it is no message, or too long.
    """
    length = int.from_bytes(read(8), "little")
    if length > min(most, LONGEST):
        raise Strange("a value that is too large")
    try:
        header = json.loads(read(length))
        lengths = header["lengths"]
        ok = isinstance(header, Mapping) and isinstance(lengths, list)
        ok = ok and all(type(n) is int and n >= 0 for n in lengths)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Strange("a value that cannot be read") from error
    if not ok or sum(lengths) > most:
        raise Strange("a value that is too large")
    return header, [read(n) for n in lengths]
