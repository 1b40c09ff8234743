"""Every request gets the text that it would get alone."""

import pytest
import torch

from course_utils.kvcache.server import Server
from tests.unit.kvcache.common import VOCABULARY, assert_refused, tokens


def alone(model, prompt, new_tokens):
    """The answer to one request by transformers' own generate."""
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
    return ids[0, len(prompt) :].tolist()


def prompts(n, longest=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (k,), generator=generator).tolist() for k in lengths]


@pytest.mark.parametrize("n_blocks, max_batch", [(100, 8), (9, 8), (100, 1)], ids=["roomy", "tight", "one"])
def test_every_request_gets_the_text_it_would_get_alone(model, n_blocks, max_batch):
    server = Server(model, n_blocks, block_size=4, max_batch=max_batch)
    asked = {f"r{i}": (prompt, 3 + 5 * i % 17) for i, prompt in enumerate(prompts(7))}
    for name, (prompt, n) in asked.items():
        server.submit(name, prompt, n)
    requests = list(server.scheduler.waiting)
    answers = server.run()
    assert answers == {name: alone(model, prompt, n) for name, (prompt, n) in asked.items()}
    assert server.pool.reserved == 0 and server.pool.tables == {}
    preempted = sum(request.preemptions for request in requests)
    assert preempted > 0 if n_blocks == 9 else preempted == 0
    assert max(server.batches) <= max_batch and (max_batch == 1 or max(server.batches) > 1)


@pytest.mark.parametrize("prefix", [3, 4, 10])
def test_a_shared_prefix_is_read_and_stored_once(model, prefix):
    system = tokens(n=prefix, seed=3)[0].tolist()
    server = Server(model, 30, block_size=4, prefix=system)
    held = server.pool.reserved
    asked = {i: prompt for i, prompt in enumerate(prompts(5, seed=2))}
    for name, prompt in asked.items():
        server.submit(name, prompt, 6)
    assert server.run() == {name: alone(model, system + prompt, 6) for name, prompt in asked.items()}
    assert server.pool.reserved == held and list(server.pool.lengths.values()) == [prefix]


def test_a_stop_token_ends_an_answer(model):
    prompt = prompts(1)[0]
    whole = alone(model, prompt, 20)
    stop = whole[7]
    server = Server(model, 30, block_size=4, stop=[stop])
    server.submit("a", prompt, 20)
    assert server.run()["a"] == whole[: whole.index(stop) + 1]
    assert server.pool.reserved == 0


def test_requests_may_come_while_others_run(model):
    server = Server(model, 30, block_size=4)
    first, second = prompts(2, seed=4)
    server.submit("first", first, 9)
    server.step()
    server.step()
    server.submit("second", second, 4)
    finished = [name for _ in range(20) for name in server.step()]
    assert finished == ["second", "first"]
    assert server.answers == {"first": alone(model, first, 9), "second": alone(model, second, 4)}


def test_bad_input_is_refused_in_one_line(model):
    server = Server(model, 4, block_size=4)
    server.submit("a", [1, 2], 3)
    server.run()
    assert_refused({
        "needs 5 blocks of 4, the pool has 4": lambda: server.submit("b", [1] * 10, 7),
        "was made for 2048": lambda: server.submit("b", [1] * 10, 2040),
        "name 'a' is taken": lambda: server.submit("a", [1], 1),
        "prompt_tokens must be": lambda: server.submit("b", [], 1),
        "max_new_tokens must be": lambda: server.submit("b", [1], 0),
        "needs 5 blocks": lambda: Server(model, 4, block_size=4, prefix=[1] * 17),
        "raise budget, or lower max_batch": lambda: Server(model, 4, max_batch=8, budget=7),
        "budget must be": lambda: Server(model, 4, budget=0),
        "no request 'z' here": lambda: server.written("z"),
        "give no prefix": lambda: Server(model, 4, prefix=[1], find_prefixes=True),
    })


@pytest.mark.parametrize("n_blocks", [100, 9], ids=["roomy", "tight"])
def test_prompts_read_in_pieces_give_the_same_texts(model, n_blocks):
    server = Server(model, n_blocks, block_size=4, max_batch=3, budget=3)
    asked = {f"r{i}": (prompt, 3 + 5 * i % 17) for i, prompt in enumerate(prompts(6))}
    for name, (prompt, n) in asked.items():
        server.submit(name, prompt, n)
    most = 0
    while server.scheduler.waiting or server.scheduler.running:
        before = server.tokens_read
        server.step()
        most = max(most, server.tokens_read - before)
    assert server.answers == {name: alone(model, prompt, n) for name, (prompt, n) in asked.items()}
    assert most == 3  # never more than the budget
    assert (server.preemptions > 0) == (n_blocks == 9)


def test_those_who_write_go_on_while_a_long_prompt_is_read(model):
    def written_while_read(budget):
        server = Server(model, 40, block_size=4, max_batch=2, budget=budget)
        server.submit("short", [1, 2], 30)
        server.step()
        server.submit("long", tokens(n=20, seed=5)[0].tolist(), 2)
        while not server.written("long"):
            server.step()
        return server.written("short")

    assert written_while_read(5) > written_while_read(None)
