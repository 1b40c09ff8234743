"""The table of claims: read from what cells printed, written to page, README and lesson."""

import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from authoring import claims, sync
from authoring.project import LessonError, Project

TOML = '[[claim]]\nid = "C1"\nsays = "it is `small`"\n[[claim]]\nid = "C2"\nsays = "it is fast"\n'


def course(folder, lessons, toml=TOML):
    """A course whose solutions printed what is given: stem -> cell id -> text."""
    (folder / "lessons").mkdir()
    (folder / "solutions").mkdir()
    (folder / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/a/b"\n')
    if toml:
        (folder / claims.FILE).write_text(toml)
    for stem, cells in lessons.items():
        (folder / f"lessons/{stem}.py").write_text('# %% [markdown] name="title"\n# # A title\n')
        printed = [new_code_cell("1", id=id, outputs=[new_output("stream", text=text)] if text else [])
                   for id, text in cells.items()]
        nbformat.write(new_notebook(cells=printed), folder / f"solutions/{stem}.ipynb")
    return Project(folder)


def test_words_verdict_figures_and_cell_stand_in_a_row(tmp_path):
    text = ("accuracy 87.0%\nC1: false as printed. It takes 5.2 GB,\n    not 4.\n"
            "C1 (speed): right for <2 | 3*4>.\n")
    project = course(tmp_path, {"04_gptq": {"teacher": text, "claim": "C1: stale, too. See [x]."}})
    whole, short = claims.table(project, "../solutions"), claims.table(project, "solutions", short=True)
    assert whole.splitlines()[2:] == [
        "| C1 | it is `small` | **false as printed** | It takes 5.2 GB, not 4. "
        "| [gptq: teacher](../solutions/04_gptq.ipynb#cell-id=teacher) |",
        "|  |  | **right for \\<2 \\| 3\\*4\\> (speed)** |  "
        "| [gptq: teacher](../solutions/04_gptq.ipynb#cell-id=teacher) |",
        "|  |  | **stale, too** | See \\[x\\]. | [gptq: claim](../solutions/04_gptq.ipynb#cell-id=claim) |",
        "| C2 | it is fast | open | no lesson shows it yet |  |",
    ]
    assert "5.2" not in short and "[gptq: claim](solutions/04_gptq.ipynb#cell-id=claim)" in short


@pytest.mark.parametrize(
    "text",
    ["C1: the article says that it is small.", "C1: false", "C1: false,\n    and more. And more.", "C1:",
     "C1, size: false. More.",
     "C1: falsely said. More.", "C1: false in all that it says of this and of that. More."],
)
def test_a_line_without_a_verdict_is_named(tmp_path, text):
    project = course(tmp_path, {"04_gptq": {"claim": text}})
    (tmp_path / "docs").mkdir()
    (tmp_path / claims.PAGE).write_text(claims.page(project))
    (problem,) = claims.problems(project)
    assert problem.startswith("lessons/04_gptq.py, cell 'claim': the line that begins with 'C1' goes on with")
    assert "**no verdict**" in claims.table(project, "solutions")


def test_an_unknown_claim_is_named(tmp_path):
    project = course(tmp_path, {"04_gptq": {"claim": "C9: false. It is."}})
    problem = "lessons/04_gptq.py, cell 'claim': C9 is no claim of lessons/claims.toml."
    assert problem in claims.problems(project)
    with pytest.raises(LessonError, match="cell 'text': there is no claim 'C9'"):
        claims.fill(project, "lessons/04_gptq.py", "text", "{claim:C9}")


@pytest.mark.parametrize(
    ("toml", "message"),
    [(TOML + TOML, "C1 is there twice"), ("[[claim]", "is no TOML"), ('[[claim]]\nid = "C1"\n', "has id = "),
     ('[[claim]]\nid = "1"\nsays = "x"\n', "has id = ")],
)
def test_a_wrong_file_of_claims_is_named(tmp_path, toml, message):
    with pytest.raises(LessonError, match=f"lessons/claims.toml: .*{message}"):
        claims.read_claims(course(tmp_path, {}, toml))


def test_a_course_without_claims_has_no_page(tmp_path):
    project = course(tmp_path, {"04_gptq": {"claim": "nothing"}}, toml="")
    assert claims.problems(project) == [] and claims.page(project) is None


def test_a_cell_that_prints_something_else_puts_page_readme_and_lesson_out_of_step(synced):
    """The sample lesson's measured cell makes a claim; its outputs then change."""
    (synced.root / claims.FILE).write_text(TOML)
    readme = synced.root / "README.md"
    readme.write_text(readme.read_text() + f"<!-- {claims.PART}:begin -->\n<!-- {claims.PART}:end -->\n")
    source = next((synced.root / "lessons").glob("90_*.py"))
    source.write_text(source.read_text().replace("That was all.", "That was all: {claims}"))
    said = []
    sync.sync(synced, run=False, report=said.append)
    assert sync.check(synced) == [] and "wrote docs/claims.md" in said
    assert "| C1 | it is `small` | open |" in readme.read_text()

    change(synced, "C1: false. 7 of 8.")
    found = [problem.partition(":")[0] for problem in sync.check(synced)]
    assert "docs/claims.md" in found and "README.md" in found
    assert "notebooks/90_sample.ipynb, cell 'recap'" in found  # its prose holds the table
    command = [sys.executable, "-m", "authoring.cli", "--root", str(synced.root), "claims"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "wrote docs/claims.md" in done.stdout
    assert sync.check(synced) == []
    assert "| **false** | 7 of 8. |" in (synced.root / claims.PAGE).read_text()

    change(synced, "C1: seven. 7 of 8.")
    assert any("cell 'timed': the line that begins with 'C1' goes on" in line for line in sync.check(synced))


def change(project, text):
    """Let the solution's cell "timed" have printed this, as if it had been executed so."""
    path = project.root / "solutions/90_sample.ipynb"
    notebook = nbformat.read(path, as_version=4)
    timed = next(cell for cell in notebook.cells if cell.id == "timed")
    timed.outputs = [new_output("stream", text=text + "\n")]
    kept = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    code = notebook.metadata.course.code
    sync.attach_outputs(notebook, kept)
    assert notebook.metadata.course.code == code
    sync.write_notebook(project, path, notebook)
