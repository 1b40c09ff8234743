"""vLLM on the model's own folder, in BF16, on a GPU. It decides itself what it computes side by side.

Its memory is the GPU's, and it takes the share it is told to: resident and peak bytes count the host's only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol import Clock, Session, serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class VllmSession(Session):
    """vLLM's offline engine, asked for whole answers.

    Options {"positions": the longest text, default 1024; "memory": share of the GPU's, default 0.5}.
    """

    packages = ("vllm", "torch")

    def load(self, folder: str | Path) -> None:
        """Read the model in BF16."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that its time is counted
        from vllm import LLM

        # Without a prefix cache: the second run of the same prompt would find all of it there.
        self.llm = LLM(
            model=str(folder), dtype="bfloat16", seed=0, max_model_len=self.options.get("positions", 1024),
            gpu_memory_utilization=self.options.get("memory", 0.5), max_num_seqs=max(self.batch, 2),
            enable_prefix_caching=False, max_logprobs=-1)

    def timed(self, ids: Sequence[int], n: int) -> tuple[list[int], Clock, Clock]:
        """Ask for whole answers. So a prompt's time is that of one token, and the rest the steps."""
        with Clock() as prompt:
            answers = self._ask(ids, 1)
        steps = Clock()
        if n > 1:
            with Clock() as whole:
                answers = self._ask(ids, n)
            steps = Clock(max(whole.wall - prompt.wall, 1e-9), max(whole.cpu - prompt.cpu, 0.0))
        return list(answers[0].outputs[0].token_ids), prompt, steps

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Log-probabilities at every position: scores but for a constant each."""
        import numpy as np

        self.batch = 1
        (answer,) = self._ask(ids, 1, prompt_logprobs=-1, logprobs=-1)  # -1: of all tokens
        after = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
        return np.array([[row[token].logprob for token in range(len(row))] for row in after], np.float32)

    def _ask(self, ids: Sequence[int], n: int, **more: Any) -> list:
        """Answers of n tokens to `batch` copies of the prompt."""
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False, **more)
        prompts = [{"prompt_token_ids": list(ids)}] * self.batch
        return self.llm.generate(prompts, settings, use_tqdm=False)


if __name__ == "__main__":
    serve(VllmSession)
