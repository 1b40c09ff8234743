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
    "groups of 64":
        "linear layers whose inputs come in whole groups of 64: nearly all; not some small ones, 288 wide",
    "512 tokens":
        "a context of 512 tokens or more: nearly all; not some small ones, made for 256",
    "two blocks": "two blocks or more: all but toys",
    "three blocks": "three blocks or more: all but toys",
}

LESSONS = {  # every lesson that uses LM; () takes any causal language model
    "one_token": ("Llama's count", "512 tokens"),
    "formats": ("linear layers", "groups of 64", "512 tokens"),
    "ptq": ("linear layers", "foldable norms", "groups of 64"),
    "gptq": ("linear layers", "groups of 64", "512 tokens"),
    "awq": ("Llama's blocks", "foldable norms", "groups of 64", "512 tokens", "three blocks"),
    "pruning": ("linear layers", "512 tokens"),
    "structured": ("Llama's blocks", "two blocks"),
    "distillation": ("linear layers", "two blocks"),
    "merging": (),
    "kv_cache": ("Llama's count", "full attention", "512 tokens"),
    "serving": ("full attention", "512 tokens"),
    "outlook": ("Llama's blocks", "full attention", "512 tokens", "two blocks"),
}
