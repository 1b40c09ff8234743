"""Files that engines make once from a model: exported graphs, quantized weights.

They are kept in the course's cache, one folder for each engine and model, with a manifest: a folder that was
interrupted or damaged is made anew, and two processes do not make the same one at once.
"""

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from course_utils import cache
from course_utils.engines import environment, process
from course_utils.engines.entry import Engine
from course_utils.engines.registry import find
from course_utils.errors import CourseError

MEGABYTES = 3000  # free space asked for before anything is made: FP32 twice, and what is in between


def install(
    engine: Engine, python: str | Path | None = None, again: bool = False, model: str | Path | None = None
) -> Path:
    """Build the engine's environment and, with it, the files that it needs.

    Engines that it depends on are installed as well.

    Args:
        engine: which one.
        python: the interpreter to build it with (default: this one).
        again: build the environment even if it is complete.
        model: folder of the model that is prepared (default: the embedded one).

    Returns:
        The environment's folder.

    Raises:
        CourseError: pip or the preparation failed.
    """
    folder = environment.install(engine, python or sys.executable, again)
    for name in engine.needs:
        install(find(name), python, model=model)
    prepare(engine, model)
    return folder


def prepare(engine: Engine, model: str | Path | None = None) -> Path | None:
    """Make the engine's files from a model. Quick when they are there.

    Args:
        engine: which one.
        model: folder of the model (default: the embedded one).

    Returns:
        The files' folder; None for an engine that needs none.

    Raises:
        CourseError: the engine's worker failed.
    """
    if not engine.steps:
        return None
    model = _model(model)
    source = prepare(find(engine.needs[0]), model) if engine.needs else None

    def build(folder: Path) -> None:
        for step in tqdm(engine.steps, desc=f"{engine.name}: preparing", unit=" files"):
            request = {"task": "prepare", "step": step, "model": str(model), "out": str(folder / step),
                       "source": str(source) if source else None, "threads": 1}
            with _ticking(f"{engine.name}: {step}"):
                answer = process.run(engine, request, timeout=3600)
            if not answer:
                raise CourseError(f"preparing {step} failed: {answer}")

    return cache.cached_folder(_name(engine, model), build, _version(engine), MEGABYTES)


def prepared(engine: Engine, model: str | Path | None = None) -> Path | None:
    """The folder of the engine's files when they are complete, else None. Makes nothing."""
    model = _model(model)
    folder = cache.cache_dir() / _name(engine, model)
    return folder if cache.problem(folder, _version(engine)) is None else None


def _model(folder: str | Path | None) -> Path:
    """The model's folder, the embedded one by default."""
    from course_utils import models

    return Path(folder or models.embedded_lm())


def _name(engine: Engine, model: Path) -> str:
    """Name of the cached folder; another model, or the same one changed, gets another."""
    listed = model / cache.MANIFEST
    if listed.exists():
        content = listed.read_text(encoding="utf-8")
    else:
        content = repr(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in model.iterdir()))
    return f"engine-{engine.name}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def _version(engine: Engine) -> str:
    """Changes with the engine's pins or its number `files`: what it prepared is then made again."""
    pins = "\n".join(environment.pins(engine))
    return f"{engine.files}-{hashlib.sha256(pins.encode()).hexdigest()[:16]}"


@contextmanager
def _ticking(text: str) -> Iterator[None]:
    """A line with the seconds gone by, while something runs that cannot say how far it is."""
    done = threading.Event()
    bar = tqdm(total=0, desc=text, bar_format="{desc}: {elapsed} gone by", leave=False)

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()
