"""The cache: built once, verified when read, rebuilt when damaged, safe to share and to interrupt."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from course_utils import cache
from course_utils.errors import CourseError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty cache directory that does not exist yet."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Builds two files and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "a.bin").write_bytes(bytes(range(256)) * 64)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("text", encoding="utf-8")


def forget():
    """What a new process knows: nothing has been verified yet."""
    cache._verified.clear()


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".building-" in path.name]


def test_environment_variable_names_the_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "x"))
    assert cache.cache_dir() == tmp_path / "x"
    monkeypatch.setenv("COURSE_CACHE", "~/somewhere")
    assert cache.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("COURSE_CACHE")
    assert cache.cache_dir().name == "llm-inference-course" and cache.cache_dir().is_absolute()


def test_builds_once(here):
    build = Builder()
    folder = cache.cached_folder("thing", build)
    assert (folder / "inner" / "b.txt").read_text() == "text"
    forget()
    assert cache.cached_folder("thing", build) == folder
    assert build.calls == 1 and leftovers(here) == []


def flip_a_bit(folder):
    content = bytearray((folder / "a.bin").read_bytes())
    content[777] ^= 4
    (folder / "a.bin").write_bytes(content)


def flip_a_bit_and_hide_the_time(folder):
    before = (folder / "a.bin").stat()
    flip_a_bit(folder)
    os.utime(folder / "a.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off_the_manifest(folder):
    text = (folder / cache.MANIFEST).read_text()
    (folder / cache.MANIFEST).write_text(text[:len(text) // 2])


DAMAGES = {
    "flipped bit": (flip_a_bit, "checksum of a.bin"),
    "flipped bit, old time": (flip_a_bit_and_hide_the_time, "checksum of a.bin"),
    "truncated": (lambda folder: os.truncate(folder / "a.bin", 9), "a.bin has 9 bytes instead of 16,384"),
    "missing file": (lambda folder: (folder / "inner" / "b.txt").unlink(), "inner/b.txt is missing"),
    "foreign file": (lambda folder: (folder / "c.txt").touch(), "c.txt is not in its manifest"),
    "no manifest": (lambda folder: (folder / cache.MANIFEST).unlink(), "no manifest"),
    "half a manifest": (cut_off_the_manifest, "manifest is damaged"),
    "a list as manifest": (lambda folder: (folder / cache.MANIFEST).write_text("[]"), "manifest is damaged"),
    "no text": (lambda folder: (folder / cache.MANIFEST).write_bytes(b"\xff\xfe"), "manifest is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_rebuilt_with_one_line(here, capsys, damage):
    build = Builder()
    folder = cache.cached_folder("thing", build)
    break_it, reason = DAMAGES[damage]
    break_it(folder)
    forget()
    capsys.readouterr()
    cache.cached_folder("thing", build)
    notice = capsys.readouterr().err
    assert reason in notice and notice.count("\n") == 1
    assert build.calls == 2
    assert (folder / "a.bin").read_bytes() == bytes(range(256)) * 64
    assert not (folder / "c.txt").exists()
    assert cache.problem(folder) is None and leftovers(here) == []


def test_damage_is_seen_by_a_process_that_has_verified_before(here):
    build = Builder()
    folder = cache.cached_folder("thing", build)
    cache.cached_folder("thing", build)  # verified
    flip_a_bit(folder)
    cache.cached_folder("thing", build)
    assert build.calls == 2


def test_unchanged_files_are_hashed_once_a_process(here, monkeypatch):
    build = Builder()
    cache.cached_folder("thing", build)
    forget()
    hashed = []
    monkeypatch.setattr(cache, "sha256", lambda path, real=cache.sha256: hashed.append(path) or real(path))
    cache.cached_folder("thing", build)
    assert len(hashed) == 2
    cache.cached_folder("thing", build)
    assert len(hashed) == 2


def test_other_version_is_rebuilt(here, capsys):
    build = Builder()
    cache.cached_folder("thing", build, version="1")
    cache.cached_folder("thing", build, version="2")
    assert build.calls == 2 and "version 1" in capsys.readouterr().err


def test_failed_build_leaves_nothing(here):
    def build(folder):
        (folder / "half").touch()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cache.cached_folder("thing", build)
    assert not (here / "thing").exists() and leftovers(here) == []


def test_failed_rebuild_keeps_refusing_the_damaged_folder(here):
    folder = cache.cached_folder("thing", Builder())
    flip_a_bit(folder)
    with pytest.raises(ZeroDivisionError):
        cache.cached_folder("thing", lambda folder: 1 / 0)
    assert cache.problem(folder) == "the checksum of a.bin is wrong"


def test_an_error_of_the_build_is_not_blamed_on_the_cache(here):
    def build(folder):
        raise OSError("the model file is odd")

    with pytest.raises(OSError, match="the model file is odd"):
        cache.cached_folder("thing", build)


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from course_utils import cache

    log = Path(sys.argv[1])

    def build(folder):
        (folder / "half").write_text("x" * 1000)
        with open(log, "a") as file:
            file.write("building\\n")
        time.sleep(float(sys.argv[2]))
        (folder / "whole").write_text("done")

    print((cache.cached_folder("thing", build) / "whole").read_text())
""")


