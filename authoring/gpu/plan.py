"""The steps of `course gpu-run` in their order, and the settings that they get."""

import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """`record` is the name of its file in recorded/; `seconds` the most it may take, however much is left."""

    module: str
    record: str
    seconds: int

    def load(self):
        """The step's module."""
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

    out: folder of this run. device: "cuda", or "cpu" to rehearse. small: tiny shapes, to rehearse.
    jobs: lessons at a time. keep_going: lessons go on after a failing cell. lessons: their numbers, () for
    all. seconds: this step's limit. root: the repository.
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
        return Path(self.out)

    @property
    def records(self) -> Path:
        """Folder of the result files, in the format of recorded/."""
        return self.folder / "recorded"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        values = json.loads(text)
        return cls(**values | {"lessons": tuple(values["lessons"])})


def chosen(only=(), skip=()) -> list[str]:
    """Names of the steps to run, in order. Raises ValueError for an unknown name."""
    for name in (*only, *skip):
        if name not in STEPS:
            raise ValueError(f"no step {name!r}: there are {', '.join(STEPS)}.")
    return [name for name in STEPS if (not only or name in only) and name not in skip]
