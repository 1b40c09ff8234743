"""A small course of one lesson, generated and executed once, copied for each test that needs one."""

import shutil
from pathlib import Path

import pytest

from authoring import sync
from authoring.project import Project

SAMPLE = Path(__file__).parent / "sample"


@pytest.fixture
def unsynced(tmp_path):
    """The sample course without any generated file."""
    shutil.copytree(SAMPLE, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__"))
    return Project(tmp_path / "course")


@pytest.fixture(scope="session")
def synced_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("synced") / "course"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    sync.sync(Project(root), report=lambda line: None)
    return root


@pytest.fixture
def synced(synced_once, tmp_path):
    """The sample course, generated and executed."""
    shutil.copytree(synced_once, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__"))
    return Project(tmp_path / "course")
