"""`course similar`: copies stand first, and a stub is like no one's."""

import dataclasses

import nbformat
import pytest

from authoring.grading.submissions import Submission
from authoring.grading.trees import Task

pytest.importorskip("copydetect")

STUB = '''def order(values, times=1):
    """Sort values and halve each of them, several times."""
    # About 5 lines.
    raise NotImplementedError'''
TASK = Task("ex-order", "sample.order", "order", 2, "sample_library:order", STUB)
HEAD = STUB.rpartition("    # About")[0]
LOOP = f"""{HEAD}    found = []
    for value in sorted(values):
        for _ in range(times):
            value = value / 2
        found.append(value)
    return found"""
RENAMED = f"""{HEAD}    # my own idea
    result = []
    for item in sorted(values):
        for turn in range(times):
            item = item / 2
        result.append(item)
    return result"""
SHORT = f"{HEAD}    factor = 0.5 ** times\n    return [value * factor for value in sorted(values)]"
OTHER = f"{HEAD}    import heapq\n    heap = list(values)\n    heapq.heapify(heap)\n" \
        "    return [heapq.heappop(heap) * 2 ** -times for _ in list(heap)]"


def handed_in(student, source):
    cell = nbformat.v4.new_code_cell(source, id="ex-order")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    return Submission(f"{student}.ipynb", nbformat.writes(notebook), student=student)


def pairs(**sources):
    from authoring.grading.similar import similar

    return similar([handed_in(student, source) for student, source in sources.items()], [TASK])


def test_a_copy_is_listed_whatever_its_names_and_comments():
    found = pairs(ann=LOOP, bob=RENAMED, carol=SHORT, dan=OTHER, eve=STUB, fay=STUB)
    assert [pair.students for pair in found] == [("ann", "bob")]
    assert found[0].answers["ex-order"].share == 1 and not found[0].answers["ex-order"].same_text


def test_what_many_wrote_stands_behind_what_two_wrote():
    found = pairs(ann=SHORT, bob=SHORT, carol=SHORT, dan=LOOP, eve=LOOP)
    assert found[0].students == ("dan", "eve") and found[0].answers["ex-order"].others == 0
    assert {pair.answers["ex-order"].others for pair in found[1:]} == {1}
    assert all(pair.answers["ex-order"].same_text for pair in found)


def test_two_of_one_name_are_two():
    same = [dataclasses.replace(handed_in("ann", LOOP), id=id) for id in "12"] + [handed_in("bob", LOOP)]
    from authoring.grading.similar import similar

    assert [pair.students for pair in similar(same, [TASK])] == [
        ("ann (1)", "ann (2)"), ("ann (1)", "bob"), ("ann (2)", "bob")]


def test_a_source_that_is_hard_to_split_holds_no_one_up():
    odd = ["(" * 10_000, "\n\t" * 20_000, '"' * 10_000, "\0", "#"]
    found = pairs(ann=LOOP, bob=RENAMED, **{f"x{n}": f"{LOOP}\n{text}" for n, text in enumerate(odd)})
    assert ("ann", "bob") in [pair.students for pair in found]


def test_numbers_to_predict_and_what_is_no_notebook_are_left_out():
    from authoring.grading.similar import similar

    guess = dataclasses.replace(TASK, name="prediction")
    same = [handed_in("ann", LOOP), handed_in("bob", LOOP)]
    assert similar(same, [guess]) == []
    assert len(similar([*same, Submission("x.ipynb", "no notebook", student="x")], [TASK])) == 1
