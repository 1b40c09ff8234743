"""A small web server for the page."""

import contextlib
import http.server
import ipaddress
import ssl
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO

from course_utils.errors import CourseError

TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm",
         ".webmanifest": "application/manifest+json", ".gguf": "application/octet-stream",
         ".onnx": "application/octet-stream", ".data": "application/octet-stream"}
HEADERS = {
    # Threads of WebAssembly share memory; browsers allow that only to a page that nobody else is part of.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing may come from elsewhere. WebAssembly is compiled here, and wllama's worker is a blob.
    "Content-Security-Policy": "default-src 'self' blob: data: 'wasm-unsafe-eval' 'unsafe-inline'",
    "Cache-Control": "no-cache",
}


SILENT = 60  # seconds without a byte after which a connection is closed


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; what a browser does wrong ends its own connection and prints nothing."""

    def handle_error(self, *_: object) -> None:
        """Say one line of an error of ours, nothing of a connection that broke."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with the headers."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES
    protocol_version = "HTTP/1.1"
    timeout = SILENT

    def end_headers(self) -> None:
        """Add the headers to each answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
        """Send a file, unless the browser has left."""
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def send_head(self) -> BinaryIO | None:
        """Find the file; a path that no file can have is not found."""
        try:
            return super().send_head()
        except ValueError:  # a null byte
            self.send_error(404)
            return None

    def list_directory(self, path: str) -> None:
        """Show no list of files."""
        self.send_error(404)


def server(
    folder: Path, host: str = "127.0.0.1", port: int = 0, certificate: Path | None = None,
    key: Path | None = None,
) -> http.server.ThreadingHTTPServer:
    """A server of a built page, not yet running.

    Args:
        folder: from `build.build`.
        host: address to listen on.
        port: 0 takes a free one.
        certificate: PEM file; the page is then served by HTTPS.
        key: PEM file of its key.

    Returns:
        The server; `serve_forever` runs it.

    Raises:
        CourseError: there is no page, or the address or the certificate cannot be used.
    """
    if key and not certificate:
        raise CourseError("--key needs --certificate: name both, or none for plain HTTP")
    if not (folder / "files.json").exists():
        raise CourseError(f"there is no page in {folder}: run `course phone build`")
    try:
        found = Server((host, port), partial(Handler, directory=str(folder)))
    except (OSError, UnicodeError) as error:  # an address is in use, or is none
        why = getattr(error, "strerror", None) or error
        raise CourseError(f"cannot listen on {host}, port {port}: {why}. "
                          "Name another --host or --port") from None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            found.server_close()
            raise CourseError(f"{certificate} and its key cannot be used: {error}") from None
        # Hands are shaken in each connection's thread: one that says nothing would keep out all others.
        found.socket = context.wrap_socket(found.socket, server_side=True, do_handshake_on_connect=False)
    return found


def address(running: http.server.ThreadingHTTPServer) -> str:
    """The address to open.

    Args:
        running: from `server`.

    Returns:
        Such as "http://127.0.0.1:8013/".
    """
    host, port = running.server_address[:2]
    scheme = "https" if isinstance(running.socket, ssl.SSLSocket) else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def warning(url: str) -> str:
    """What a browser will not do with this address.

    Args:
        url: from `address`.

    Returns:
        A sentence or two; "" when nothing stands in the way.
    """
    scheme, _, rest = url.partition("://")
    host = rest.rstrip("/").rsplit(":", 1)[0].strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if scheme == "https" or local:
        return ""
    return ("Browsers trust HTTPS and this machine's own address only: by plain HTTP a phone computes with "
            "one thread, and the page cannot be kept for use offline. --certificate and --key give it HTTPS.")


def qr_code(url: str) -> str:
    """The address as a QR code, for a terminal.

    Args:
        url: from `address`.

    Returns:
        Lines of block characters.

    Raises:
        CourseError: the package segno is not installed.
    """
    import io

    try:
        import segno
    except ImportError:
        raise CourseError("the QR code needs the package segno: pip install segno") from None
    out = io.StringIO()
    segno.make(url).terminal(out, compact=True)
    return out.getvalue()
