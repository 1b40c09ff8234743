"""Lessons x families: each lesson loads a model and takes it, or says in one line what it lacks; some run.

    python -m tests.families.test_lessons     prints the table
"""

import contextlib
import io
import os
import re
from dataclasses import replace

import pytest

from authoring import generate, sync
from authoring.project import Project, key_of
from course_utils import lesson_needs, models, shapes
from course_utils.errors import CourseError
from tests.families import folders

PROJECT = Project()
LESSONS = {key_of(path.stem): generate.read_lesson(PROJECT, path) for path in PROJECT.lessons()}
USING = list(lesson_needs.LESSONS)
COUNT, LINEAR, BLOCKS, FOLD, WINDOW, GROUPS, TOKENS, TWO, THREE = (
    re.escape(f"needs {need}, which ") for need in (
        "Llama's count", "linear layers", "Llama's blocks", "foldable norms", "full attention",
        "groups of 64", "512 tokens", "two blocks", "three blocks"))

# Lesson -> families that it refuses, and why. It runs on all others.
REFUSED = {
    "one_token": {"llama, 96 wide": TOKENS, "gpt2": COUNT, "opt": COUNT, "mixtral": COUNT},
    "formats": {"llama, 96 wide": GROUPS, "gpt2": LINEAR, "mixtral": LINEAR},
    "ptq": {"llama, 96 wide": GROUPS, "gpt2": LINEAR, "mixtral": LINEAR,
            "gemma2": FOLD, "gemma3": FOLD},
    "gptq": {"llama, 96 wide": GROUPS, "gpt2": LINEAR, "mixtral": LINEAR},
    "awq": {"llama, 2 blocks": THREE, "llama, 1 block": THREE, "llama, 96 wide": GROUPS,
            "gpt2": BLOCKS, "mixtral": BLOCKS, "opt": BLOCKS, "phi3": BLOCKS, "gemma2": FOLD, "gemma3": FOLD},
    "pruning": {"llama, 96 wide": TOKENS, "gpt2": LINEAR, "mixtral": LINEAR},
    "merging": {},
    "structured": {"llama, 1 block": TWO, "gpt2": BLOCKS, "mixtral": BLOCKS, "opt": BLOCKS, "phi3": BLOCKS},
    "distillation": {"llama, 1 block": TWO, "gpt2": LINEAR, "mixtral": LINEAR},
    "kv_cache": {"gpt2": COUNT, "opt": COUNT, "mixtral": COUNT, "gemma2": WINDOW, "gemma3": WINDOW,
                 "mistral": WINDOW, "llama, 96 wide": TOKENS},
    "serving": {"gemma2": WINDOW, "gemma3": WINDOW, "mistral": WINDOW, "llama, 96 wide": TOKENS},
    "outlook": {"llama, 1 block": TWO, "llama, 96 wide": TOKENS, "gpt2": BLOCKS, "mixtral": BLOCKS,
                "opt": BLOCKS, "phi3": BLOCKS, "gemma2": WINDOW, "gemma3": WINDOW, "mistral": WINDOW},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function: family -> folder with a model of it, written once."""
    place, written = tmp_path_factory.mktemp("models"), {}

    def of(family):
        if family not in written:
            written[family] = folders.write(family, place / family.replace(", ", "-").replace(" ", "-"))
        return written[family]

    return of


def required(key, lm):
    """The line with which a lesson refuses a model, or None: its own loading and its own `require` run."""
    code = "\n".join(cell.source for cell in LESSONS[key].cells if cell.type == "code")
    call = re.search(r"^.* = models\.load_lm\(LM, device=DEVICE\)\nshapes\.require\(.*$", code, re.MULTILINE)
    try:
        exec(call[0], {"models": models, "shapes": shapes, "LM": str(lm), "DEVICE": "cpu"})
    except CourseError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("family", folders.FOLDERS)
@pytest.mark.parametrize("key", USING)
def test_a_lesson_takes_a_model_or_says_why_not(key, family, folder):
    line = required(key, folder(family))
    expected = REFUSED[key].get(family)
    assert (line is None) == (expected is None), line
    assert expected is None or re.search(expected, line)
    if line:
        run = [other for other in USING if family not in REFUSED[other]]
        assert line.endswith(f"Lessons that run on this model: {', '.join(run)}.") and "\n" not in line


def test_every_lesson_takes_the_embedded_model_and_says_nothing(capsys):
    model, _ = models.load_lm("")
    for key in USING:
        shapes.require(model, key)
    assert capsys.readouterr().out == ""


def test_a_lesson_says_that_its_text_is_about_another_model(folder, capsys):
    assert required("merging", folder("gpt2")) is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "not the course's model" in said


def test_a_lesson_that_uses_another_model_asks_for_what_it_needs():
    assert {key for key, lesson in LESSONS.items() if sync.model_needs(lesson) != "-"} == set(USING)
    lesson = LESSONS["awq"]
    cells = [replace(cell, source=cell.source.replace('shapes.require(model, "awq")\n', ""))
             for cell in lesson.cells]
    with pytest.raises(ValueError, match=r'write shapes.require\(model, "awq"\)'):
        sync.model_needs(replace(lesson, cells=cells))


def test_each_need_is_explained_and_tried():
    asked = {need for needs in lesson_needs.LESSONS.values() for need in needs}
    assert asked == set(lesson_needs.NEEDS) == set(shapes.CHECKS)
    text = (PROJECT.root / "README.md").read_text()
    assert all(f"- *{need}*: {like}." in text for need, like in lesson_needs.NEEDS.items())


def test_places_are_the_blocks_that_the_lessons_were_written_with(folder):
    model, _ = models.load_lm("")
    shares = (0, 2 / 15, 1 / 3, 2 / 5, 2 / 3, 1)
    assert [shapes.place(model, share) for share in shares] == [0, 4, 10, 12, 20, 29]
    short, _ = models.load_lm(folder("llama, 16 blocks"))
    assert [shapes.place(short, share) for share in shares] == [0, 2, 5, 6, 10, 15]


@pytest.mark.parametrize("family", ["qwen2", "opt", "gpt2"])  # their configs leave it to be computed
def test_the_size_of_a_head_is_known_after_loading(family, folder):
    model, _ = models.load_lm(folder(family))
    assert model.config.head_dim == 16


def run(key, lm):
    """All code of a lesson's solution but its checks, in this process; raises what it raises."""
    notebook = generate.make_notebook(PROJECT, LESSONS[key], "solutions", {})
    names = {"PROFILE": "cpu", "LM": str(lm), "DEVICE": "cpu"}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in notebook.cells:
            if cell.cell_type == "code" and cell.id not in ("setup", "parameters"):
                exec(compile(cell.source, f"{key}, {cell.id}", "exec"), names)


# Lessons that were written for 30 blocks, and those that read most of a model's parts.
@pytest.mark.slow
@pytest.mark.parametrize("key, family", [
    ("awq", "llama, 16 blocks"), ("formats", "opt"), ("gptq", "opt"), ("kv_cache", "mistral, long window"),
    ("one_token", "gemma3")])
def test_a_lesson_runs_to_its_end(key, family, folder):
    run(key, folder(family))


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    os.environ["MPLBACKEND"] = "Agg"
    with tempfile.TemporaryDirectory() as place:
        for family in folders.FOLDERS:
            lm = folders.write(family, Path(place) / family.replace(", ", "-").replace(" ", "-"))
            for key in USING:
                print(f"{family:18} {key:13} {required(key, lm) or 'runs'}")
