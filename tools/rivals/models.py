"""What each other tool makes of SmolLM2 and MiniLM, by its own commands, kept in the cache of :mod:`..fetch`.

Every function returns a folder or file that is made the first time. Calibration is on the text that Burnish calibrates
on, with as many tokens.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..baseline import baseline_path, eager_smollm2, minilm_path
from ..fetch import cache_folder, locked, model_path
from ..text import calibration_text, load_tokenizer, windows


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache, filled by ``make`` the first time; whole or not there."""
    folder = cache_folder() / f"rival_{name}"
    if not folder.is_dir():
        with locked(cache_folder() / f".rival_{name}.lock"):
            if not folder.is_dir():
                scratch = folder.with_name(f".rival_{name}.partial")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                make(scratch)
                scratch.rename(folder)
    return folder


def size(path: Path) -> int:
    """Bytes of a file or of the model files of a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in {".onnx", ".data", ".bin", ".xml"}]
    return sum(file.stat().st_size for file in files)


# Language model


def hugging_face_folder() -> Path:
    """SmolLM2 as transformers saves it, in float32."""

    def make(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # transformers does not save what came out of a GGUF file: the weights go into a model that did not.
        read: Any = eager_smollm2()
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        gguf = model_path("smollm2")
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)

    return kept("smollm2_folder", make)


def genai(precision: str) -> Path:
    """The folder that ``onnxruntime_genai.models.builder`` writes for the CPU; its default options."""

    def make(folder: Path) -> None:
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        what = (None, str(hugging_face_folder()), str(folder), precision, "cpu", str(folder / "cache"))
        create_model(*what, **parse_extra_options(*what, []))
        shutil.rmtree(folder / "cache", ignore_errors=True)

    return kept(f"genai_{precision}", make)


LLAMA_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_m": 15}
"""``enum llama_ftype`` of llama.cpp."""


def llama(name: str) -> Path:
    """A GGUF file in the type ``name``, requantized by llama.cpp from the file in Q4_1 (which favours Q4_1)."""
    if name == "q4_1":
        return model_path("smollm2")

    def make(folder: Path) -> None:
        import llama_cpp

        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = LLAMA_TYPES[name]
        options.allow_requantize = True
        source, target = str(model_path("smollm2")).encode(), str(folder / "model.gguf").encode()
        if llama_cpp.llama_model_quantize(source, target, ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp did not quantize to {name}")

    return kept(f"llama_{name}", make) / "model.gguf"


def openvino(kind: str) -> Path:
    """The decoder with a stateful cache, weights compressed by NNCF: ``float``, ``int8`` or ``int4``.

    ``int4`` has groups of 32 and zero points, and everything in 4 bits.
    """

    def make(folder: Path) -> None:
        import nncf
        import openvino as ov
        from openvino._offline_transformations import apply_make_stateful_transformation

        model = ov.Core().read_model(str(baseline_path()))
        # One row: with a batch of any size the empty state has no rows, and the first step cannot join it.
        shapes = {value.any_name: list(value.partial_shape)[1:] for value in model.inputs}
        model.reshape({name: ov.PartialShape([1, *rest]) for name, rest in shapes.items()})
        if kind == "int8":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        elif kind == "int4":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=32, ratio=1.0)
        pairs = {
            name: name.replace("past_key_values", "present")
            for value in model.inputs
            if (name := value.any_name).startswith("past_key_values")
        }
        apply_make_stateful_transformation(model, pairs)
        ov.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)

    return kept(f"openvino_{kind}", make) / "model.xml"


def runtime_dynamic() -> Path:
    """The exported decoder by ONNX Runtime's ``quantize_dynamic`` with its default options."""

    def make(folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(str(baseline_path()), str(folder / "model.onnx"), use_external_data_format=True)

    return kept("ort_dynamic", make) / "model.onnx"


def runtime_4_bits() -> Path:
    """The exported decoder by ONNX Runtime's ``MatMulNBitsQuantizer``: 4 bits, groups of 32, accuracy level 4."""

    def make(folder: Path) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = onnx.load(str(baseline_path()))
        quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=False, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)

    return kept("ort_4_bits", make) / "model.onnx"


# Encoder


def sentences(count: int, length: int = 128) -> list[dict[str, Any]]:
    """``count`` batches of one stretch of the calibration text, as inputs of MiniLM."""
    encode = load_tokenizer(model_path("minilm"))
    rows = windows(encode, calibration_text(), count, length)
    return [
        {
            "input_ids": row[None],
            "attention_mask": np.ones((1, length), np.int64),
            "token_type_ids": np.zeros((1, length), np.int64),
        }
        for row in rows
    ]


def minilm_openvino(kind: str) -> Path:
    """MiniLM in OpenVINO's format: ``float``, or ``int8`` by NNCF's quantization for transformers."""

    def make(folder: Path) -> None:
        import nncf
        import openvino as ov

        model = ov.Core().read_model(str(minilm_path()))
        if kind == "int8":
            model = nncf.quantize(model, nncf.Dataset(sentences(100)), model_type=nncf.ModelType.TRANSFORMER)
        ov.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)

    return kept(f"minilm_openvino_{kind}", make) / "model.xml"


def minilm_runtime(kind: str) -> Path:
    """MiniLM by ONNX Runtime's own quantizers with their default options: ``dynamic`` or ``static``."""

    def make(folder: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

        if kind == "dynamic":
            quantize_dynamic(str(minilm_path()), str(folder / "model.onnx"))
            return

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # of onnxruntime, which has no types
            def __init__(self) -> None:
                self._rows = iter(sentences(100))

            def get_next(self) -> dict[str, Any] | None:
                return next(self._rows, None)

        quantize_static(str(minilm_path()), str(folder / "model.onnx"), Reader())

    return kept(f"minilm_ort_{kind}", make) / "model.onnx"
