"""A Hugging Face model without its weights: parameters on the ``meta`` device, computed buffers on the CPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...ir.errors import ModelError, OptionError, UnsupportedError, nearest
from . import attention, experts

TASKS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "features": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
}
"""What ``task=`` may be, and the class of transformers that chooses the model."""


def need_transformers() -> Any:
    """The transformers package.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            "reading Hugging Face folders and GGUF files needs transformers", fix="pip install 'burnish[transformers]'"
        ) from error
    return transformers


def read_config(folder: Path) -> Any:
    """The configuration object of a folder.

    Raises:
        ModelError: there is no ``config.json``, or it is not one.
        UnsupportedError: the model type is unknown, needs code from the folder, or is already quantized.
    """
    transformers = need_transformers()
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            "the folder holds no config.json",
            where=str(folder),
            fix="pass the folder that save_pretrained() wrote, or a .onnx or .gguf file",
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model_type = fields.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"config.json is not a JSON object: {error}", where=str(path)) from error
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in known:
        if fields.get("auto_map"):
            raise UnsupportedError(
                "the model runs code that lies in its folder (config.json has auto_map)",
                where=str(path),
                fix="load it with transformers and trust_remote_code=True, then compile the module",
            )
        if model_type is None:
            raise ModelError("config.json does not say its model_type", where=str(path))
        raise UnsupportedError(
            f"transformers {transformers.__version__} does not know the model type {model_type!r}",
            where=str(path),
            fix="install a transformers that does; " + nearest(str(model_type), known),
        )
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedError(
            f"the weights are already quantized ({method})",
            where=str(path),
            fix="start from the unquantized folder",
        )
    try:
        return known[model_type].from_dict(fields)
    except Exception as error:
        raise ModelError(
            f"{type(error).__name__}: {error}", where=str(path), fix="correct the configuration"
        ) from error


def model_class(config: Any, task: str | None, where: str) -> Any:
    """The class that ``config.architectures`` names, or the one that ``task`` chooses.

    Raises:
        OptionError: there is no such task, or the model type has no model for it.
        UnsupportedError: transformers has no such class.
    """
    transformers = need_transformers()
    if task is not None:
        if task not in TASKS:
            raise OptionError(f"there is no task {task!r}", fix=nearest(task, TASKS))
        mapping = getattr(transformers, TASKS[task])._model_mapping
        if type(config) not in mapping:
            raise OptionError(f"model type {config.model_type!r} has no model for the task {task!r}", where=where)
        found = mapping[type(config)]
        return found[0] if isinstance(found, tuple) else found
    names = getattr(config, "architectures", None) or []
    if not names:
        raise ModelError(
            "config.json does not say which class the weights belong to (no architectures)",
            where=where,
            fix=f"pass task=, one of {', '.join(TASKS)}",
        )
    found = getattr(transformers, names[0], None)
    if found is None:
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no class {names[0]!r}",
            where=where,
            fix="install a transformers that has it, or load the model yourself and compile the module",
        )
    return found


def is_causal_lm(cls: Any) -> bool:
    """Whether a model class is a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return any(cls.__name__ in ([name] if isinstance(name, str) else name) for name in NAMES.values())


def build(cls: Any, config: Any, dtype: torch.dtype) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model on the ``meta`` device, and the buffers that it computes when it is built, on the CPU.

    Args:
        cls: class of the model.
        config: its configuration.
        dtype: element type of the parameters.

    Raises:
        ModelError: the class does not accept the configuration.
    """
    attention.register()
    experts.register()
    supported = getattr(cls, "_supports_sdpa", False) or getattr(cls, "_supports_attention_backend", False)
    try:
        with _parameters_on_meta():
            model = cls._from_config(
                config,
                dtype=dtype,
                attn_implementation=attention.NAME if supported else "eager",
                experts_implementation=attention.NAME,
            )
    except Exception as error:
        raise ModelError(
            f"{cls.__name__} does not accept the configuration: {type(error).__name__}: {error}",
            where="config.json",
        ) from error
    buffers: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.device.type != "meta":
                buffers[f"{prefix}.{name}".lstrip(".")] = buffer
                module._buffers[name] = buffer.to("meta")
    return model.eval(), buffers


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While the body runs, modules drop the data of the parameters they register.

    A tensor that nobody has written to takes no memory, and initialization then runs on ``meta`` and costs nothing.
    Buffers keep their values: nothing in the folder says what ``inv_freq`` is.
    """
    original = torch.nn.Module.register_parameter

    def register_parameter(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
        original(self, name, param)

    torch.nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]
