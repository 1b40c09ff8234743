"""An answer that runs in another process: what looks like a function, or a class, and only passes on data.

`judge` takes it as it takes the learner's own function. The other end is `course_utils.checking.worker`.
"""

import builtins
import dataclasses
import os
import select
import sys
import time
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from course_utils.checking import running
from course_utils.checking.describe import printable
from course_utils.checking.limits import Stopped, TimeLimit
from course_utils.checking.mirror import Mirror, Strange, frames, opaque, parse
from course_utils.checking.source import Told
from course_utils.checking.spec import Exercise, Prediction

MOST = 256 * 2**20  # bytes of one message
MOST_TEXT = 2_000  # letters of an error's message
LOOK_EVERY = 0.25  # seconds between looks at what a process takes


class Channel:
    """The way to one process that holds a learner's answers.

    Args:
        handle: file descriptor to read from and write to.
        end: called once, when nothing more is to be asked: ends the process.
        seconds: how long the process may take in all.
        excess: says what its processes take too much of, "" if nothing. Asked while an answer is waited for.
    """

    def __init__(
        self, handle: int, end: Callable[[], None], seconds: float, excess: Callable[[], str] = str
    ) -> None:
        os.set_blocking(handle, False)
        self.handle, self._end, self.deadline = handle, end, time.monotonic() + seconds
        self._excess, self._looked = excess, time.monotonic()
        self.seconds, self.closed = seconds, ""
        self.run, self.run_start, self.given = -1, 0, set()
        self.classes: dict[str, type] = {}
        self.errors: dict[str, type] = {}
        self.mirror = Mirror(_known_class, make_far=self._far, join=self._join)

    def close(self, why: str = "") -> None:
        """End the process.

        Args:
            why: what a later request is told.
        """
        if not self.closed:
            self.closed = why or "the process that ran your code was ended"
            os.close(self.handle)
            self._end()

    def answer(self, name: str, exercise: Exercise | Prediction) -> Any:
        """The learner's answer to an exercise, for `judge`.

        Args:
            name: what it is called in the learner's cell.
            exercise: what was asked.

        Returns:
            A function or class that passes calls on; or the value itself where it is none. None when there is
            no such name.

        Raises:
            Exception: what the learner's cell raised.
        """
        if isinstance(exercise, Exercise):
            wanted = exercise.cases()
            for case in wanted:
                for error in case.raises if isinstance(case.raises, tuple) else (case.raises,):
                    if error is not None:
                        self.errors[error.__name__] = error
        header, value = self.request("look", name=name, plain=isinstance(exercise, Prediction))
        if header.get("kind") == "class":
            return self._class(name, None)
        if header.get("kind") == "function":
            return Function(self, None)
        return opaque(type(value).__name__) if callable(value) else value  # what runs here is the course's

    def request(self, op: str, value: Any = None, **more: Any) -> tuple[dict[str, Any], Any]:
        """Ask for something and wait for the reply.

        Args:
            op: what is asked, see the worker.
            value: goes along.
            **more: what else the header says; plain data.

        Returns:
            (the reply's header, its value).

        Raises:
            BaseException: what the learner's code raised; `Stopped` when the process is gone.
        """
        if self.closed:
            raise Stopped(self.closed)
        try:
            if self.run != running.current_run:
                self.run, self.run_start, self.given = running.current_run, len(self.mirror.objects), set()
            before = len(self.mirror.objects)
            header, blobs = self.mirror.pack(value)
            self.given |= set(range(before, len(self.mirror.objects)))
            for part in frames((header | more | {"op": op, "run": self.run}, blobs)):
                self._send(part)
            header, blobs = parse(self._receive, MOST)
            found = self.mirror.unpack(header, blobs)
            error = self._error(header["error"]) if header.get("error") else None
        except Stopped:
            raise
        except TimeLimit as error:
            self.close(str(error))
            raise Stopped(str(error)) from None
        except Strange as error:
            text = f"your code returned {error}"
            self.close(text)
            raise Stopped(text) from None
        except (OSError, EOFError):
            text = "the process that ran your code ended: it left Python, or took more than it may"
            self.close(text)
            raise Stopped(text) from None
        if error is not None:
            raise error
        return header, found

    def _error(self, said: Any) -> BaseException:
        """The exception that the other process reports, of the nearest type that is known here."""
        said = said if isinstance(said, dict) else {}
        names = said.get("types")
        names = [str(name)[:80] for name in names[:20]] if isinstance(names, list) else []
        names = names or ["Exception"]
        for name in names:
            base = self.errors.get(name) or getattr(builtins, name, None)
            if isinstance(base, type) and issubclass(base, BaseException):
                break
        else:
            base = Exception
        if issubclass(base, KeyboardInterrupt | BaseExceptionGroup):  # not the instructor's; needs more
            base = RuntimeError
        message = printable(said.get("message", ""))[:MOST_TEXT]
        if names[0] != base.__name__:
            base = type(printable(names[0]), (base,), {})
        error = base.__new__(base, message.strip("'") if issubclass(base, KeyError) else message)
        if isinstance(error, SyntaxError):
            error.msg = message  # which it does not take from its arguments
        error.told = Told(bool(said.get("stub")), printable(said.get("left_over", ""))[:200],
                          printable(said.get("line", ""))[:200])
        return error

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(writing=True)
            try:
                view = view[os.write(self.handle, view):]
            except BlockingIOError:
                continue

    def _receive(self, length: int) -> bytes:
        parts = []
        while length:
            self._wait()
            try:
                part = os.read(self.handle, min(length, 2**20))
            except BlockingIOError:
                continue
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _wait(self, writing: bool = False) -> None:
        watched = ([], [self.handle], []) if writing else ([self.handle], [], [])
        while (now := time.monotonic()) < self.deadline:
            if now - self._looked > LOOK_EVERY:
                self._looked = now
                if much := self._excess():
                    raise TimeLimit(f"stopped: your code took {much}")
            if any(select.select(*watched, min(self.deadline - now, LOOK_EVERY))):
                return
        raise TimeLimit(f"stopped after {self.seconds:g} seconds in all: does a loop never end?")

    def _far(self, number: int, name: str) -> Any:
        found = object.__new__(self._class(str(name)[:60], number))
        object.__setattr__(found, "_number", number)
        return found

    def _class(self, name: str, number: int | None) -> type:
        if name not in self.classes:
            self.classes[name] = type(FarClass)(name, (FarClass,), {"_channel": self})
        return self.classes[name]

    def _join(self, numbers: list[int], values: list[Tensor]) -> list[Tensor]:
        inputs = [n for n in sorted(self.given) if isinstance(self.mirror.objects[n], Tensor)
                  and self.mirror.objects[n].requires_grad]
        start = torch.zeros((), requires_grad=True)  # also where nothing here needs a gradient
        with torch.enable_grad():
            joined = _Far.apply(self, numbers, inputs, values, start,
                                *(self.mirror.objects[n] for n in inputs))
        return list(joined)


