"""How threads wait: what a fresh process has before PyTorch is loaded, and who may change it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from course_utils import engines, threads
from course_utils.engines.environment import Engine

# LLVM's library, and no other that PyTorch may use on Linux, has this function.
LOADED = "import ctypes\nllvm = hasattr(ctypes.CDLL(None), 'kmp_get_blocktime')\n"
TELL = f"import json, os, sys\n{LOADED}print(json.dumps([dict(os.environ), llvm, 'torch' in sys.modules]))"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch brings another library")


def fresh(code, **variables):
    """[environment, is LLVM's library there, is PyTorch loaded] in a fresh process that has run the code."""
    kept = {name: value for name, value in os.environ.items()
            if name not in (*threads.CHOICES, threads.SWITCH, "LD_PRELOAD")}
    done = subprocess.run([sys.executable, "-c", f"{code}\n{TELL}"], capture_output=True, text=True,
                          env=kept | variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_course_settles_it_before_torch_is_loaded():
    environment, llvm, torch = fresh("import course_utils")
    assert not torch
    assert {name: environment.get(name) for name in threads.SETTINGS} == threads.SETTINGS
    assert llvm == (threads.llvm() is not None)


@on_linux
def test_the_library_is_there_where_torch_would_take_gnus():
    """So in every environment that `make setup` makes on Linux."""
    _, llvm, _ = fresh("import course_utils")
    bundled = fresh("import torch, glob\n"
                    "assert glob.glob(torch.__path__[0] + '/lib/libgomp*'), 'a build with another library'")
    assert bundled and llvm


@pytest.mark.parametrize("variable", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"},
                                      {"KMP_BLOCKTIME": "200"}, {threads.SWITCH: threads.OFF}])
def test_the_users_own_setting_wins(variable):
    environment, llvm, _ = fresh("import course_utils", **variable)
    names = (*threads.CHOICES, threads.SWITCH)
    assert {name: environment[name] for name in names if name in environment} == variable
    assert not llvm


def test_a_child_process_does_not_take_ours_for_the_users():
    ours, inherited = fresh("import course_utils"), fresh("import course_utils", **threads.SETTINGS)
    assert inherited[1:] == ours[1:]
    assert all(inherited[0][name] == ours[0][name] for name in threads.SETTINGS)


def test_too_late_it_changes_nothing():
    environment, llvm, _ = fresh("import torch\nimport course_utils")
    assert not set(threads.SETTINGS) & set(environment) and not llvm


@on_linux
def test_results_are_the_same_to_the_bit():
    """Against GNU's library: products, sums, a factorization and a backward pass."""
    code = textwrap.dedent("""
        import course_utils, hashlib, os, torch
        torch.manual_seed(0)
        x = torch.randn(700, 300, requires_grad=True)
        y = torch.nn.functional.layer_norm((x @ x.T).softmax(-1) @ x, (300,)).exp().sum(0)
        y.mean().backward()
        found = [y, x.grad, torch.linalg.cholesky(x.detach().T @ x.detach()), x.detach().std(0)]
        digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in found)).hexdigest()
        os.environ["DIGEST"] = digest
    """)
    ours, gnus = fresh(code), fresh(code, **{threads.SWITCH: threads.OFF})
    assert ours[0]["DIGEST"] == gnus[0]["DIGEST"] and ours[1] != gnus[1]


def test_an_engines_worker_waits_as_we_do(tmp_path):
    """The worker imports nothing of the course, and may have a Python of its own."""
    worker = tmp_path / "worker.py"
    worker.write_text(f"import json\n{LOADED}print(json.dumps({{'llvm': llvm}}))")
    answer = engines.run(Engine("fake", "a test", None, worker), {})
    assert answer.values == {"llvm": bool(threads.variables())}


def test_a_worker_keeps_what_the_user_preloads(monkeypatch, tmp_path):
    if not threads.variables():
        pytest.skip("nothing is preloaded here")
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "mine.so"))
    assert threads.variables()["LD_PRELOAD"].split() == [str(tmp_path / "mine.so"), str(threads.llvm())]


def test_what_a_record_says_of_it():
    code = "import os, torch\nfrom course_utils import threads\nos.environ['SAID'] = threads.in_force()"
    code = "import course_utils\n" + code
    on, off = fresh(code), fresh(code, **{threads.SWITCH: threads.OFF})
    for name, value in threads.SETTINGS.items():
        assert f"{name}={value}" in on[0]["SAID"] and name not in off[0]["SAID"]
    assert ("LLVM" in on[0]["SAID"]) == on[1] and "LLVM" not in off[0]["SAID"]


def test_the_tools_settle_it_too():
    environment, _, torch = fresh("import authoring")
    assert not torch
    assert {name: environment.get(name) for name in threads.SETTINGS} == threads.SETTINGS
