import errno
from unittest.mock import Mock

import pytest

from course_utils import records
from course_utils.errors import CourseError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path / "recorded")
    return records.FOLDER


def test_what_never_ran_is_none():
    assert records.load("nothing") is None


def test_a_record_comes_back_with_its_provenance(folder):
    records.save("trial", [{"bits": 4, "perplexity": 31.5}], driver="580.1")
    record = records.load("trial")
    assert record["results"] == [{"bits": 4, "perplexity": 31.5}]
    assert record["provenance"]["driver"] == "580.1"
    line = records.provenance_line(record)
    assert record["provenance"]["torch"] in line and record["provenance"]["date"] in line
    assert [p.name for p in folder.iterdir()] == ["trial.json"]


@pytest.mark.parametrize("threads, said", [(1, "4 cores, 1 thread, torch"), (2, "4 cores, 2 threads, torch"),
                                           (4, "4 cores, torch")])
def test_threads_are_said_where_not_every_core_computed(threads, said):
    records.save("trial", [], cores=4, threads=threads, gpu="")
    assert said in records.provenance_line(records.load("trial"))


def test_what_json_cannot_hold_leaves_the_old_record(folder):
    records.save("trial", [1])
    with pytest.raises(TypeError):
        records.save("trial", [object()])
    assert records.load("trial")["results"] == [1]


def test_gpu_table_says_when_there_is_no_record_and_shows_errors(capsys):
    assert "No recorded run yet" in records.gpu_table("gpu_13b", ["a"])
    rows = [{"format": "BF16", "ms": 12.3456, "left out": 1}, {"format": "FP32", "error": "out of memory"}]
    records.save("gpu_13b", {"rows": rows})
    table = records.gpu_table("gpu_13b", ["format", "ms"])
    assert table.to_dict("records") == [{"format": "BF16", "ms": 12.3, "error": ""},
                                        {"format": "FP32", "ms": "", "error": "out of memory"}]
    assert "recorded" in capsys.readouterr().out


@pytest.mark.parametrize("content, reason", [
    (b"", "Expecting value"), (b'{"provenance": {', "Expecting property"), (b"\xff\xfe\0", "codec can't"),
    (b"[1]", "a list"), (b"[" * 100_000, "recursion"), (b'{"results": 1}', "no provenance")], ids=range(6))
def test_a_damaged_record_is_named_with_what_to_do(folder, content, reason):
    folder.mkdir()
    (folder / "trial.json").write_bytes(content)
    with pytest.raises(CourseError, match=rf"trial\.json is damaged \(.*{reason}.*git checkout") as error:
        records.load("trial")
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_leaves_the_old_record_alone(folder, monkeypatch):
    records.save("trial", [1])
    monkeypatch.setattr(records.os, "replace", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        records.save("trial", [2])
    assert [path.name for path in folder.iterdir()] == ["trial.json"]
    assert records.load("trial")["results"] == [1]
