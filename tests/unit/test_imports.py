"""Which way imports go: lessons and authoring -> course_utils, nothing -> authoring, and no circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from authoring.project import Project

ROOT = Project().root
PACKAGES = ("course_utils", "authoring")


def name_of(path: Path, root: Path) -> str:
    """Dotted name of the module in a file under `root`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; with `at_import` only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            yield from statements(child, at_import)


def imports(path: Path, root: Path, modules: set[str], at_import: bool = False) -> set[str]:
    """Dotted names that a file imports: of a known module where it is one, else as written."""
    package = name_of(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = set()
    for node in statements(ast.parse(path.read_text()), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *[node.module] * bool(node.module)])
        for alias in node.names:  # a module of that package, or a name in it
            whole = f"{base}.{alias.name}"
            found.add(whole if whole in modules else base)
    return found


def graph(root: Path, packages: tuple[str, ...], at_import: bool = False) -> dict[str, set[str]]:
    """Module -> what it imports, for each module of the packages."""
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    modules = {name_of(path, root) for path in files}
    return {name_of(path, root): imports(path, root, modules, at_import) for path in files}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; [] when none do."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong(edges: dict[str, set[str]], importer: str, imported: str) -> list[str]:
    return [f"{module} imports {name}" for module, names in edges.items() for name in names
            if inside(module, importer) and inside(name, imported)]


EDGES = graph(ROOT, PACKAGES)


def test_the_modules_are_found():
    assert "course_utils.checking.compare" in EDGES["course_utils.checking.judge"]
    assert "authoring.generate" in EDGES["authoring.sync"]
    assert "authoring.sync" in EDGES["authoring.cli"]  # inside of a function


def test_no_circle():
    assert circle(graph(ROOT, PACKAGES, at_import=True)) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("course_utils", "authoring"),
        ("course_utils", "lessons"),
        ("course_utils", "tests"),
        ("authoring", "tests"),
        # The one way from the judge to what is asked is a dynamic import by the lesson's key: see below.
        ("course_utils.checking", "course_utils.exercises"),
        ("authoring", "course_utils.exercises"),
    ],
)
def test_nothing_imports_against_the_direction(importer, imported):
    assert wrong(EDGES, importer, imported) == []


def test_what_is_asked_is_imported_by_nothing_and_imports_the_judge():
    content = {name: names for name, names in EDGES.items() if name.startswith("course_utils.exercises.")}
    assert content
    for name, names in content.items():
        assert any(inside(imported, "course_utils.checking") for imported in names), name
    others = {name: names for name, names in EDGES.items() if not inside(name, "course_utils.exercises")}
    assert wrong(others, "course_utils", "course_utils.exercises") == []


def test_the_judge_has_one_dynamic_import():
    calls = [path.name for path in sorted((ROOT / "course_utils/checking").glob("*.py"))
             for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module"
             and path.name != "worker.py"]  # it is no part of the judge: it holds the answers
    assert calls == ["__init__.py"]


@pytest.mark.parametrize("lesson", [path.stem for path in Project().lessons()])
def test_a_lesson_imports_the_library_and_no_tool_of_authors(lesson):
    found = imports(ROOT / "lessons" / f"{lesson}.py", ROOT, set(EDGES))
    assert any(inside(name, "course_utils") for name in found)
    assert not [name for name in found for other in ("authoring", "tests") if inside(name, other)]


def test_a_circle_and_a_wrong_direction_are_found(tmp_path):
    """The tests above can fail."""
    for name, text in {
        "__init__": "", "a": "from course_utils import b\n", "b": "from . import c\n",
        "c": "class C:\n    import course_utils.a\n", "d": "def f():\n    from course_utils import e\n",
        "e": "from course_utils import d\nfrom authoring.sync import check\n",
    }.items():  # fmt: skip
        path = tmp_path / "course_utils" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    edges = graph(tmp_path, ("course_utils",), at_import=True)
    assert set(circle(edges)) == {f"course_utils.{name}" for name in "abc"}
    assert wrong(edges, "course_utils", "authoring") == ["course_utils.e imports authoring.sync"]
    del edges["course_utils.c"]
    assert circle(edges) == []
