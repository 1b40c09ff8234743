"""Quantization by hand: a short module, or a package of short modules, for each idea.

affine       numbers to integers and back (absmax, zero point, groups)
layerwise    the calibration walk that every data-driven method stands on
packed       a linear layer that really stores packed integers
activations  quantized inputs: per token, static, LLM.int8(), SmoothQuant
qat          training with the rounding errors in place
gptq         round column by column and let the others make up for it
checkpoint   the GPTQ format: write, read
awq          scale the channels that matter before rounding
awq_format   the AWQ format: its packing order, write, read
hqq          a better zero point, without data
"""
