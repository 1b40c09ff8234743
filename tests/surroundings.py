"""Surroundings that several tests put a command into."""

import os
import subprocess

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
