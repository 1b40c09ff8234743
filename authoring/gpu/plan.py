"""The steps of `course gpu-run` in their order, and the settings that they get."""

import importlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        module: its name in this package.
        record: name of its file in recorded/, without ".json".
        seconds: the most it may take, however much is left.
    """

    module: str
    record: str
    seconds: int

    def load(self) -> ModuleType:
        """Import the step's module.

        Returns:
            The module, with TITLE and measure_into.
        """
        return importlib.import_module(f"authoring.gpu.{self.module}")


STEPS = {
    "machine": Step("machine", "gpu_machine", 60),
    "lessons": Step("lessons", "gpu_lessons", 240),
    "compare": Step("compare", "gpu_compare", 120),
    "13b": Step("model_13b", "gpu_13b", 150),
    "sparse": Step("sparse", "gpu_sparse_2_4", 60),
    "kv-cache": Step("kv_cache", "gpu_kv_cache", 100),
    "engines": Step("engines", "gpu_engines", 120),
}


@dataclass(frozen=True)
class Settings:
    """What a step is told.

    Attributes:
        out: folder of this run.
        root: folder of the repository.
        device: "cuda", or "cpu" to rehearse.
        small: tiny shapes, to rehearse.
        jobs: lessons at a time.
        keep_going: lessons go on after a failing cell.
        lessons: which ones, by number or key ("04", "gptq"); () for all.
        seconds: this step's limit.
    """

    out: str
    root: str
    device: str = "cuda"
    small: bool = False
    jobs: int = 1
    keep_going: bool = False
    lessons: tuple[str, ...] = ()
    seconds: float = 600.0

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return Path(self.out)

    @property
    def records(self) -> Path:
        """Folder of the result files, in the format of recorded/."""
        return self.folder / "recorded"

    def to_json(self) -> str:
        """Text of the settings, for the argument of another process.

        Returns:
            JSON that `from_json` reads.
        """
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote.

        Args:
            text: the JSON.

        Returns:
            The settings.
        """
        values = json.loads(text)
        return cls(**values | {"lessons": tuple(values["lessons"])})


def chosen(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[str]:
    """Which steps to run.

    Args:
        only: names of steps; all when empty.
        skip: names of steps that are left out.

    Returns:
        Names in the order of the plan.

    Raises:
        ValueError: there is no such step.
    """
    for name in (*only, *skip):
        if name not in STEPS:
            raise ValueError(f"no step {name!r}: there are {', '.join(STEPS)}.")
    return [name for name in STEPS if (not only or name in only) and name not in skip]
