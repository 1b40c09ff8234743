"""What an exported decoder can do, read off the inputs and outputs of its graph."""


def missing_parts(inputs: list[tuple[str, list]], outputs: list[tuple[str, list]]) -> set[str]:
    """What a decoder's graph lacks to write text token by token.

    Args:
        inputs: (name, shape) of each. A shape is a list with an int for each fixed dimension and a str or
            None for each dynamic one, as onnxruntime's session.get_inputs() gives them.
        outputs: the same.

    Returns:
        A set out of

        - "cache": keys and values of past tokens do not come in as tensors [batch, heads, tokens, head_dim],
          or not as many come out, or their tokens dimension is fixed
        - "mask": no input is called attention_mask, so padding cannot be hidden
        - "dynamic length": input_ids [batch, tokens] takes a fixed number of tokens only
    """
    shapes = dict(inputs)
    past = [shape for _, shape in inputs if len(shape) == 4]
    present = [shape for _, shape in outputs if len(shape) == 4]
    missing = set()
    if not past or len(present) != len(past) or any(isinstance(shape[2], int) for shape in past):
        missing.add("cache")
    if "attention_mask" not in shapes:
        missing.add("mask")
    if isinstance(shapes["input_ids"][1], int):
        missing.add("dynamic length")
    return missing