class _Far(torch.autograd.Function):
    """Tensors that another process computed: gradients are computed there, too."""

    @staticmethod
    def forward(ctx: Any, channel: Channel, numbers: list[int], inputs: list[int], values: list[Tensor],
                start: Tensor, *given: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.channel, ctx.numbers, ctx.inputs = channel, numbers, inputs
        ctx.set_materialize_grads(False)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _, found = ctx.channel.request("backward", list(gradients), outputs=ctx.numbers, inputs=ctx.inputs)
        shapes = [ctx.channel.mirror.objects[n] for n in ctx.inputs]
        found = [value if isinstance(value, Tensor) and value.shape == like.shape else None
                 for value, like in zip(found, shapes, strict=True)]
        return (None, None, None, None, None, *(None if value is None else value.clone() for value in found))


class Function:
    """A function of the other process.

    Args:
        channel: the way there.
        number: of the object whose method it is; None for the answer itself.
        method: its name.
    """

    def __init__(self, channel: Channel, number: int | None, method: str = "") -> None:
        self._asked = channel, {"number": number, "method": method}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - as the learner's function
        channel, more = self._asked
        return channel.request("call", [args, kwargs], **more)[1]


class _Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_channel" not in cls.__dict__:
            raise AttributeError(name)
        header, value = cls._channel.request("get", number=None, name=name)
        return Function(cls._channel, None, name) if header.get("method") else value


class FarClass(metaclass=_Meta):
    """A class of the other process; its objects stay there. Attributes and methods are asked for."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an object there.

        Args:
            *args: of the class.
            **kwargs: of the class.

        Returns:
            What stands for it here.
        """
        return cls._channel.request("call", [args, kwargs], number=None, method="")[1]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_number" not in self.__dict__:
            raise AttributeError(name)
        header, value = self._channel.request("get", number=self._number, name=name)
        if not header.get("method"):
            return value
        function = Function(self._channel, self._number, name)
        return MethodType(lambda _, *args, **kwargs: function(*args, **kwargs), self)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.request("set", value, number=self._number, name=name)


# Classes of transformers that an answer's model is made of. What such an object holds came as data.
MODELS = ("transformers.models.llama.", "transformers.activations",
          "transformers.generation.configuration_utils")


def _known_class(name: str) -> type:
    """A class that may be filled with data from elsewhere: a layer, a config, a dataclass of the course."""
    module, _, path = name.partition(":")
    found = getattr(sys.modules.get(module), path, None)
    layer = isinstance(found, type) and issubclass(found, torch.nn.Module)
    config = path in ("LlamaConfig", "GenerationConfig")
    ours = isinstance(found, type) and (
        (layer and module.startswith(("torch.nn.modules.", "course_utils.", *MODELS)))
        or (config and module.startswith(MODELS))
        or (module.startswith("course_utils.") and dataclasses.is_dataclass(found))
        or name == "types:SimpleNamespace")  # fmt: skip
    if not ours:
        raise Strange(f"a {name}")
    return found
