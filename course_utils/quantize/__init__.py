"""Quantization by hand: one short module for each idea.

affine       numbers to integers and back (absmax, zero point, groups)
layerwise    the calibration walk that every data-driven method stands on
packed       a linear layer that really stores packed integers
activations  quantized inputs: per token, static, LLM.int8(), SmoothQuant
"""
