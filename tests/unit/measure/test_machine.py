"""The machine card names the machine, the versions and the commit."""

import subprocess

import torch

from course_utils import measure


def test_machine_card_names_machine_and_versions():
    import psutil
    import transformers

    card = measure.machine_card()
    assert card.cpu and card.cores >= 1
    assert card.memory == psutil.virtual_memory().total
    assert (card.torch, card.transformers) == (torch.__version__, transformers.__version__)
    assert card.threads == torch.get_num_threads()
    text = str(card)
    for part in (card.cpu, card.torch, "GB", card.date):
        assert part in text


def test_machine_card_names_the_commit_of_a_checkout(tmp_path):
    from course_utils.measure.machine import commit_of

    assert commit_of(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(tmp_path) == ""  # no commit yet
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    assert commit_of(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == head.stdout.strip() + "+"
