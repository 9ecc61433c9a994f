"""Tokens after tokens: prompts, sampling, beams, proposals, and what a decoder remembers. Neither torch nor onnx."""
