"""Surroundings that several tests put a command into."""

import os
import subprocess
import time
import urllib.error
import urllib.request

import pytest


def read_only(*folders):
    """The beginning of a command that sees these folders read-only; root, too, whom permissions do not stop.

    They are mounted so in a name space of the command's own. Skips the test where that may not be.
    """
    new = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    lines = [f'mount --bind "${n}" "${n}" && mount -o remount,bind,ro "${n}"'
             for n in range(1, len(folders) + 1)]
    script = " && ".join([*lines, f"shift {len(folders)}", 'exec "$@"'])
    command = [*new, "sh", "-c", script, "sh", *map(str, folders)]
    try:
        possible = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("no folder can be mounted read-only here")
    return command


def small_disk(folder, megabytes):
    """The same with an empty disk of this size at `folder`."""
    new = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    script = f'mount -t tmpfs -o size={megabytes}m none "$1" && shift && exec "$@"'
    command = [*new, "sh", "-c", script, "sh", str(folder)]
    try:
        possible = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("no disk can be mounted here")
    return command


def wait_until_served(address, server, log):
    """Wait for a Jupyter server that was just started; AssertionError with its log when none answers."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(f"no answer from {address} in a minute: {log.read_text()}")
