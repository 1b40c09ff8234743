"""The page's web server: headers, types, refusals; and the list of files."""

import hashlib
import http.client
import json
import threading

import numpy as np
import pytest

from authoring.phone import build, serve
from course_utils.errors import CourseError


@pytest.fixture
def page(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "engine.wasm").write_bytes(b"\0asm")
    (tmp_path / "model" / "model.onnx.data").write_bytes(bytes(1000))
    (tmp_path / "files.json").write_text(json.dumps(build.listing(tmp_path)))
    return tmp_path


def get(server, path):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    server.shutdown()
    server.server_close()
    return answer, content


def test_headers_allow_threads_and_nothing_from_elsewhere(page):
    answer, content = get(serve.server(page), "/engine.wasm")
    assert answer.status == 200 and content == b"\0asm"
    assert answer.headers["Content-Type"] == "application/wasm"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_folders_are_not_listed(page):
    assert get(serve.server(page), "/model/")[0].status == 404


def test_the_list_names_every_file(page):
    listed = json.loads((page / "files.json").read_text())
    content = (page / "model" / "model.onnx.data").read_bytes()
    assert listed["files"]["model/model.onnx.data"] == {
        "bytes": 1000, "sha256": hashlib.sha256(content).hexdigest()}
    (page / "engine.wasm").write_bytes(b"other")
    (page / "files.json").unlink()
    assert build.listing(page)["version"] != listed["version"]


def test_refusals_say_what_to_do(tmp_path, page):
    with pytest.raises(CourseError, match="course phone build"):
        serve.server(tmp_path / "nothing")
    busy = serve.server(page)
    with pytest.raises(CourseError, match="cannot listen"):
        serve.server(page, port=busy.server_address[1])
    busy.server_close()
    (tmp_path / "mine").mkdir()
    with pytest.raises(CourseError, match="no built page"):
        build.build(tmp_path / "mine")


@pytest.mark.parametrize(("url", "warned"), [
    ("http://127.0.0.1:8013/", False), ("https://192.168.1.7:8013/", False), ("http://localhost:1/", False),
    ("http://192.168.1.7:8013/", True), ("http://[::1]:8013/", False), ("http://0.0.0.0:8013/", True)])
def test_plain_http_to_a_phone_is_warned_of(url, warned):
    assert bool(serve.warning(url)) == warned


def test_the_qr_code_of_the_terminal_is_read():
    """By a reader of QR codes: the half blocks of the terminal, as a picture."""
    reader = pytest.importorskip("zxingcpp")
    pytest.importorskip("segno")
    url = "https://192.168.1.7:8013/"
    lines = serve.qr_code(url).splitlines()
    pixels = np.array([[block in bright for block in line] for line in lines for bright in ("█▀", "█▄")])
    picture = np.kron(pixels, np.ones((8, 8))).astype(np.uint8) * 255
    assert [code.text for code in reader.read_barcodes(picture)] == [url]
