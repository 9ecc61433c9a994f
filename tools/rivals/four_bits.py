"""What other tools make of MiniLM and SmolLM2 in 4 bits, groups of 32: a function a way, each by its own commands.

All that take data get the same: stretches of an encyclopedia for MiniLM, of the calibration text for SmolLM2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.onnxruntime.session import Session
from ...compiler.api import export
from ...compiler.inputs import fill_tokens
from ..baseline import baseline_path, minilm_path
from ..bench_eight_bits import Encoder
from ..fetch import model_path
from ..text import calibration_text, load_tokenizer, windows
from .models import openvino

GROUP = 32
_FEW = 8
"""Calibration inputs of SmolLM2 for those who take long."""
Feeds = Mapping[str, Any]
Make = Callable[[Path], Path]


class Reader:
    """Calibration inputs one by one, as ONNX Runtime's quantizers and their relatives want them."""

    def __init__(self, items: list[Feeds]) -> None:
        self._items = items
        self.rewind()

    def rewind(self) -> None:
        """Begin again."""
        self._left: Iterator[Feeds] = iter(self._items)

    def get_next(self) -> Feeds | None:
        """The next input, or None."""
        return next(self._left, None)

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self._items)


def _data(model: Path, count: int | None = None) -> list[Feeds]:
    if model == minilm_path():
        return list(Encoder().encyclopedia(count or 64))
    ids = windows(load_tokenizer(model_path("smollm2")), calibration_text(), count or 32)
    specs = Session(model).inputs
    return [fill_tokens(specs, {"input_ids": row[None]}) for row in ids]


def _sentences(count: int) -> list[Feeds]:
    return list(Encoder().sentence_batches()[:count])


def _saved(proto: Any, folder: Path) -> Path:
    import onnx

    path = folder / "model.onnx"
    large = proto.ByteSize() > 1 << 29
    onnx.save(proto, str(path), save_as_external_data=large, location="model.onnx.data")
    return path


def runtime(model: Path, algorithm: str, count: int | None = None) -> Make:
    """ONNX Runtime's ``MatMulNBitsQuantizer``; ``algorithm`` is ``rtn``, ``k_quant``, ``hqq`` or ``gptq``.

    ``count`` is the number of calibration inputs that ``gptq`` gets.
    """

    def make(folder: Path) -> Path:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        configs: dict[str, Callable[[], Any]] = {
            "rtn": lambda: nbits.DefaultWeightOnlyQuantConfig(block_size=GROUP, is_symmetric=False),
            "k_quant": nbits.KQuantWeightOnlyQuantConfig,
            "hqq": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=GROUP),
            "gptq": lambda: nbits.GPTQWeightOnlyQuantConfig(Reader(_data(model, count))),
        }
        quantizer = nbits.MatMulNBitsQuantizer(
            onnx.load(str(model)), block_size=GROUP, is_symmetric=False, algo_config=configs[algorithm]()
        )
        quantizer.process()
        return _saved(quantizer.model.model, folder)

    return make


def neural_compressor(model: Path, algorithm: str, count: int | None = None) -> Make:
    """``onnx-neural-compressor``; ``algorithm`` is ``rtn``, or ``gptq`` or ``awq`` on ``count`` inputs."""

    def make(folder: Path) -> Path:
        from onnx_neural_compressor.quantization import algorithm_entry, config

        options: dict[str, Any] = {"weight_bits": 4, "weight_group_size": GROUP, "weight_sym": False}
        if algorithm == "rtn":
            return _saved(algorithm_entry.rtn_quantize_entry(str(model), config.RTNConfig(**options)), folder)
        reader = Reader(_data(model, count))
        if algorithm == "awq":
            made = algorithm_entry.awq_quantize_entry(str(model), config.AWQConfig(**options), reader)
        else:
            made = algorithm_entry.gptq_quantize_entry(str(model), config.GPTQConfig(**options), reader)
        return _saved(made, folder)

    return make


def onnx_quantize(algorithm: str) -> Make:
    """``onnx-quantize``: ``rtn`` in groups, ``mse`` with ranges searched, or ``gptq``, which it has by channel only.

    MiniLM; the tool writes opset 21 and takes nothing newer.
    """

    def make(folder: Path) -> Path:
        import onnx
        from onnx_quantize import GPTQConfig, QConfig, QuantType, quantize

        model = minilm_path(21)
        options: dict[str, Any] = {"weights_only": True, "weights_dtype": QuantType.QUInt4, "weights_symmetric": False}
        if algorithm == "gptq":
            found = _data(minilm_path())
            data = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
            options |= {"group_size": -1, "algorithm": GPTQConfig(), "calibration_data": data["input_ids"]}
        else:
            options |= {"group_size": GROUP, "mse": algorithm == "mse"}
        return _saved(quantize(onnx.load(str(model)), QConfig(**options)), folder)

    return make


