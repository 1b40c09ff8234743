"""Engines, each called as a process: other libraries that run the same model.

An engine is a folder in here: what is told of it (__init__.py), a worker script and a file of pinned
requirements, which make an environment of its own (PyTorch itself runs in the course's). The script runs as a
process of the engine's own Python: it reads one JSON request from standard input and prints one JSON answer
as its last line. Whatever else it prints goes to a log. So a lesson can use a library that needs another
version of transformers, and a library that crashes or hangs cannot take the kernel with it.

An engine is added by adding a folder. What workers share is in shared/, the only folder of the course that
they see besides their own.

    answer = engines.run("auto-gptq", {"task": "versions"}, timeout=60)
    if answer:
        print(answer.values)
    else:
        print(answer)            # what is missing, and the command that installs it

`course engines list | install | run` is the same on the command line.
"""

from course_utils.engines.entry import Engine, Variant
from course_utils.engines.environment import is_installed
from course_utils.engines.export import install
from course_utils.engines.process import Answer, EngineUnavailable, run
from course_utils.engines.registry import ENGINES, VARIANTS, find
from course_utils.engines.table import measure_all

__all__ = ["ENGINES", "VARIANTS", "Answer", "Engine", "EngineUnavailable", "Variant", "find", "install",
           "is_installed", "measure_all", "run"]
