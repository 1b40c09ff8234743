"""`course run`: the table, failing lessons, closed sockets, an interrupt."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console

from authoring.execute import execute
from authoring.run import exercise_statuses, run_lessons, table
from course_utils import threads

pytestmark = pytest.mark.slow  # every test starts kernels
COMMAND = [sys.executable, "-m", "authoring.cli", "--root"]


def write(project, name, *sources):
    cells = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    path = project.root / "solutions" / name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def test_solutions_pass_and_stubs_do_not(synced):
    cells = []
    (solved,) = run_lessons(synced, ["90"], on_cell=lambda path, *where: cells.append(where[:2]))
    assert (solved.passed, solved.exercises, solved.error) == (4, 4, "")
    assert solved.seconds > 0 and solved.peak_bytes > 50e6
    assert cells[0] == (0, len(cells)) and cells[-1] == (len(cells) - 1, len(cells))
    (stubs,) = run_lessons(synced, kind="notebooks", parameters={"DEVICE": "meta"})
    assert (stubs.passed, stubs.exercises, stubs.error) == (0, 4, "")
    executed = nbformat.read(synced.root / stubs.path, as_version=4)
    assert "using cpu meta" in executed.cells[4].outputs[0].text
    assert set(exercise_statuses(executed).values()) == {"not attempted"}


def test_copied_answers_are_counted_apart(synced):
    (path,) = synced.notebooks("notebooks", ["90"])
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    cells["ex-halve"].source = "halve = sample_library.halve"
    cells["ex-double"].source = "def double(x):\n    return x + x"
    nbformat.write(notebook, path)
    (row,) = run_lessons(synced, kind="notebooks")
    assert (row.passed, row.library, row.exercises) == (1, 1, 4)
    assert row.counts == "1/4, 1 with the library's function"
    text = Console(width=300)
    with text.capture() as shown:
        text.print(table([row, row]))
    assert "1/4, 1 with the library's function" in shown.get()
    assert "2/8, 2 with the library's function" in shown.get()


def test_a_child_that_was_just_forked_is_not_counted_twice():
    """`subprocess` forks, then executes; until then the child seems to hold all that its parent holds."""
    fork = "import os, time\nif os.fork() == 0:\n    time.sleep(1)\n    os._exit(0)\nos.wait()"
    block = "block = bytearray(b'1') * 400_000_000"
    notebook = new_notebook(cells=[new_code_cell(block, id="block"), new_code_cell(fork, id="fork")])
    done = execute(notebook, None)
    assert done.error is None and 400e6 < done.peak_bytes < 700e6


def test_a_lessons_kernel_has_the_waiting_settled_before_torch_is_loaded(synced, monkeypatch):
    for name in (*threads.CHOICES, threads.SWITCH):
        monkeypatch.delenv(name, raising=False)
    look = "import sys, torch\nprint(threads.in_force())"
    late = "from course_utils import threads; print('torch' in sys.modules)"
    notebook = nbformat.read(synced.notebooks("solutions", ["90"])[0], as_version=4)
    setup = next(cell for cell in notebook.cells if cell.id == "setup")
    cells = [setup, new_code_cell("import sys; " + late), new_code_cell(look)]
    done = execute(new_notebook(cells=cells), None)
    assert done.error is None
    before, force = (cell.outputs[0].text.strip() for cell in done.notebook.cells[1:])
    assert before == "False"
    assert all(f"{name}={value}" in force for name, value in threads.SETTINGS.items())


def test_a_failure_is_a_row_and_the_others_still_run(unsynced):
    write(unsynced, "80_fails.ipynb", "x = 1", "print(x)\nraise ValueError('no luck')")
    write(unsynced, "81_dies.ipynb", "import os; os._exit(3)")
    write(unsynced, "82_works.ipynb", "print('fine')")
    (unsynced.root / "solutions/83_broken.ipynb").write_text("{")
    command = COMMAND + [str(unsynced.root), "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cell 'cell-1': ValueError: no luck" in done.stdout
    assert "cell 'cell-0': DeadKernelError" in done.stdout
    assert "82_works: done" in done.stdout and "runs/solutions/82_works.ipynb" in done.stdout
    assert "83_broken: failed" in done.stdout
    executed = nbformat.read(unsynced.root / "runs/solutions/80_fails.ipynb", as_version=4)
    assert executed.cells[1].outputs[-1].ename == "ValueError"


def test_nothing_to_run_says_what_to_do(unsynced):
    with pytest.raises(ValueError, match="run `course sync` first"):
        run_lessons(unsynced)


CONNECT = """
import socket, urllib.request
def attempt(work):
    try:
        work()
    except OSError as error:
        return str(error)
    return "no error"
print(attempt(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)))
print(attempt(lambda: urllib.request.urlopen("http://example.org", timeout=1)))
print(attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))))
"""
LOOPBACK = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
print("child:", "offline" in done.stderr)
"""


def test_offline_closes_every_way_out_and_leaves_loopback(unsynced):
    write(unsynced, "80_connects.ipynb", CONNECT, LOOPBACK)
    (row,) = run_lessons(unsynced, offline=True)
    assert row.error == ""
    executed = nbformat.read(unsynced.root / row.path, as_version=4)
    lines = executed.cells[0].outputs[0].text.splitlines()
    assert len(lines) == 3 and all("offline: this run may not reach" in line for line in lines)
    assert executed.cells[1].outputs[0].text == "child: True\n"
    assert "PYTHONPATH" not in os.environ or "offline" not in os.environ["PYTHONPATH"]


def test_a_lesson_runs_with_its_sockets_closed(synced):
    (row,) = run_lessons(synced, offline=True)
    assert (row.passed, row.error) == (4, "")


def test_an_interrupt_leaves_no_half_written_notebook_and_no_kernel(unsynced):
    write(unsynced, "80_waits.ipynb", "open('started', 'w').close()\nimport time; time.sleep(600)")
    started = unsynced.root / "solutions/started"
    process = subprocess.Popen(
        COMMAND + [str(unsynced.root), "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and b"Traceback" not in said, said
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    files = [path for path in unsynced.root.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".tmp" or "runs" in path.parts] == []