def nncf(model: Path, algorithm: str) -> Make:
    """NNCF's weight compression for OpenVINO, all layers in 4 bits; ``algorithm`` is ``rtn``, or with data ``awq``,
    ``scale_estimation`` or ``gptq``.
    """

    def make(folder: Path) -> Path:
        import nncf as tool
        import openvino as ov

        options: dict[str, Any] = {"group_size": GROUP, "ratio": 1.0, "all_layers": True}
        if algorithm != "rtn":
            options["dataset"] = tool.Dataset([dict(one) for one in _data(model)])
            options[algorithm] = True
        mode = tool.CompressWeightsMode.INT4_ASYM
        made = tool.compress_weights(ov.Core().read_model(str(model)), mode=mode, **options)
        ov.save_model(made, str(folder / "model.xml"), compress_to_fp16=False)
        return folder / "model.xml"

    return make


def burnish(source: Path, passes: str, data: Callable[[], list[Feeds]] | None) -> Make:
    """Burnish by a specification."""

    def make(folder: Path) -> Path:
        calibration = None if data is None else data()
        export(source, folder / "model", passes=passes, calibration=calibration, verify="off")
        return folder / "model"

    return make


LEARN = "quantize({options}),learn_codes(steps={steps},batch=1,outputs=last_hidden_state)"
_GROUPS, _ERRORS, _HALF = f"group_size={GROUP}", "propagate=errors", "half_scales=true"
_TABLE = "overrides={'embeddings':'w8a16'}"


def encoders() -> dict[str, Make]:
    """Ways for MiniLM. Burnish rounds its embedding, too, which most of the others leave in float32."""
    model, folder = minilm_path(), model_path("minilm")
    own = ("rtn", "k_quant", "hqq", "gptq")
    ways: dict[str, Make] = {f"ONNX Runtime, {name}": runtime(model, name) for name in own}
    ways |= {f"onnx-neural-compressor, {name}": neural_compressor(model, name) for name in ("rtn", "gptq", "awq")}
    ways |= {f"onnx-quantize, {name}": onnx_quantize(name) for name in ("rtn", "mse", "gptq")}
    ways |= {f"NNCF and OpenVINO, {name}": nncf(model, name) for name in ("rtn", "awq", "scale_estimation", "gptq")}
    ways["Burnish, rtn"] = burnish(folder, "quantize(group_size=32)", None)
    ways["Burnish, gptq"] = burnish(folder, "quantize(group_size=32)", lambda: _data(model))
    for name, options in (
        ("gptq on sentences", _GROUPS),
        ("gptq on sentences, errors propagated", f"{_GROUPS},{_ERRORS}"),
        ("gptq on sentences, errors propagated, offsets", f"{_GROUPS},{_ERRORS},offsets=true"),
        ("gptq on sentences, errors propagated, half scales", f"{_GROUPS},{_ERRORS},{_HALF}"),
    ):
        ways[f"Burnish, {name}"] = burnish(folder, f"quantize({options})", partial(_sentences, 128))
    for name, options, steps, inputs in (
        ("learned in 256 steps", _GROUPS, 256, 256),
        ("learned in 1024 steps", _GROUPS, 1024, 512),
        ("errors propagated, learned in 512 steps", f"{_GROUPS},{_ERRORS}", 512, 256),
        ("errors propagated, learned in 400 steps, embedding in 8 bits", f"{_GROUPS},{_ERRORS},{_TABLE}", 400, 256),
    ):
        recipe = LEARN.format(options=options, steps=steps)
        ways[f"Burnish, {name}"] = burnish(folder, recipe, partial(_sentences, inputs))
    return ways


def decoders() -> dict[str, Make]:
    """Ways for SmolLM2."""
    model, source = baseline_path(), model_path("smollm2")
    ways: dict[str, Make] = {f"ONNX Runtime, {name}": runtime(model, name) for name in ("rtn", "k_quant", "hqq")}
    ways |= {"onnx-neural-compressor, rtn": neural_compressor(model, "rtn")}
    # They run the whole model once for each product and input: with all inputs that would take hours.
    ways[f"ONNX Runtime, gptq, {_FEW} inputs"] = runtime(model, "gptq", _FEW)
    for name in ("gptq", "awq"):
        ways[f"onnx-neural-compressor, {name}, {_FEW} inputs"] = neural_compressor(model, name, _FEW)
    ways["NNCF and OpenVINO, rtn"] = lambda folder: openvino("int4")
    ways |= {f"NNCF and OpenVINO, {name}": nncf(model, name) for name in ("awq", "scale_estimation", "gptq")}
    ways["Burnish, rtn"] = burnish(source, "quantize(group_size=32)", None)
    ways["Burnish, gptq"] = burnish(source, "rotate,quantize(group_size=32)", lambda: _data(model))
    propagated = "rotate,quantize(group_size=32,propagate=errors)"
    ways["Burnish, gptq, errors propagated"] = burnish(source, propagated, lambda: _data(model))
    ways["Burnish, gptq, half scales"] = burnish(source, f"rotate,quantize({_GROUPS},{_HALF})", lambda: _data(model))
    # SmolLM2's file was rounded to a scale and an offset a group before: these find its codes again, as hqq does.
    grid = f"{_GROUPS},offsets=true,method=rtn"
    table = "overrides={'lm_head':{'bits':8,'offsets':false}}"
    ways["Burnish, rtn, offsets, half scales, embedding in 8 bits"] = burnish(
        source, f"quantize({grid},{_HALF},{table})", None
    )
    ways["Burnish, rtn, offsets, inputs and embedding in float32"] = burnish(
        source, f"quantize({grid},float_inputs=true,exclude=lm_head)", None
    )
    return ways