def start(log, seconds):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(log), str(seconds)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_two_processes_at_once_build_once(here, tmp_path):
    log = tmp_path / "log"
    both = [start(log, 2), start(log, 2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and out == "done\n", err
    assert log.read_text() == "building\n"
    assert leftovers(here) == []


def test_killed_build_is_never_used_and_frees_the_lock(here, tmp_path):
    log = tmp_path / "log"
    victim = start(log, 60)
    wait_for(lambda: log.exists() and log.read_text())
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=10)
    assert not (here / "thing").exists() and len(leftovers(here)) == 1
    out, err = start(log, 0).communicate(timeout=30)
    assert out == "done\n", err
    assert leftovers(here) == []


def test_waiting_process_says_so(here, tmp_path):
    log = tmp_path / "log"
    first = start(log, 3)
    wait_for(log.exists)
    out, err = start(log, 0).communicate(timeout=30)
    assert out == "done\n" and "Waiting for another process" in err
    assert first.communicate(timeout=30)[0] == "done\n"


@pytest.fixture
def not_root():
    """Root may write anywhere: be nobody for the length of the test."""
    if not hasattr(os, "geteuid"):
        pytest.skip("file permissions of Unix")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only(monkeypatch):
    """A filled cache folder that may be read by all and written by none."""
    shared = Path(tempfile.mkdtemp(prefix="course-cache-test-"))  # pytest's own folders are closed to others
    monkeypatch.setenv("COURSE_CACHE", str(shared))
    folder = cache.cached_folder("thing", Builder())
    forget()
    shared.chmod(0o555)
    yield folder
    shared.chmod(0o755)
    shutil.rmtree(shared)


def test_read_only_cache_serves_what_it_has(read_only, not_root):
    build = Builder()
    assert cache.cached_folder("thing", build) == read_only
    assert build.calls == 0


def test_read_only_cache_names_folder_and_variable(read_only, not_root):
    with pytest.raises(CourseError, match=f"{read_only.parent}.*may not be.*COURSE_CACHE"):
        cache.cached_folder("another", Builder())


def test_cache_path_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path / path))
        with pytest.raises(CourseError, match="is a file.*COURSE_CACHE"):
            cache.cached_folder("thing", Builder())


def test_too_little_space_is_said_before_building(here):
    build = Builder()
    with pytest.raises(CourseError, match=r"needs 1,000,000,000,000 MB and .* free.*COURSE_CACHE"):
        cache.cached_folder("thing", build, megabytes=1e12)
    assert build.calls == 0


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/abs"])
def test_bad_names(here, name):
    with pytest.raises(ValueError, match="one path component"):
        cache.cached_folder(name, Builder())
