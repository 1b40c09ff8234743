"""`course bundle` and `course unbundle`: what is packed, the parts, and a set-up without a network."""

import ensurepip
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from authoring import bundle, unbundle, wheels
from authoring.project import Project
from course_utils.cache import cached_folder
from course_utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TARGET = wheels.Target("3.12", "manylinux_2_28_x86_64")

linux = pytest.mark.skipif(sys.platform != "linux", reason="bundles are for Linux")


# --------------------------------------------------------------------------- sizes and parts

@pytest.mark.parametrize("text, size", [("60MB", 60_000_000), ("64MiB", 67_108_864), ("5000", 5000),
                                        ("1.5 GB", 1_500_000_000), ("20kB", 20_000)])
def test_a_size_with_its_unit(text, size):
    assert bundle.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "60 apples", "-5MB", "10", "MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="--parts"):
        bundle.parse_size(text)


@pytest.fixture
def entries(tmp_path):
    """Three files of 10,000, 0 and 2,500 bytes and one that is only in memory; the second may be executed."""
    folder = tmp_path / "content"
    folder.mkdir()
    for name, data in (("a", bytes(range(250)) * 40), ("b", b""), ("c", b"xyz" * 833 + b"!")):
        (folder / name).write_bytes(data)
    (folder / "b").chmod(0o700)
    return [(f"wheels/deep/{name}", folder / name) for name in "abc"] + [("course/.commit", b"abc123\n")]


def write(entries, folder, size=4000):
    folder.mkdir()
    return bundle.write_parts(entries, folder, size)


