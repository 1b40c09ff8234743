"""The page's web server: headers, types, refusals; and the list of files."""

import hashlib
import http.client
import json
import shutil
import socket
import ssl
import struct
import subprocess
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


@pytest.fixture
def certificate(tmp_path_factory):
    """A certificate for this machine alone and its key, in one file each."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
                    "/CN=localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True,
                   capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_a_connection_that_says_nothing_keeps_nobody_out(page, certificate):
    running = serve.server(page, "127.0.0.1", 0, *certificate)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    silent = [socket.create_connection(running.server_address[:2]) for _ in range(3)]
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(*running.server_address[:2], timeout=20, context=trusting)
    try:
        connection.request("GET", "/engine.wasm")
        assert connection.getresponse().read() == b"\0asm"
    finally:
        for one in silent:
            one.close()
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize("request_, status", [
    (b"GET /../../etc/passwd HTTP/1.1", b" 404 "), (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", b" 404 "),
    (b"GET //etc/passwd HTTP/1.1", b" 404 "), (b"GET /\\..\\x HTTP/1.1", b" 404 "),
    (b"GET /a%00b HTTP/1.1", b" 404 "), (b"GET /" + b"a" * 5000 + b" HTTP/1.1", b" 404 "),
    (b"GET /" + b"a" * 70000 + b" HTTP/1.1", b" 414 "), (b"POST / HTTP/1.1", b" 501 "),
    (b"BREW / HTTP/1.1", b" 501 "), (b"GET / HTTP/9.9", b" 505 "), (b"\xff\xfe\0", b" 400 "),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * 70000, b" 431 "),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200, b" 431 ")],
    ids=range(13))
def test_odd_requests_are_refused_and_print_nothing(page, capfd, request_, status):
    running = serve.server(page)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    with socket.create_connection(running.server_address[:2], timeout=20) as connection:
        connection.sendall(request_ + b"\r\nConnection: close\r\n\r\n")
        answer = connection.recv(4096)
    with socket.create_connection(running.server_address[:2]) as gone:  # and one that breaks off
        gone.sendall(b"GET /engine.wasm HTTP/1.1\r\n\r\n")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    running.shutdown()
    running.server_close()
    assert status.strip() in answer
    assert b"root:" not in answer
    assert capfd.readouterr().err == ""


def test_a_silent_connection_is_closed_in_the_end(page, monkeypatch):
    assert serve.Handler.timeout
    monkeypatch.setattr(serve.Handler, "timeout", 0.2)
    running = serve.server(page)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    with socket.create_connection(running.server_address[:2], timeout=20) as connection:
        connection.sendall(b"GET /engine.w")
        assert connection.recv(100) == b""
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("host", ["no such host", "a" * 300, "256.1.1.1"])
def test_an_address_that_is_none_is_said(page, host):
    with pytest.raises(CourseError, match="cannot listen on .* Name another --host"):
        serve.server(page, host)


def test_a_key_without_its_certificate_is_refused(page, tmp_path):
    with pytest.raises(CourseError, match="--key needs --certificate"):
        serve.server(page, key=tmp_path / "key.pem")
