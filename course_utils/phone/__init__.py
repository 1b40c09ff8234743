"""A language model on a phone: what must fit, the file that goes there, and the loop that runs it.

budget   bytes, the speed that they allow, the energy that they cost; memory classes of phones
packed   the model that is put on the phone: GPTQ's checkpoint, and the same as a PyTorch model
export   the ONNX file that holds the checkpoint's integers and scales, not others
blocks   how that file packs integers, and how they are read from it
decode   greedy decoding with ONNX Runtime, the KV cache as tensors
toy      a stand-in for ONNX Runtime's session, for the exercise
"""