def test_the_parts_are_one_tar_cut_at_the_given_size(entries, tmp_path):
    parts = write(entries, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [part["name"] for part in parts] == [file.name for file in files]
    assert [part["bytes"] for part in parts] == [file.stat().st_size for file in files]
    assert {part["bytes"] for part in parts[:-1]} == {4000} and 0 < parts[-1]["bytes"] <= 4000
    with tarfile.open(fileobj=io.BytesIO(b"".join(file.read_bytes() for file in files))) as archive:
        held = {member.name: archive.extractfile(member).read() for member in archive}
    assert held == {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in entries}


def test_the_same_content_gives_the_same_bytes(entries, tmp_path):
    first = write(entries, tmp_path / "one")
    for _, path in entries[:3]:
        os.utime(path, (1, 1))
    assert write(entries, tmp_path / "two") == first


def test_what_is_unpacked_is_what_was_packed(entries, tmp_path):
    parts = write(entries, tmp_path / "out")
    unbundle.unpack([tmp_path / "out" / part["name"] for part in parts], tmp_path / "in")
    found = {path.relative_to(tmp_path / "in").as_posix(): path
             for path in (tmp_path / "in").rglob("*") if path.is_file()}
    assert found.keys() == {name for name, _ in entries}
    assert found["wheels/deep/a"].read_bytes() == entries[0][1].read_bytes()
    assert [found[f"wheels/deep/{name}"].stat().st_mode & 0o777 for name in "ab"] == [0o644, 0o755]


def written_tar(path, name, **more):
    member = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(member, key, value)
    with tarfile.open(path, "w") as archive:
        archive.addfile(member, io.BytesIO(b"evil"[:member.size]))
    return path


@pytest.mark.parametrize("name", ["../evil", "wheels/../../evil", "wheels/../../../evil"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    part = written_tar(tmp_path / "part", name, size=4)
    with pytest.raises(unbundle.BundleError, match="outside"):
        unbundle.unpack([part], tmp_path / "deep" / "in")
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.glob("deep/*"))


def test_an_absolute_name_stays_in_the_folder(tmp_path):
    part = written_tar(tmp_path / "part", f"{tmp_path}/evil", size=4)
    unbundle.unpack([part], tmp_path / "in")
    assert not (tmp_path / "evil").exists()
    assert [path.name for path in (tmp_path / "in").rglob("*") if path.is_file()] == ["evil"]


def test_a_link_is_refused(tmp_path):
    part = written_tar(tmp_path / "part", "wheels/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(unbundle.BundleError, match="no file and no folder"):
        unbundle.unpack([part], tmp_path / "in")
    assert not (tmp_path / "in").exists()


# --------------------------------------------------------------------------- which packages

@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all that pip and uv can get.

    `lib` needs `small` below 2. `big` needs `only-big`. `old` is needed where Python is older than 3.12,
    `new` from 3.12 on: what counts is the target's Python, not the one that runs the tests.
    """
    folder = tmp_path / "index"
    folder.mkdir()
    for version in ("2.0", "2.1"):
        wheels.write_wheel(folder, "lib", version, ["Requires-Dist: small<2"],
                           {"lib.py": f"VERSION = {version}\n"})
    for version in ("1.0", "1.5", "2.0"):
        wheels.write_wheel(folder, "small", version, files={"small.py": f"VERSION = {version}\n"})
    wheels.write_wheel(folder, "big", "3.0", [
        "Requires-Dist: only-big", "Requires-Dist: old>=1; python_version < '3.12'",
        "Requires-Dist: new>=1; python_version >= '3.12'"])
    for name in ("only-big", "old", "new"):
        wheels.write_wheel(folder, name, "1.0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


WANTED = ["lib>=2", "big>=1"]
BIG = {"big": "3.0", "only-big": "1.0", "new": "1.0"}


def chosen(tmp_path, has, lock=None, without=(), wanted=WANTED, target=TARGET):
    workplace = tmp_path / "resolve"
    workplace.mkdir()
    return wheels.choose(wanted, target, lock or {}, has, without, workplace)


def test_all_is_packed_for_a_target_that_has_nothing(index, tmp_path):
    assert chosen(tmp_path, {}).packed == BIG | {"lib": "2.1", "small": "1.5"}


def test_markers_are_those_of_the_target(index, tmp_path):
    found = chosen(tmp_path, {}, target=wheels.Target("3.11", TARGET.platform)).packed
    assert "old" in found and "new" not in found


def test_the_lock_names_the_version_where_the_target_has_none(index, tmp_path):
    found = chosen(tmp_path, {}, lock={"small": "1.0", "lib": "2.0", "unused": "7"}).packed
    assert found == BIG | {"lib": "2.0", "small": "1.0"}


def test_a_named_package_is_not_packed_and_nothing_that_only_it_needs(index, tmp_path):
    assert chosen(tmp_path, {"big": None}).packed == {"lib": "2.1", "small": "1.5"}
    shutil.rmtree(tmp_path / "resolve")
    assert chosen(tmp_path, {"small": None}).packed == BIG | {"lib": "2.1"}


@pytest.mark.parametrize("has, packed, kept", [
    ({"lib": "2.0"}, {}, {"lib": "2.0"}),  # new enough: left out, and what it needs
    ({"lib": "1.9"}, {"lib": "2.1", "small": "1.0"}, {}),  # too old
    ({"small": "1.5"}, {"lib": "2.1"}, {"small": "1.5"}),  # good enough, though the lock names another
    ({"small": "1.2+vendor"}, {"lib": "2.1"}, {"small": "1.2+vendor"}),  # a build that no index has
    ({"small": "2.0"}, {"lib": "2.1", "small": "1.0"}, {}),  # too new for lib: the lock's is packed
    ({"lib": "1.9", "small": "1.0"}, {"lib": "2.1"}, {"small": "1.0"}),
    ({"elsewhere": "1.0"}, {"lib": "2.1", "small": "1.0"}, {}),  # nobody needs it
])
def test_a_version_of_the_target_is_kept_if_it_satisfies_all_that_need_it(index, tmp_path, has, packed, kept):
    found = chosen(tmp_path, has, lock={"small": "1.0"}, without=["big"])
    assert (found.packed, found.kept) == (packed, kept)


def test_what_cannot_be_had_is_said_in_one_line(index, tmp_path):
    with pytest.raises(CourseError, match="lib>=9") as error:
        chosen(tmp_path, {}, wanted=["lib>=9"])
    assert "\n" not in str(error.value)


def test_the_lines_of_pip_freeze():
    lines = ["# comment", "", "Torch_Thing==2.11.0+cu130", "bare", "local @ file:///src/local",
             "-e git+x#egg=y"]
    assert wheels.names_and_versions(lines) == {"torch-thing": "2.11.0+cu130", "bare": None, "local": None}
    with pytest.raises(ValueError, match="Package  Version"):
        wheels.names_and_versions(["Package  Version"])


def test_a_name_wins_over_the_file_and_pip_is_always_packed(tmp_path):
    file = tmp_path / "has.txt"
    file.write_text("torch==2.0\npip==26.3\nnumpy==2.5.2\n")
    asked = bundle.request("3.12", TARGET.platform, ["torch, transformers"], file, [], [], False)
    assert asked.has == {"torch": None, "numpy": "2.5.2", "transformers": None}


@pytest.mark.parametrize("python, platform", [("3", "manylinux_2_28_x86_64"), ("3.12", "win_amd64"),
                                              ("3.12", "manylinux2014_x86_64")])
def test_a_target_that_cannot_be_packed_for(python, platform):
    with pytest.raises(ValueError, match="--python" if python == "3" else "--platform"):
        wheels.Target(python, platform)


# --------------------------------------------------------------------------- a small course, set up

@pytest.fixture
def packed(index, tmp_path, monkeypatch):
    """A bundle of a small course for this machine: four packages, one cache folder, parts of 500 kB."""
    bundled = Path(ensurepip.__file__).parent / "_bundled"
    wheels_of_debian = sysconfig.get_config_var("WHEEL_PKG_DIR")
    (pip,) = Path(wheels_of_debian or bundled).glob("pip-*.whl")
    shutil.copy(pip, index)
    course = tmp_path / "checkout"
    course.mkdir()
    (course / "pyproject.toml").write_text(
        '[project]\nname = "llm-inference-course"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
        'dependencies = ["lib>=2", "filelock>=3"]\n[project.scripts]\ncourse = "tiny:main"\n')
    (course / "tiny.py").write_text(
        "import lib, small\n\ndef main():\n    print('lib', lib.VERSION, small.VERSION)\n")
    (course / "secret.txt").write_text("git does not know this file\n")
    subprocess.run(["git", "init", "-q", course], check=True)
    subprocess.run(["git", "-C", course, "add", "pyproject.toml", "tiny.py"], check=True)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    folder = cached_folder("poem", lambda new: (new / "poem.txt").write_text("roses\n"), version="3")
    asked = bundle.request(HERE, None, ["filelock"], None, [], [], False)
    monkeypatch.delenv("COURSE_CACHE")
    bundle.bundle(Project(course), asked, tmp_path / "parts", 500_000, cached=[folder])
    return tmp_path / "parts"


def sourced(folder, command):
    done = subprocess.run(["bash", "-c", f". {folder}/env.sh; {command}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux
def test_packed_and_set_up_on_top_of_this_python(packed, tmp_path):
    into = tmp_path / "course"
    assert unbundle.main([str(packed), "--into", str(into), "--target"]) == 0
    assert sourced(into, "course") == "lib 2.1 1.5"
    assert (into / "cache" / "poem" / "poem.txt").read_text() == "roses\n"
    assert sourced(into, "echo $COURSE_CACHE") == str(into / "cache")
    assert (into / "tiny.py").is_file() and not (into / "secret.txt").exists()
    assert not list(into.rglob("filelock")), "left to the target"
    version = "import importlib.metadata as m; print(m.requires('llm-inference-course'))"
    assert sourced(into, f'{sys.executable} -c "{version}"') == "['lib>=2', 'filelock>=3']"


@linux
def test_packing_twice_gives_the_same_manifest(packed, tmp_path, index):
    first = (packed / unbundle.MANIFEST).read_bytes()
    asked = bundle.request(HERE, None, ["filelock"], None, [], [], False)
    cached = [tmp_path / "cache" / "poem"]
    bundle.bundle(Project(tmp_path / "checkout"), asked, packed, 500_000, cached)
    assert (packed / unbundle.MANIFEST).read_bytes() == first
    assert unbundle.part_problems(packed, json.loads(first)) == []


@linux
def test_damaged_and_missing_parts_are_named_before_anything_is_changed(packed, tmp_path, capsys):
    names = sorted(path.name for path in packed.glob("course.tar.*"))
    size = (packed / names[2]).stat().st_size  # less where Python brings a smaller pip
    (packed / names[0]).unlink()
    data = bytearray((packed / names[1]).read_bytes())
    data[1234] ^= 1
    (packed / names[1]).write_bytes(data)
    (packed / names[2]).write_bytes(b"short")
    for option in (["--target"], [], ["--check"]):
        assert unbundle.main([str(packed), "--into", str(tmp_path / "course"), *option]) == 1
        assert capsys.readouterr().err.splitlines() == [
            f"error: {names[0]} is missing",
            f"error: {names[1]} is damaged: its SHA-256 is not the one in bundle.json",
            f"error: {names[2]} is damaged: it has 5 bytes instead of {size:,}",
            "error: copy these parts again; nothing was changed"]
        assert not (tmp_path / "course").exists()


@linux
def test_a_set_up_that_stopped_goes_on_where_it_stopped(packed, tmp_path, capsys):
    into, blocked = tmp_path / "course", tmp_path / "blocked"
    blocked.write_text("a file where the cache should be\n")
    command = [str(packed), "--into", str(into), "--target", "--cache", str(blocked)]
    assert unbundle.main(command) == 1
    assert str(blocked) in capsys.readouterr().err
    assert not (into / "env.sh").exists()
    blocked.unlink()
    for part in packed.glob("course.tar.*"):
        part.unlink()  # unpacked already: no longer needed
    assert unbundle.main(command) == 0
    assert sourced(into, "course") == "lib 2.1 1.5" and (blocked / "poem" / "poem.txt").is_file()
    (into / "tiny.py").write_text("def main():\n    print('my own work')\n")
    assert unbundle.main(command) == 0, "a third time there is nothing to do"
    assert sourced(into, "course") == "my own work"


@linux
def test_an_environment_that_is_half_built_is_built_again(packed, tmp_path):
    into = tmp_path / "course"
    command = [str(packed), "--into", str(into), "--target", "--cache", str(tmp_path / "new-cache")]
    assert unbundle.main(command) == 0
    state = into / ".unbundle" / "state.json"
    told = json.loads(state.read_text())
    state.write_text(json.dumps(told | {"done": []}))  # as if it had been stopped while it installed
    (into / "packages" / "lib.py").unlink()
    assert unbundle.main(command) == 0
    assert sourced(into, "course") == "lib 2.1 1.5"


@linux
def test_folders_with_something_else_are_left_alone(packed, tmp_path, capsys):
    into, packages = tmp_path / "course", tmp_path / "site"
    for folder in (into, packages):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine\n")
    assert unbundle.main([str(packed), "--into", str(into)]) == 1
    assert unbundle.main([str(packed), "--into", str(tmp_path / "new"), "--target", str(packages)]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if "is not empty" in line] == [
        f"error: {into} is not empty: name another folder with --into",
        f"error: {packages} is not empty: name another folder, or remove it"]
    assert [path.name for path in (*into.iterdir(), *packages.iterdir())] == ["mine.txt"] * 2
    with pytest.raises(ValueError, match="is not empty and holds no bundle"):
        bundle.bundle(Project(ROOT), bundle.request(None, None, [], None, [], [], False), into, 10**6, [])


@linux
def test_another_python_and_missing_packages_are_named(packed, tmp_path, capsys):
    manifest = json.loads((packed / unbundle.MANIFEST).read_text())
    manifest |= {"python": "3.99", "left": {"filelock": "3", "pytest": "999", "no-such-package": ""}}
    (packed / unbundle.MANIFEST).write_text(json.dumps(manifest))
    assert unbundle.main([str(packed), "--into", str(tmp_path / "course")]) == 1
    told = capsys.readouterr().err
    assert "the bundle is for Python 3.99" in told
    assert "no-such-package is not in the bundle and not in" in told
    assert f"{importlib.metadata.version('pytest')} in {sys.executable} is older than 999" in told
    assert "filelock" not in told and not (tmp_path / "course").exists()


def test_a_packed_course_names_the_commit_it_was_packed_from(tmp_path):
    from course_utils.measure.machine import commit_of

    (tmp_path / ".commit").write_text("abc1234+\n")
    assert commit_of(tmp_path) == "abc1234+"


def test_unbundle_needs_the_standard_library_only():
    """It runs where nothing is installed: -S and -I leave out every folder for packages."""
    command = [sys.executable, "-I", "-S", unbundle.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--target" in done.stdout


# --------------------------------------------------------------------------- the course itself, set up

LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:  # Jupyter talks to its kernels over it
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 1))
with open("/proc/net/dev") as table:
    interfaces = [line.split(":")[0].strip() for line in table if ":" in line]
assert interfaces == ["lo"], interfaces
os.execvp(sys.argv[1], sys.argv[1:])
"""


def without_network(command, **options):
    """Run a command in a network namespace that has no interface but the loopback."""
    outer = ["unshare", "--map-root-user", "--net", sys.executable, "-c", LOOPBACK]
    return subprocess.run([*outer, *map(str, command)], capture_output=True, text=True, **options)


def python_with_torch_only(folder):
    """A virtual environment with torch and what torch needs, all links to this environment's; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    names, linked = ["torch"], set()
    while names:
        name = names.pop()
        found = importlib.metadata.distribution(name)
        linked.add(canonicalize_name(name))
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
        for requirement in map(Requirement, found.requires or []):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and canonicalize_name(requirement.name) not in linked:
                names.append(requirement.name)
    return folder / "bin" / "python"


@linux
@pytest.mark.slow
def test_the_course_runs_from_a_bundle_without_a_network(tmp_path):
    try:
        allowed = without_network(["true"]).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine allows no network namespace: unshare --map-root-user --net")
    parts, into, home = tmp_path / "parts", tmp_path / "course", tmp_path / "home"
    asked = bundle.request(HERE, None, ["torch"], None, [], ["jupyterlab"], False)
    manifest = bundle.bundle(Project(ROOT), asked, parts, 60_000_000)
    assert "torch" in manifest["left"] and not {"torch", "jupyterlab"} & manifest["packages"].keys()
    python = python_with_torch_only(tmp_path / "bare")
    home.mkdir()
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "PASSIVE"}
    done = without_network([python, parts / "unbundle.py", "--into", into], env=bare)
    assert done.returncode == 0, done.stderr
    done = without_network(["bash", "-c", f". {into}/env.sh && cd {into} && course run serving"], env=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((into / "runs" / "solutions").glob("11_*.ipynb"))) == 1
