"""What several test files share: the real model and text, loaded once, and a machine without a network."""

import socket

import pytest

import course_utils  # noqa: F401 - before any test imports torch: it settles how threads wait


@pytest.fixture(scope="session")
def lm():
    """(model, tokenizer): the embedded language model, FP32 on the CPU. Tests must leave it as it is."""
    from course_utils import models

    return models.load_lm("")


@pytest.fixture(scope="session")
def heldout(lm):
    """The first 4,096 tokens of the held-out text: LongTensor [4096]."""
    from course_utils import data

    return data.wikipedia_tokens(lm[1], "heldout", 4096)


@pytest.fixture(scope="session")
def encoder():
    """(model, tokenizer): the MiniLM encoder without a head."""
    from course_utils import models

    return models.load_encoder()


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to look up a host or to open a connection fails, and fails the test."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the network is closed for this test")

    for place, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo"),
                        (socket, "create_connection")):
        monkeypatch.setattr(place, name, refuse)
    yield
    assert not attempts, f"the network was tried: {attempts[0]}"
