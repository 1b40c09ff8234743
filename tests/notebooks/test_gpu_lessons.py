"""The lessons' step of `course gpu-run`, and the comparison that follows it, on the sample course."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from authoring.gpu import compare, lessons
from authoring.gpu.plan import Settings
from authoring.gpu.results import Results

pytestmark = pytest.mark.slow  # every test starts kernels
# papermill asks for the language before it puts parameters in.
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def parameters():
    return new_code_cell('PROFILE = "cpu"\nDEVICE = "cpu"', id="parameters",
                         metadata={"tags": ["parameters"]})


def write(project, name, *sources):
    cells = [parameters(), *(new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources))]
    path = project.root / "solutions" / name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)


def run(project, step, keep_going=True, seconds=120.0, **more):
    settings = Settings(str(project.root / "out"), str(project.root), device="cpu", keep_going=keep_going,
                        seconds=seconds, **more)
    results = Results(settings.records, "gpu_trial")
    results.rows.clear()
    step(settings, results)
    return {row["lesson"]: row for row in results.rows}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """The step's processes import `authoring` from here, though the course's root is elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(lessons.Path(lessons.__file__).parents[2]))


def test_every_failing_cell_is_reported_and_a_lesson_that_hangs_is_a_row(unsynced, monkeypatch):
    write(unsynced, "80_fails.ipynb", "1 / 0", "print('goes on')", "raise ValueError('no luck')")
    write(unsynced, "81_hangs.ipynb", "x = 1", "import time; time.sleep(600)")
    write(unsynced, "82_dies.ipynb", "import os; os._exit(3)")
    monkeypatch.setattr(lessons, "MOST", 40)
    rows = run(unsynced, lessons.measure_into, jobs=3)
    assert [*rows] == ["fails", "hangs", "dies"], "in the order of their numbers, by key"
    assert rows["fails"]["failing cells"] == [
        "cell-0: ZeroDivisionError: division by zero", "cell-2: ValueError: no luck"]
    assert rows["hangs"]["error"] == "stopped after 40 s, in or after cell 'cell-1'"
    assert "DeadKernelError" in rows["dies"]["error"]
    executed = nbformat.read(unsynced.root / "out/lessons/80_fails.ipynb", as_version=4)
    cells = {cell.id: cell for cell in executed.cells}
    assert "goes on" in cells["cell-1"].outputs[0].text


def test_lessons_are_compared_and_those_with_gpu_sizes_run_again(synced):
    path = synced.root / "solutions/90_sample.ipynb"
    sized = path.with_name("91_sized.ipynb")
    source = "n = 1 if PROFILE == 'cpu' else 2\nprint('n is', n)"
    notebook = new_notebook(metadata=METADATA, cells=[
        parameters(),
        new_code_cell(source, id="sizes", execution_count=2, outputs=[
            nbformat.v4.new_output("stream", name="stdout", text="n is 1\n")])])
    nbformat.write(notebook, sized)
    rows = run(synced, lessons.measure_into)
    assert [*rows] == ["sample", "sized"]
    assert rows["sample"]["exercises passed"] == rows["sample"]["exercises"] == 4
    assert rows["sample"]["failing cells"] == [] and rows["sample"]["minutes"] > 0
    executed = nbformat.read(synced.root / "out/lessons/91_sized.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "n is 2\n"
    path.write_text(path.read_text().replace("mean 1.250", "mean 1.290"))  # 3 %, and the tolerance is 2 %
    rows = run(synced, compare.measure_into)
    assert rows["sized"]["which"] == {}, "compared with the sizes of the CPU"
    assert set(rows["sample"]["which"]) == {"measured"}, "the one that was changed above"
