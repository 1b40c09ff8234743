"""What each lesson needs of the model that LM names: the README shows it, `shapes.require` tries it."""

NEEDS = {  # what a model with it is like, and families that have it or have it not
    "linear layers":
        "blocks that keep their weights in linear layers: Llama, Mistral, Qwen, Gemma, Phi, OPT and most "
        "others; not GPT-2, not a mixture of experts",
    "foldable norms":
        "norms that multiply by their weight and that only q, k, v or the MLP read: Llama, Mistral, Qwen, "
        "Phi-3, OPT; not Gemma, OLMo 2",
    "Llama's blocks":
        "separate layers q, k, v, o and gate, up, down: Llama, Mistral, Qwen, Gemma; not Phi-3, OPT",
    "Llama's count":
        "as many parameters in their blocks as Llama's formula says, within 1 %: Llama, Mistral, Qwen, "
        "Gemma, Phi-3; not OPT",
    "full attention":
        "layers that all attend to the whole of a text of 2,048 tokens: Llama, Qwen, Phi-3; not Gemma 2 and "
        "3",
}

LESSONS = {  # every lesson that uses LM; () takes any causal language model
    "one_token": ("Llama's count",),
    "formats": ("linear layers",),
    "ptq": ("linear layers", "foldable norms"),
    "gptq": ("linear layers",),
    "awq": ("Llama's blocks", "foldable norms"),
    "pruning": ("linear layers",),
    "structured": ("Llama's blocks",),
    "distillation": ("linear layers",),
    "merging": (),
    "kv_cache": ("Llama's count", "full attention"),
}
