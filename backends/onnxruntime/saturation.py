"""Whether this processor's 8-bit products overflow in ONNX Runtime: asked of the runtime, not of a list of processors.

Processors without VNNI add two products of an unsigned by a signed byte in 16 bits, which saturate above 32767. The
runtime then has exact, slower kernels (``session.x64quantprecision``), but takes them wherever its kernels for signed
and unsigned weights differ: on processors with VNNI and without AMX, too, where products took 1.7 times as long and
were exact before.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

_PROBE = bytes.fromhex(
    "080a3a620a180a01780a0177120179220d4d61744d756c496e7465676572120770726f647563745a130a0178120e0a0c"
    "080212080a0208040a0208405a130a0177120e0a0c080312080a0208400a02080862130a0179120e0a0c080612080a02"
    "08040a02080842040a001017"
)
"""A model of one ``MatMulInteger``."""
_DEEP, _LARGEST = 64, 255 * 127


@functools.cache
def products_overflow() -> bool:
    """Whether the sum of products of 255 by 127 is wrong by the runtime's own choice of kernels."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(_PROBE, options, providers=["CPUExecutionProvider"])
    x, w = np.full((4, _DEEP), 255, np.uint8), np.full((_DEEP, 8), 127, np.int8)
    (product,) = session.run(None, {"x": x, "w": w})
    return not bool((product == _DEEP * _LARGEST).all())
