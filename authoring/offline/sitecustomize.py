"""Put this folder on PYTHONPATH and Python refuses to leave the machine: `course run --offline` does.

Loopback stays open, because a kernel talks to its client through it.
"""

import socket
import sys

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")


def _refuse(event: str, args: tuple) -> None:
    """Raise when Python is about to look up or to reach another machine: a hook of `sys.addaudithook`."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # a path is a local socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not str(host).startswith(LOOPBACK) and host != _HOSTNAME:
        raise ConnectionRefusedError(f"offline: this run may not reach {host!r}")


_HOSTNAME = socket.gethostname()
sys.addaudithook(_refuse)
