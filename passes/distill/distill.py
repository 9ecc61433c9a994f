"""``Distill``: weights that stayed learn the outputs of the model as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import SPARSITY, Graph, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from .. import selectors
from ..base import Context, Outcome, Pass, Stage, Training, without_data
from ..quantize.replace import take_place
from ..quantize.targets import find
from ..training import check_precision

RULE = "distill"
_SMALLEST = 1024


@dataclass(frozen=True)
class Distill(Pass):
    """Train what is left of a pruned model on the outputs of the model as it came (survey, section 5.1: white box).

    No labels are needed: the calibration inputs go through both models, and for a language model the divergence
    ``KL(p ‖ q)`` of the next-token distributions is made small, for others the relative squared error of the outputs.
    Zeros of a pattern stay zeros. Minutes on a CPU: gradients come from the reference backend.

    Attributes:
        steps: of Adam, one after each ``batch`` of calibration inputs.
        rate: of learning at its highest; it rises over the first tenth and falls to zero as a cosine.
        batch: calibration inputs of each step.
        rank: 0 trains whole weights; else products of two thin matrices that are added to them in the end (LoRA, Hu et
            al. 2021), which takes less memory and forgets less.
        include: selectors of the products to train; all if empty.
        precision: ``"float32"``, ``"bfloat16"`` (of products, weights stay float32), or ``"auto"``: bfloat16 where this
            CPU multiplies it faster.
        seed: of the order of the inputs.

    Raises:
        OptionError: a number that makes no sense.
        CalibrationError: (when run) there are no calibration inputs.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.PRUNE
    latest = Stage.SPARSIFY
    approximate = True
    needs_original = True

    steps: int = 200
    rate: float = 1e-4
    batch: int = 1
    rank: int = 0
    include: str | Sequence[str] = ()
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.rank < 0 or self.seed < 0 or not self.rate > 0:
            raise OptionError(
                f"steps={self.steps!r}, batch={self.batch!r}, rank={self.rank!r}, rate={self.rate!r} cannot be",
                where="Distill", fix="use steps=200, batch=1, rank=0, rate=1e-4",
            )  # fmt: skip
        check_precision(self.precision, "Distill")
        value = self.include
        object.__setattr__(self, "include", (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all(self.include)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Train, and write the weights back."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        if context.distill is None:
            raise without_data("Distill")
        weights = [w for w in find(graph).weights if w.products and w.value.is_initializer()]
        nodes = [node for weight in weights for node in weight.products]
        chosen = selectors.selected(nodes, self.include, "products")
        weights = [w for w in weights if any(node in chosen for node in w.products)]
        values = [weight.value for weight in weights]
        masked = {w.value for w in weights if any(SPARSITY in node.metadata_props for node in w.products)}
        convolutions = [] if self.include else _convolutions(graph)
        values += [value for value in convolutions if value not in values]
        if not values:
            outcome.missed("", "there is nothing to train: no product has a constant weight")
            return outcome
        training = Training(self.steps, self.rate, self.batch, self.rank, self.precision, self.seed)
        trained, losses = context.distill(values, masked, training)
        for weight in weights:
            tensor = tensor_of(weight.value)
            assert tensor is not None
            array = trained[weight.value].astype(tensor.dtype.numpy())
            edit.at(weight.products[0])
            name = weight.value.name or "weight"
            take_place(edit, weight, edit.initializer(onnx_ir.Tensor(array, dtype=tensor.dtype), f"{name}.trained"))
            outcome.count(RULE)
        for value in convolutions:
            tensor = tensor_of(value)
            assert tensor is not None
            value.const_value = onnx_ir.Tensor(
                trained[value].astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=value.name
            )
            outcome.count(RULE)
        tenth = max(1, len(losses) // 10)
        first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
        outcome.applied(
            module_path(nodes[0]) if nodes else "",
            f"{len(values)} weights trained for {len(losses)} steps: the loss went from {first:.4g} to {last:.4g}",
            steps=len(losses), loss_before=first, loss_after=last,
        )  # fmt: skip
        return outcome


def _convolutions(graph: Graph) -> list[onnx_ir.Value]:
    """Weights of convolutions that nothing else reads."""
    found = []
    for node in graph.graph:
        value = node.inputs[1] if is_op(node, "Conv", "ConvTranspose") else None
        if value is not None and value.is_initializer() and len(value.uses()) == 1 and tensor_of(value) is not None:
            tensor = tensor_of(value)
            if tensor is not None and tensor.size >= _SMALLEST:
                found.append(value)
    return found
