"""How threads wait: what a fresh process has before PyTorch is loaded, and who may change it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from course_utils import engines, threads
from course_utils.engines.entry import Engine

TELL = "import json, os, sys\nprint(json.dumps([dict(os.environ), 'torch' in sys.modules]))"


def fresh(code, **variables):
    """[environment, is PyTorch loaded] in a fresh process that has run the code."""
    kept = {name: value for name, value in os.environ.items()
            if name not in (*threads.CHOICES, threads.SWITCH)}
    done = subprocess.run([sys.executable, "-c", f"{code}\n{TELL}"], capture_output=True, text=True,
                          env=kept | variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("package", ["course_utils", "authoring"])
def test_importing_the_course_or_its_tools_settles_it_before_torch_is_loaded(package):
    environment, torch = fresh(f"import {package}")
    assert not torch
    assert {name: environment.get(name) for name in threads.SETTINGS} == threads.SETTINGS


@pytest.mark.parametrize("variable", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"},
                                      {threads.SWITCH: threads.OFF}])
def test_the_users_own_setting_wins(variable):
    environment, _ = fresh("import course_utils", **variable)
    names = (*threads.CHOICES, threads.SWITCH)
    assert {name: environment[name] for name in names if name in environment} == variable


def test_a_child_process_does_not_take_ours_for_the_users():
    inherited, _ = fresh("import course_utils", **threads.SETTINGS)
    assert all(inherited[name] == value for name, value in threads.SETTINGS.items())


def test_too_late_it_changes_nothing():
    environment, _ = fresh("import torch\nimport course_utils")
    assert not set(threads.SETTINGS) & set(environment)


def test_results_are_the_same_to_the_bit():
    """Products, sums, a factorization and a backward pass, against PyTorch as it comes."""
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
    ours, plain = fresh(code), fresh(code, **{threads.SWITCH: threads.OFF})
    assert ours[0]["DIGEST"] == plain[0]["DIGEST"]


def test_an_engines_worker_waits_as_we_do(tmp_path, monkeypatch):
    """The worker imports nothing of the course, and may have a Python of its own."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/worker.py").write_text(
        "import json, os\nprint(json.dumps({'spins': os.environ.get('GOMP_SPINCOUNT')}))")
    answer = engines.run(Engine(tmp_path / "fake", "a test", modules=("json",)), {})
    assert answer.values == {"spins": "77"}


def test_what_a_record_says_of_it():
    code = "import os\nfrom course_utils import threads\nos.environ['SAID'] = threads.in_force()"
    on, off = fresh(code), fresh(code, **{threads.SWITCH: threads.OFF})
    assert on[0]["SAID"] == ", ".join(f"{name}={value}" for name, value in threads.SETTINGS.items())
    assert off[0]["SAID"] == "as it comes"
