"""The process that runs a learner's answers: a starter that has loaded PyTorch, and a fork of it for each.

It is started by its path. The starter never runs a line of a learner's. A fork gets the cells' source and
a folder with the library, in which the exercise's own function is a stub. It holds no case, no expected
value and nothing else of the judge's; it does what it is asked over one socket, and ends with it.
"""

import ast
import contextlib
import functools
import gc
import importlib
import io
import json
import linecache
import os
import signal
import socket
import sys
import types
from typing import Any

MODULE = "answers"  # the learner's cells run as this module


def main(handle: int, preload: list[str]) -> None:
    """Start a process for each request, until the other side is closed.

    Args:
        handle: file descriptor of a Unix socket.
        preload: import statements, of what to load once for all; nothing of the course's own.
    """
    control = socket.socket(fileno=handle)
    for statement in preload:
        with contextlib.suppress(Exception):
            exec(statement, {})
    import torch

    from course_utils.checking import bounds, describe, mirror, running, source  # noqa: F401

    torch.set_num_threads(1)
    bounds.adopt_orphans()
    gc.freeze()  # a fork need not look through what is loaded
    control.sendall(b"1")  # ready
    child = 0
    while True:
        data, handles, _, _ = socket.recv_fds(control, 2**16, 1)
        if not data:  # the judge is gone
            bounds.end_all(child)
            break
        asked = json.loads(data)
        if "end" in asked:
            bounds.end_all(child)
            child = 0
            control.sendall(b"0")
            continue
        child = os.fork()
        if not child:
            control.close()
            try:
                work = functools.partial(_serve, asked, handles[0])
                bounds.begin(asked["bounds"], asked["tree"], handles[0], work)
            finally:
                os._exit(1)
        os.close(handles[0])
        control.sendall(b"1")


def _serve(asked: dict[str, Any], handle: int) -> None:
    """Run the cells, then answer requests until the socket is closed."""
    import random

    import numpy as np
    import torch

    from course_utils.checking.describe import shorten
    from course_utils.checking.mirror import Mirror, Strange, frames, parse
    from course_utils.checking.source import is_stub, learners_line, left_over

    for name in [name for name in sys.modules if name.partition(".")[0] in asked["own"]]:
        del sys.modules[name]  # from here on the library is the one in `tree`
    sys.path[:] = [asked["tree"], *(path for path in sys.path if path not in asked["hide"])]
    sys.stdin = io.StringIO()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cells = None
    channel = open(handle, "r+b", buffering=0)
    mirror = Mirror(imported, far=lambda value: type(value).__module__ == MODULE
                    or isinstance(value, types.GeneratorType))  # fmt: skip

    def read(length: int) -> bytes:
        parts = []
        while length:
            part = channel.read(min(length, 2**20))
            if not part:
                os._exit(0)
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def send(message: Any) -> None:
        for part in frames(message):
            view = memoryview(part)
            while view:
                view = view[channel.write(view):]

    run = None
    answer = None
    while True:
        header, blobs = parse(read, 2**40)
        value = mirror.unpack(header, blobs)
        if header["run"] != run:
            run = header["run"]
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
        reply, result = {}, None
        try:
            op = header["op"]
            if op == "cells":
                cells = Cells(header["imports"], header["cells"])
            elif op == "look":
                answer = cells.answer(header["name"], header["plain"])
                kind = ("class" if isinstance(answer, type) else "function" if callable(answer) else "value")
                reply["kind"], result = kind, None if kind != "value" else answer
            elif op == "backward":
                objects = mirror.objects
                pairs = [(objects[n], above) for n, above in zip(header["outputs"], value, strict=True)
                         if above is not None]
                result = list(torch.autograd.grad(
                    [end for end, _ in pairs], [objects[n] for n in header["inputs"]],
                    [above for _, above in pairs], allow_unused=True, retain_graph=True,
                )) if header["inputs"] else []  # fmt: skip
            else:
                thing = answer if header["number"] is None else mirror.objects[header["number"]]
                if op == "call":
                    thing = getattr(thing, header["method"]) if header["method"] else thing
                    result = thing(*value[0], **value[1])
                elif op == "set":
                    setattr(thing, header["name"], value)
                else:
                    result = getattr(thing, header["name"])
                    if callable(result) and not isinstance(result, torch.nn.Module):
                        reply["method"], result = True, None
        except BaseException as error:
            frame, last = error.__traceback__, ""
            while frame is not None:
                last, frame = frame.tb_frame.f_code.co_filename, frame.tb_next
            emptied = isinstance(error, NotImplementedError) and last.startswith(asked["tree"])
            try:
                text = shorten(str(error), 400)
            except BaseException:
                text = ""
            reply["error"] = {
                "types": [cls.__name__ for cls in type(error).__mro__], "message": text,
                "stub": emptied or is_stub(error), "left_over": left_over(error),
                "line": learners_line(error),
            }  # fmt: skip
            result = None
        try:
            header, blobs = mirror.pack(result)
        except Strange as error:
            os._exit(len(str(error)) and 3)
        send((header | reply, blobs))


def imported(name: str) -> Any:
    """The class or function of a name, imported where needed.

    Args:
        name: "module:name".

    Returns:
        What has this name.

    Raises:
        Strange: nothing has.
    """
    from course_utils.checking.mirror import Strange

    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise Strange(f"{name} is not here") from error
    return found


class Cells:
    """A learner's cells, run when they are needed.

    Args:
        imports: statements that every answer may need; one that fails is left out.
        cells: (name, source) of the answers and of what else the learner defined, in the notebook's order.
    """

    def __init__(self, imports: list[str], cells: list[list[str]]) -> None:
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        self.space, self.cells, self.imports = module.__dict__, cells, imports
        self.space["display"] = lambda *_, **__: None  # in a notebook it is there without an import
        self.errors: dict[str, BaseException] = {}

    def answer(self, name: str, plain: bool) -> Any:
        """What a name stands for after the cells have run.

        Args:
            name: the cell's for a prediction, else the function's or class's.
            plain: whether a prediction is asked for: then one cell runs.

        Returns:
            The object; None when there is none.

        Raises:
            BaseException: what the cell with the answer raised.
        """
        if plain:
            try:
                self._run(name, dict(self.cells)[name])
            except NameError:  # it uses a name of the lesson: most need none
                self._import()
                self._run(name, dict(self.cells)[name])
            value = self.space.get("prediction")
            if callable(getattr(value, "item", None)) and not isinstance(value, type):
                value = value.item()
            return value
        self._import()
        for cell, source in self.cells:
            try:
                self._run(cell, source)
            except BaseException as error:
                self.errors[cell] = error
        cell, _, wanted = name.partition(":")
        if wanted not in self.space and cell in self.errors:
            raise self.errors[cell]
        return self.space.get(wanted)

    def _import(self) -> None:
        for statement in self.imports:
            with contextlib.suppress(Exception):
                exec(statement, self.space)

    def _run(self, cell: str, source: str) -> None:
        name = f"<{cell}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(ast.parse(source, name), name, "exec"), self.space)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.load(sys.stdin))
