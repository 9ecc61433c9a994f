"""The models of DNNFusion's table (Niu et al. 2021), with random weights, as the exporters of 2021 wrote them.

Transformers are built from their published configurations, vision networks in ``fusion_vision.py``; each goes through
the frontend and is then taken apart in one fixed way (``decompose_exporter.py``, opset 13).

    python -m burnish.tools.fusion_models NAME OUT.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from ..frontends.onnx_file import import_onnx
from ..frontends.torch_module import import_module
from ..ir.errors import OptionError, nearest
from ..ir.graph import Graph
from ..ir.infer import infer_graph
from . import fusion_vision
from .decompose_exporter import decompose_as_exported
from .fetch import model_path

SEQUENCE = 128


@dataclass(frozen=True)
class Published:
    """A row of DNNFusion's table: operators before, blocks after, and blocks of TVM's fixed patterns."""

    name: str
    operators: int
    blocks: int
    fixed_patterns: int


@dataclass(frozen=True)
class Model:
    """A model to count.

    Attributes:
        title: for tables.
        build: the imported graph, before it is taken apart; takes the number of layers, None for all.
        published: the row to compare with; None where the paper has none.
    """

    title: str
    build: Callable[[int | None], Graph]
    published: Published | None


def graph_of(name: str, layers: int | None = None) -> Graph:
    """The decomposed graph of a model, shapes inferred.

    Args:
        name: a key of :data:`MODELS`.
        layers: fewer layers than published, for tests; ignored by vision networks.

    Raises:
        OptionError: there is no such model.
    """
    if name not in MODELS:
        raise OptionError(f"there is no model {name!r}", fix=nearest(name, MODELS))
    graph = MODELS[name].build(layers)
    infer_graph(graph)
    decompose_as_exported(graph)
    infer_graph(graph)
    return graph


def _encoder(family: str, **options: Any) -> Callable[[int | None], Graph]:
    """A text model of ``transformers`` by the names of its classes, such as ``Bert``."""

    def build(layers: int | None) -> Graph:
        import transformers

        sizes = dict(options)
        depth = "n_layers" if family == "DistilBert" else "num_hidden_layers"
        if layers is not None:
            sizes[depth] = layers
        config = getattr(transformers, f"{family}Config")(**sizes)
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}Model")(config).eval()
        ids = torch.zeros(1, SEQUENCE, dtype=torch.long)
        return import_module(model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).graph

    return build


def _gpt2(layers: int | None) -> Graph:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers or 12, use_cache=False)).eval()
    ids = torch.zeros(1, SEQUENCE, dtype=torch.long)
    return import_module(model, (), {"input_ids": ids}).graph


def _vision(network: Callable[[], torch.nn.Module], size: int) -> Callable[[int | None], Graph]:
    def build(layers: int | None) -> Graph:
        torch.manual_seed(0)
        return import_module(network().eval(), (torch.zeros(1, 3, size, size),)).graph

    return build


def _yolov8(layers: int | None) -> Graph:
    return import_onnx(model_path("yolov8n")).graph


_ALBERT = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_TINY = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}

MODELS: Mapping[str, Model] = {
    "efficientnet_b0": Model(
        "EfficientNet-B0", _vision(fusion_vision.EfficientNetB0, 224), Published("EfficientNet-B0", 309, 97, 195)
    ),
    "vgg16": Model("VGG-16", _vision(fusion_vision.Vgg16, 224), Published("VGG-16", 51, 17, 22)),
    "mobilenet_ssd": Model(
        "MobileNetV1-SSD", _vision(fusion_vision.MobileNetSsd, 300), Published("MobileNetV1-SSD", 202, 71, 124)
    ),
    "yolov4": Model("YOLOv4", _vision(fusion_vision.YoloV4, 416), Published("YOLO-V4", 398, 135, 192)),
    "yolov8n": Model("YOLOv8n", _yolov8, None),
    "unet": Model("U-Net", _vision(fusion_vision.UNet, 256), Published("U-Net", 292, 82, 232)),
    "tinybert": Model("TinyBERT", _encoder("Bert", **_TINY), Published("TinyBERT", 366, 74, 304)),
    "distilbert": Model("DistilBERT", _encoder("DistilBert"), Published("DistilBERT", 457, 109, 416)),
    "albert": Model("ALBERT", _encoder("Albert", **_ALBERT), Published("ALBERT", 936, 225, 746)),
    "bert_base": Model("BERT-base", _encoder("Bert"), Published("BERT-base", 976, 216, 760)),
    "mobilebert": Model("MobileBERT", _encoder("MobileBert"), Published("MobileBERT", 2387, 510, 1678)),
    "gpt2": Model("GPT-2", _gpt2, Published("GPT-2", 2533, 254, 2047)),
}
"""By name, in the order of the paper's table."""


def main(arguments: list[str] | None = None) -> None:
    """Write one of the models."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.fusion_models", description=(__doc__ or "").strip())
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--layers", type=int, default=None, help="fewer layers than published")
    options = parser.parse_args(arguments)
    graph = graph_of(options.name, options.layers)
    onnx_ir.save(graph, options.target)
    print(f"{sum(1 for _ in graph.graph)} operators", file=sys.stderr)


if __name__ == "__main__":
    main()
