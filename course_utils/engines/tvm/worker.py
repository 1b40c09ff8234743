"""TVM: the model compiled for this very processor by LLVM, with a few loops written by hand (tvm_kernels.py).

prepare makes "fp32": model.so (the compiled functions), model.params (the weights) and model.json.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exported import ExportedSession
from protocol import serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class TvmSession(ExportedSession):
    """The compiled model; its KV cache goes from call to call as tensors."""

    packages = ("apache-tvm", "torch", "transformers")
    weights = ("*.params", "*.so")

    def load(self, folder: str | Path) -> None:
        """Read what `prepare` made, unless it was compiled for another processor."""
        os.environ["TVM_NUM_THREADS"] = str(self.threads)  # read when it is imported
        import tvm
        from tvm import relax
        from tvm.target import codegen

        self.tvm = tvm
        about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        here = codegen.llvm_get_system_cpu()
        if about["processor"] != here:  # it may lack instructions: the process would be killed
            raise ValueError(f"compiled for the processor {about['processor']}, and this is {here}. Remove "
                             f"{Path(folder).parent} and run: course engines install tvm")
        stored = tvm.runtime.load_param_dict_from_file(str(Path(folder) / "model.params"))
        self.parameters = [stored[name] for name in about["parameters"]]
        self.past, self.vocabulary = about["past"], about["vocabulary"]
        library = tvm.runtime.load_module(str(Path(folder) / "model.so"))
        self.main = relax.VirtualMachine(library, tvm.cpu())["main"]

    def _tensor(self, array: "np.ndarray") -> Any:
        return self.tvm.runtime.tensor(array)

    def _run(self, ids: Sequence[int], kept: Sequence[int]) -> "np.ndarray":
        feeds = self._feeds(ids, kept)
        del feeds["attention_mask"]  # this export has no padding
        logits, *present = self.main(*feeds.values(), *self.parameters)
        self.cache = dict(zip(self.past, present, strict=True))
        return logits.numpy()[0, :, : self.vocabulary]  # the panels have been filled up with zero rows

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Compile the model for this processor."""
        import tvm
        import tvm_export
        from tvm.support import cc
        from tvm.target import codegen

        if sys.platform != "win32" and not cc.get_cc():
            raise ValueError("TVM needs a C++ compiler, g++ or clang, to link what it has compiled")
        exported, config = tvm_export.trace(model)
        module, weights = tvm_export.to_relax(exported)
        processor = codegen.llvm_get_system_cpu()
        target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        tvm.compile(module, target).export_library(str(out / "model.so"))
        # Weights under the hash of their content, so that a tied matrix is kept once.
        names = [hashlib.sha256(weight.numpy().tobytes()).hexdigest() for weight in weights]
        stored = dict(zip(names, weights, strict=True))
        tvm.runtime.save_param_dict_to_file(stored, str(out / "model.params"))
        past = {f"past_{kind}_{i}": (config.num_key_value_heads, tvm_export.head_width(config))
                for i in range(config.num_hidden_layers) for kind in ("key", "value")}
        about = {"parameters": names, "past": past, "vocabulary": config.vocab_size, "processor": processor}
        (out / "model.json").write_text(json.dumps(about))


if __name__ == "__main__":
    serve(TvmSession)
