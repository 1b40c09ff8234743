"""What a process that runs foreign code may do: limits, and where the system allows it, namespaces."""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

# Numbers of Linux: <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>.
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # fmt: skip
RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, NODIRATIME = 1, 2, 4, 8, 1024, 2048
REMOUNT, BIND, REC, PRIVATE, DETACH = 32, 4096, 16384, 1 << 18, 2
PARENT_DEATH, SUBREAPER, NO_NEW_PRIVS, CAPBSET_DROP = 1, 36, 38, 24
# Of a machine: what <linux/audit.h> calls it, and in <asm/unistd.h> seccomp, add_key, request_key, keyctl.
CALLS = {"x86_64": (0xC000003E, 317, (248, 249, 250)), "aarch64": (0xC00000B7, 277, (217, 218, 219))}


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent ends, so that none gets away."""
    if sys.platform == "linux":
        _libc().prctl(SUBREAPER, 1, 0, 0, 0)


def end_all(child: int) -> None:
    """Kill every process that descends from this one, until none is left.

    Args:
        child: the process that was started; its group goes too.
    """
    if child:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    for _ in range(200):
        for pid in descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def descendants(above: int = 0) -> list[int]:
    """Processes below another one, from /proc; [] where there is none.

    Args:
        above: number of that process; 0 is this one.

    Returns:
        Their numbers.
    """
    parents = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat") as file:
                        parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found, waiting = [], [above or os.getpid()]
    while waiting:
        parent = waiting.pop()
        below = [pid for pid, whose in parents.items() if whose == parent]
        found += below
        waiting += below
    return found


def memory(pids: list[int]) -> int:
    """Memory of processes that no file backs. What some of them share counts once.

    Args:
        pids: their numbers.

    Returns:
        Bytes; 0 where the system does not tell.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
            total += sum(int(lines[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem") if name in lines)
    return 1024 * total


def begin(bounds: dict[str, Any], tree: str, handle: int, work: Callable[[], None]) -> None:
    """Bind this process, then work. Does not return.

    Args:
        bounds: "namespaces", "seconds", "memory", "processes", "file" (bytes), "readable" and "hidden"
            (folders).
        tree: folder that must be readable.
        handle: the one file descriptor that stays open, besides /dev/null.
        work: what is done.
    """
    os.setsid()
    os.nice(5)  # the judge, who may have to end it, comes first
    null = os.open(os.devnull, os.O_RDWR)
    for n in range(3):
        os.dup2(null, n)
    os.closerange(3, handle)
    os.closerange(handle + 1, 4096)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME="/tmp", OMP_NUM_THREADS="1", LANG="C.UTF-8",
                      HF_HUB_OFFLINE="1", MPLBACKEND="agg")
    size = _size()
    _end_with_parent()
    if bounds["namespaces"]:
        enclose(bounds["readable"] + [tree], bounds["hidden"])
        _wait_for(os.fork())
        _end_with_parent()  # the first process of the new namespace: with it all others end
        own_processes()
        _wait_for(os.fork())
        _drop()
    forbid_keys()
    limit(bounds, size)
    os.chdir("/tmp")
    work()
    os._exit(0)


def _wait_for(child: int) -> None:
    """In the parent of a fork: wait until that child ends, and end. In the child: nothing."""
    if child:
        while os.wait()[0] != child:
            pass
        os._exit(0)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        _libc().prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def own_processes() -> None:
    """In the first process of a new namespace: see no processes but those of it, and allow no further one."""
    if _libc().mount(b"proc", b"/proc", b"proc", NOSUID | NODEV, None):
        _ok(_libc().umount2(b"/proc", DETACH))  # a container that forbids it: then none at all
    with contextlib.suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")


def _size() -> int:
    """Bytes of address space that this process has."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def limit(bounds: dict[str, Any], size: int) -> None:
    """Set the limits of the system for this process and all below it.

    Args:
        bounds: as of `begin`.
        size: bytes of address space that it has already.
    """
    threads = 0
    if not bounds["namespaces"]:  # the number is counted for all of the account's processes
        with contextlib.suppress(OSError):
            threads = sum(os.stat(f"/proc/{name}").st_uid == os.getuid()
                          for name in os.listdir("/proc") if name.isdigit()) * 4
    for name, value in (("RLIMIT_CPU", int(bounds["seconds"]) + 1), ("RLIMIT_AS", size + bounds["memory"]),
                        ("RLIMIT_NPROC", threads + bounds["processes"]), ("RLIMIT_FSIZE", bounds["file"]),
                        ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", 256)):
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (value, value))


def enclose(readable: list[str], hidden: list[str]) -> None:
    """Enter new namespaces: nothing but some folders to read, an empty /tmp, no network.

    Args:
        readable: folders.
        hidden: folders in them that are to look empty.

    Raises:
        OSError: the system does not allow it.
    """
    libc = _libc()
    user, group = os.getuid(), os.getgid()
    _ok(libc.unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"),
                       ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _ok(libc.mount(None, b"/", None, REC | PRIVATE, None))
    root = b"/tmp"
    keep = {path: os.open(path, os.O_PATH) for path in _outermost(readable)}
    proc = os.open("/proc", os.O_PATH)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in ("null", "zero", "urandom")}
    _ok(libc.mount(b"tmpfs", root, b"tmpfs", NOSUID | NODEV, b"size=64m,mode=755"))
    for path, handle in keep.items():
        target = root + path.encode()
        os.makedirs(target, exist_ok=True)
        source = f"/proc/self/fd/{handle}".encode()
        _ok(libc.mount(source, target, None, BIND | REC, None))
        _ok(libc.mount(None, target, None, REMOUNT | BIND | RDONLY | _flags(target), None))
    for path in {os.path.realpath(path) for path in hidden}:
        if os.path.isdir(root + path.encode()):
            _ok(libc.mount(b"tmpfs", root + path.encode(), b"tmpfs", RDONLY, b"size=4k"))
    os.makedirs(root + b"/dev")
    for name, handle in devices.items():
        target = root + b"/dev/" + name.encode()
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _ok(libc.mount(f"/proc/self/fd/{handle}".encode(), target, None, BIND, None))
    for name in (b"/tmp", b"/proc", b"/old"):
        os.makedirs(root + name, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), root + b"/" + name.encode())
    for handle in (*keep.values(), *devices.values(), proc):
        os.close(handle)
    os.chdir(root)
    _ok(libc.pivot_root(b".", b"old"))
    os.chdir("/")
    _ok(libc.mount(b"/old/proc", b"/proc", None, BIND | REC, None))
    _ok(libc.umount2(b"/old", DETACH))
    os.rmdir("/old")


def _drop() -> None:
    """Give up every privilege inside the new namespaces."""
    libc = _libc()
    for number in range(64):
        libc.prctl(CAPBSET_DROP, number, 0, 0, 0)
    _ok(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _ok(libc.capset(header, (ctypes.c_uint32 * 6)()))


def forbid_keys() -> None:
    """Shut this process, and all below it, out of the kernel's keys, where Linux lets an account do so.

    The keys of a login are those of its account in every namespace: one answer could leave there what the
    next one must not have, and read or clear the instructor's own.
    """
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return
    machine, seccomp, calls = CALLS[platform.machine()]
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06  # instructions of <linux/bpf_common.h>
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    tests = [(at_least, 0x40000000), *((equal, call) for call in calls)]  # others count from there on
    last = len(tests) + 4  # the step that refuses
    steps = [(load, 0, 0, 4), (equal, 0, last - 2, machine), (load, 0, 0, 0)]
    steps += [(what, last - n - 1, 0, number) for n, (what, number) in enumerate(tests, start=3)]
    steps += [(leave, 0, 0, allow), (leave, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    libc = _libc()
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall(seccomp, 1, 4, program)  # a filter, which makes nothing else slower; refused: all as before


def _outermost(folders: list[str]) -> list[str]:
    found = []
    for folder in sorted({os.path.realpath(path) for path in folders if os.path.isdir(path)}):
        if not any(f"{folder}/".startswith(f"{other}/") for other in found):
            found.append(folder)
    return found


def _flags(path: bytes) -> int:
    """Flags that a mount has and must keep; what os.ST_... calls them has the same bits."""
    return os.statvfs(path).f_flag & (NOSUID | NODEV | NOEXEC | NOATIME | NODIRATIME)


def _ok(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def probe() -> str:
    """Whether `enclose` works here, tried in a process of its own.

    Returns:
        "" if it does, else why not.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        text = b""
        try:
            enclose([sys.base_prefix], [])
            child = os.fork()
            if child:
                text = b"" if os.waitpid(child, 0)[1] == 0 else b"no /proc of its own"
            else:
                own_processes()
                os._exit(0)
        except BaseException as error:
            text = str(error).encode() or b"not allowed"
        os.write(writing, text or b"ok")
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return "" if said == "ok" else said or "not allowed"
