"""The profile of a page, as ONNX Runtime prints it to a browser's console, counted by operator."""

import pytest

from authoring.bench import phone_profile
from course_utils.errors import CourseError


def line(kind, name, start, spent, **args):
    inner = ",".join(f'"{key}" : "{value}"' for key, value in args.items())
    return (f'{{"cat" : "{kind}","pid" :42,"tid" :1,"dur" :{spent},"ts" :{start},"ph" : "X","name" :"{name}",'
            f'"args" : {{{inner}}}}},')


# The prompt (900 us), then two tokens of 100 us. A fence is no kernel.
PRINTED = "\n".join([
    "[", line("Session", "model_run", 0, 900), line("Node", "a_kernel_time", 10, 800, op_name="MatMul"),
    line("Session", "model_run", 1000, 100), line("Node", "a_kernel_time", 1010, 60, op_name="MatMul"),
    line("Node", "a_fence_before", 1005, 1, op_name="MatMul"),
    line("Session", "model_run", 2000, 100), line("Node", "a_kernel_time", 2010, 70, op_name="MatMul"),
    line("Node", "b_kernel_time", 2085, 10, op_name="Add").rstrip(","), "]", "a warning of the page"])


def test_only_tokens_count_and_all_of_their_time():
    rows = phone_profile.by_operator(phone_profile.events(PRINTED))
    assert [row["operator"] for row in rows] == ["MatMul", "Add", "all others, and between them"]
    assert [row["milliseconds a token"] for row in rows] == pytest.approx([0.065, 0.005, 0.03])
    assert [row["share"] for row in rows] == pytest.approx([0.65, 0.05, 0.3])


def test_a_console_without_a_profile_is_named():
    with pytest.raises(CourseError, match="no profile"):
        phone_profile.events("a warning of the page\n[\n]")
