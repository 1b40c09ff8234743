"""The engines of this course, and the variants of them that the lesson on engines compares.

An engine is a folder beside this file. It is a package: its __init__.py has `ENGINE` and, for rows of the
table, `VARIANTS` (names and `Variant`s in their order). Nothing else has to be told of it.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from course_utils.engines.entry import Engine, Variant


def _packages() -> list[ModuleType]:
    """The engines' packages, by their place, then by name."""
    found = [importlib.import_module(f"{__package__}.{module.name}")
             for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    return sorted(found, key=lambda package: (package.ENGINE.place, package.ENGINE.name))


_PACKAGES = _packages()
ENGINES: dict[str, Engine] = {package.ENGINE.name: package.ENGINE for package in _PACKAGES}
VARIANTS: dict[str, Variant] = {
    name: variant for package in _PACKAGES for name, variant in getattr(package, "VARIANTS", {}).items()}


def find(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; known: {', '.join(ENGINES)}")
    return ENGINES[name]
