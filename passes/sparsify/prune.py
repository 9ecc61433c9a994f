"""``Prune``: weights of products become zero, alone, in groups N:M, or in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import ModelError, OptionError, nearest
from ...ir.graph import SPARSITY, Graph, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from .. import propagation, selectors
from ..base import Context, Outcome, Pass, Stage, Zeros, without_data
from ..quantize.methods import gptq
from ..quantize.replace import take_place, where
from ..quantize.targets import Weight, find
from ..selectors import Selector
from . import criteria, dsnot, least_squares, ratios, sparsegpt
from .compact import NARROWEST
from .inputs import Inputs
from .pattern import Array, Compare, parse, select
from .reorder import reorder

RULE = "prune weights"
METRICS = ("auto", "magnitude", "wanda", "ria", "sparsegpt")
LAYER_RATIOS = ("uniform", "owl", "global")
RECONSTRUCT = ("auto", "off", "obs", "least_squares")
_SAMPLE = 20_000
"""Scores of each layer that a global threshold is found from."""
_ROWS = 128
"""Rows of the product that shows what zeros are worth on this machine."""


@dataclass(frozen=True)
class Prune(Pass):
    """Set weights of ``MatMul``, ``Gemm`` and ``Conv`` to zero (survey, section 4.3).

    The result has the shape that it had: it is smaller only where zeros are stored in fewer bytes and faster only where
    a kernel leaves them out. ONNX Runtime's kernels on the CPU do not; the report then shows what a product with zeros
    takes on this machine. For a model that is faster there, see ``PruneStructures``.

    Attributes:
        sparsity: share of the weights that become zero; a pattern such as ``"2:4"`` has its own.
        pattern: ``"unstructured"``, ``"2:4"`` (of 4 neighbouring input channels 2 stay; any N:M) or blocks such as
            ``"16x16"`` (output x input channels).
        metric: which weights go. ``"magnitude"``: the smallest. With calibration inputs ``"wanda"`` (Sun et al. 2024),
            ``"ria"`` (Zhang et al. 2024) and ``"sparsegpt"`` (Frantar and Alistarh 2023), in which the weights that
            stay make up for those that go. ``"auto"``: ``"sparsegpt"`` with calibration inputs, else ``"magnitude"``.
        reconstruct: whether the weights that stay move: ``"obs"`` as in SparseGPT, for the masks of other metrics, too;
            ``"least_squares"`` to the best there is for the mask; ``"off"``; ``"auto"`` is SparseGPT's own or none.
        layer_ratios: ``"uniform"``; ``"owl"``, less where a layer has outliers (Yin et al. 2024); ``"global"``, one
            threshold for the scores of all layers.
        ratios: (selector, sparsity) pairs, first match wins; a mapping is taken, too. 0 leaves a product alone.
        refine_mask: exchange weights of the mask where that brings the outputs nearer (DSnoT, Zhang et al. 2024).
        propagate: what is done about the errors of what comes before a product: ``"off"``, statistics are those of the
            model before it is pruned; ``"inputs"``, of the inputs that weights pruned before make, product after
            product (as the authors of Wanda and SparseGPT do); ``"errors"``, and weights first make up for the errors
            of their inputs (GPTAQ, Li et al. 2025); ``"auto"``, the last if there are calibration inputs and it can be
            done. Runs on the reference backend, and nothing is kept in the cache.
        permute: with N:M, input channels change places so that the pattern keeps more (RIA); what makes the channels is
            permuted with them, so that nothing is added to the graph.
        compare: weights of a row with each other (``"row"``), or of the whole matrix (``"matrix"``); ``"auto"`` is by
            row for ``"wanda"`` and ``"ria"``, whose authors compare the whole matrix, which is worse for SmolLM2 on all
            texts (``docs/pruning.md``).
        exponent: of the norm of an input channel with ``"ria"``: the more, the more the calibration text says.
        include: selectors of what to prune; every product if empty, the one that shares an embedding's table excepted.
        exclude: selectors of what to leave alone.

    Raises:
        OptionError: a value that does not exist, or options that do not go together.
        CalibrationError: (when run) a metric that looks at inputs, without any.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.SPARSIFY
    approximate = True

    sparsity: float = 0.5
    pattern: str = "unstructured"
    metric: str = "auto"
    reconstruct: str = "auto"
    layer_ratios: str = "uniform"
    ratios: Mapping[str, float] | Sequence[tuple[str, float]] = ()
    refine_mask: bool = False
    propagate: str = "off"
    permute: bool = False
    compare: str = "auto"
    exponent: float = 0.5
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, choices in (
            ("metric", METRICS),
            ("layer_ratios", LAYER_RATIOS),
            ("reconstruct", RECONSTRUCT),
            ("compare", ("auto", "row", "matrix")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise OptionError(f"{name}={value!r} does not exist", where="Prune", fix=nearest(str(value), choices))
        propagation.check(self.propagate, "Prune")
        if self.propagate not in ("off", "auto") and self.metric == "magnitude" and self.reconstruct in ("auto", "off"):
            raise OptionError(
                "propagate looks at inputs, metric='magnitude' at none", where="Prune", fix="leave one of them out"
            )
        given = self.ratios.items() if isinstance(self.ratios, Mapping) else self.ratios
        pairs = tuple((str(text), float(share)) for text, share in given)
        object.__setattr__(self, "ratios", pairs)
        for share in (self.sparsity, *(share for _, share in pairs)):
            if not 0 <= share < 1:
                raise OptionError(f"sparsity={share!r} is no share of weights below 1", where="Prune", fix="use 0.5")
        if self.exponent < 0 or (self.exponent != 0.5 and self.metric != "ria"):
            raise OptionError(
                f"exponent={self.exponent!r} cannot be: it is 0 or more, and for metric='ria'",
                where="Prune",
                fix="use 0.5, or 1 to weigh inputs as Wanda does",
            )
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all((*self.include, *self.exclude, *(text for text, _ in pairs)))
        pattern = parse(self.pattern)
        prescribed = pattern.sparsity
        if prescribed is not None and (pairs or self.layer_ratios != "uniform"):
            raise OptionError(
                f"the pattern {pattern} prescribes {prescribed:.0%} zeros in every layer",
                where="Prune",
                fix="leave ratios and layer_ratios out, or use the unstructured pattern",
            )
        if self.permute and not pattern.group:
            raise OptionError(
                "permute is for patterns of groups", where="Prune", fix='use pattern="2:4", or leave permute out'
            )
        if pattern.block != (1, 1) and (self.refine_mask or self.metric == "sparsegpt"):
            raise OptionError(
                "blocks go with the metrics magnitude, wanda and ria, their mask is not refined",
                where="Prune",
                fix='use metric="wanda" with reconstruct="least_squares"',
            )

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Prune every product that is selected and can be; say of each other one why not."""
        return _Run(self, graph, context).run()


@dataclass
class _Chosen:
    """A weight and how sparse it is to be."""

    weight: Weight
    sparsity: float


class _Run:
    """One run of the pass over one graph."""

    def __init__(self, options: Prune, graph: Graph, context: Context) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.outcome, self.edit = Outcome(), Editor(graph, RULE)
        self.pattern = parse(options.pattern)
        self.metric = options.metric
        if self.metric == "auto":
            blocks = self.pattern.block != (1, 1)
            self.metric = ("wanda" if blocks else "sparsegpt") if context.has_calibration else "magnitude"
        reconstruct = options.reconstruct
        self.reconstruct = ("obs" if self.metric == "sparsegpt" else "off") if reconstruct == "auto" else reconstruct
        # With the error carried on, groups must stay together; single columns go best in the order of their inputs.
        self.order: gptq.Order = "none"
        self.inputs: Inputs | None = None
        self.zeros = self.weights = 0

    def run(self) -> Outcome:
        chosen, convolutions = self._choose()
        hessians = self.metric == "sparsegpt" or self.reconstruct != "off"
        moments = self.options.refine_mask
        data = hessians or moments or self.metric != "magnitude"
        mode = propagation.resolved(self.options.propagate, self.context)
        if self.options.permute:
            reorder(self.graph, self.edit, self._ranked(chosen), self.pattern, self.outcome)
        if data:
            # Statistics are taken of the graph as it is, before the first weight is replaced.
            fit = [item.weight for item in chosen if Inputs.obstacle(item.weight) is None]
            # Shares of layers are found out of all inputs at once: these cannot be measured in order.
            if mode == "off" or self.options.layer_ratios != "uniform":
                self.inputs = Inputs(fit, self.context, hessians=hessians, moments=moments)
        self._distribute(chosen)
        if not data and mode not in ("off", "auto"):
            raise without_data("Prune(propagate=...)")
        if data and mode != "off":
            inputs = self.inputs = Inputs(
                fit, self.context, hessians=hessians, moments=moments, propagate=mode, outcome=self.outcome
            )
            chosen.sort(key=lambda item: inputs.rank(item.weight))
        for done, item in enumerate(chosen):
            self.context.progress(done, len(chosen), f"{self.metric} {item.weight.value.name}")
            if self.inputs is not None and (reason := Inputs.obstacle(item.weight)) is not None:
                self.outcome.skipped(where(item.weight), reason)
            elif item.sparsity <= 0:
                self.outcome.skipped(where(item.weight), "its ratio is 0")
            else:
                self._prune(item)
        for node, sparsity in convolutions:
            self._convolution(node, sparsity, data)
        self._report()
        return self.outcome

    def _choose(self) -> tuple[list[_Chosen], list[tuple[onnx_ir.Node, float]]]:
        """What is selected and can be pruned; remarks for the rest."""
        options, targets = self.options, find(self.graph)
        include, exclude = selectors.parse_all(options.include), selectors.parse_all(options.exclude)
        assert not isinstance(options.ratios, Mapping)
        shares = [(selectors.parse(text), share) for text, share in options.ratios]
        nodes = [node for weight in targets.weights for node in weight.products]
        nodes += [node for node, _ in targets.others]
        selectors.require_matches([*include, *exclude, *(s for s, _ in shares)], nodes, "products")
        chosen: list[_Chosen] = []
        for weight in targets.weights:
            if not weight.products:
                continue
            share, reason = self._share(weight.products, include, exclude, shares)
            if reason is None:
                reason = weight.obstacle or self.pattern.obstacle(*weight.channels)
            if reason is None and weight.tables and not include:
                reason = "an embedding reads the weight, too; include it by name to prune it"
            if reason is None:
                chosen.append(_Chosen(weight, share))
            else:
                self.outcome.skipped(where(weight), reason, weights=weight.size)
        convolutions = []
        for node, _ in targets.others:
            share, reason = self._share([node], include, exclude, shares)
            tensor = tensor_of(node.inputs[1]) if len(node.inputs) > 1 else None
            if reason is None and (not is_op(node, "Conv") or tensor is None):
                reason = f"only constant weights of MatMul, Gemm and Conv are pruned, not those of this {node.op_type}"
            if reason is None and tensor is not None:
                reason = self.pattern.obstacle(*_matrix_of(tensor).shape)
            if reason is None:
                convolutions.append((node, share))
            else:
                self.outcome.skipped(module_path(node), reason)
        return chosen, convolutions

    def _share(
        self,
        nodes: Sequence[onnx_ir.Node],
        include: Sequence[Selector],
        exclude: Sequence[Selector],
        shares: Sequence[tuple[Selector, float]],
    ) -> tuple[float, str | None]:
        wanted = [
            (not include or selectors.first(include, node) is not None) and selectors.first(exclude, node) is None
            for node in nodes
        ]
        if not any(wanted):
            return 0, "not selected"
        if not all(wanted):
            return 0, f"shared with {module_path(nodes[wanted.index(False)])}, which is not selected"
        if self.pattern.sparsity is not None:
            return self.pattern.sparsity, None
        for selector, share in shares:
            if any(selector.matches(node) for node in nodes):
                return share, None
        return self.options.sparsity, None

    def _scores(self, weight: Weight, matrix: Array) -> Array:
        """What is compared with other layers, and within one by the metrics that are scores."""
        if self.metric == "magnitude" or self.inputs is None:
            return criteria.magnitude(matrix)
        if self.metric == "ria":
            return criteria.ria(matrix, self.inputs.norms(weight), self.options.exponent)
        return criteria.wanda(matrix, self.inputs.norms(weight))

    def _ranked(self, chosen: Sequence[_Chosen]) -> list[tuple[Weight, Array]]:
        """Scores that channels are permuted by."""
        fit = [item.weight for item in chosen if Inputs.obstacle(item.weight) is None]
        if self.metric != "magnitude":
            self.inputs = Inputs(fit, self.context, hessians=False, moments=True)
        return [(weight, self._scores(weight, _read(weight))) for weight in fit]

    def _distribute(self, chosen: Sequence[_Chosen]) -> None:
        """Set the sparsity of each layer that no selector has."""
        kind = self.options.layer_ratios
        free = [i for i in chosen if i.sparsity == self.options.sparsity and Inputs.obstacle(i.weight) is None]
        if kind == "uniform" or len(free) < 2:
            return
        sizes = [item.weight.size for item in free]
        if kind == "owl":
            shares = [criteria.outlier_share(self._scores(i.weight, _read(i.weight))) for i in free]
            found = ratios.owl(shares, sizes, self.options.sparsity)
        else:
            generator = np.random.default_rng(0)
            samples = []
            for item in free:
                scores = self._scores(item.weight, _read(item.weight)).reshape(-1)
                samples.append(scores[generator.integers(0, scores.size, min(_SAMPLE, scores.size))])
            limit = ratios.threshold(samples, sizes, self.options.sparsity)
            found = [float(np.mean(sample < limit)) for sample in samples]
        for item, share in zip(free, found, strict=True):
            item.sparsity = min(share, 0.99)

    def _compare(self) -> Compare:
        if self.options.compare == "auto":
            return "row" if self.metric in ("wanda", "ria") else "matrix"
        return "row" if self.options.compare == "row" else "matrix"

    def _prune(self, item: _Chosen) -> None:
        weight = item.weight
        tensor = tensor_of(weight.value)
        assert tensor is not None
        matrix = _read(weight)
        if not np.isfinite(matrix).all():
            raise ModelError(
                "a weight is infinite or not a number",
                where=f"weight {weight.value.name!r}",
                fix="exclude it, or repair the model",
            )
        figures: dict[str, Any] = {}
        if self.inputs is not None:
            matrix = self.inputs.target(weight, matrix)
        keep: Array | None = None
        if self.metric != "sparsegpt" or self.options.refine_mask:
            if self.metric == "sparsegpt":
                _, feedback = self._hessian(weight)
                keep = sparsegpt.prune(matrix, feedback, self.pattern, item.sparsity) != 0
            else:
                keep = select(self._scores(weight, matrix), self.pattern, item.sparsity, self._compare())
            if self.options.refine_mask:
                assert self.inputs is not None
                moments = self.inputs.moments(weight)
                refined = dsnot.refine(matrix, keep, moments[0], moments[1], self.pattern)
                figures["exchanged"] = int((refined & ~keep).sum())
                keep = refined
        result = matrix * keep if keep is not None else matrix
        if self.reconstruct == "obs" or keep is None:
            _, feedback = self._hessian(weight)
            result = sparsegpt.prune(matrix, feedback, self.pattern, item.sparsity, keep=keep)
        if self.reconstruct == "least_squares":
            hessian, _ = self._hessian(weight)
            result = least_squares.fit(matrix, result, result != 0 if keep is None else keep, hessian)
        if self.reconstruct != "off" or self.metric == "sparsegpt":
            hessian, _ = self._hessian(weight)
            power = gptq.output_error(matrix, hessian)
            if power > 0:
                figures["output_error"] = float(f"{gptq.output_error(result - matrix, hessian) / power:.3g}")
        self._store(weight, tensor, result)
        zeros = int(result.size - np.count_nonzero(result))
        self._tell(where(weight), weight.products, zeros, result.size, figures)

    def _hessian(self, weight: Weight) -> tuple[Array, gptq.Feedback]:
        assert self.inputs is not None
        return self.inputs.hessian(weight, self.order)

    def _store(self, weight: Weight, tensor: onnx_ir.TensorProtocol, result: Array) -> None:
        array = np.ascontiguousarray(result.T if weight.layout == "kn" else result).astype(tensor.dtype.numpy())
        name = weight.value.name or "weight"
        if self.inputs is not None:
            self.inputs.replace(weight, array)
        self.edit.at(weight.products[0])
        take_place(
            self.edit, weight, self.edit.initializer(onnx_ir.Tensor(array, dtype=tensor.dtype), f"{name}.pruned")
        )

    def _convolution(self, node: onnx_ir.Node, sparsity: float, data: bool) -> None:
        tensor, old = tensor_of(node.inputs[1]), node.inputs[1]
        assert tensor is not None and old is not None
        if data and self.options.metric != "auto":
            self.outcome.skipped(module_path(node), f"convolutions are pruned by magnitude only, not by {self.metric}")
            return
        array = np.asarray(tensor.numpy(), np.float32)
        keep = select(criteria.magnitude(_matrix_of(tensor)), self.pattern, sparsity, "matrix")
        moved = np.moveaxis(array, 1, -1)
        result = np.ascontiguousarray(np.moveaxis(moved * keep.reshape(moved.shape), -1, 1)).astype(
            tensor.dtype.numpy()
        )
        new = self.edit.at(node).initializer(onnx_ir.Tensor(result, dtype=tensor.dtype), f"{old.name}.pruned")
        node.replace_input_with(1, new)
        self.edit.drop_initializer(old)
        self._tell(module_path(node), [node], int(result.size - np.count_nonzero(result)), result.size, {})

    def _tell(
        self, path: str, nodes: Sequence[onnx_ir.Node], zeros: int, size: int, figures: Mapping[str, Any]
    ) -> None:
        share = zeros / size
        for node in nodes:
            node.metadata_props[SPARSITY] = f"{self.pattern} {share:.4f}"
        self.zeros += zeros
        self.weights += size
        self.outcome.count(RULE)
        text = f"{self.metric}, {self.pattern}: {share:.1%} of {size} weights are zero"
        self.outcome.applied(path, text, sparsity=round(share, 4), weights=size, **figures)

    def _report(self) -> None:
        if not self.weights:
            self.outcome.missed("", "nothing was pruned: no product is selected that can be")
            return
        share = self.zeros / self.weights
        count = self.outcome.rewrites[RULE]
        values: dict[str, Any] = {"sparsity": round(share, 4), "weights": self.weights, "zeros": self.zeros}
        self.outcome.applied("", f"{share:.1%} of the weights of {count} products are zero", **values)
        if self.context.target not in ("onnxruntime", "onnx"):
            return
        text = "zeros alone make nothing faster here: ONNX Runtime's products multiply by them"
        if self.context.cost is not None:
            size = (_ROWS, 1024, 1024)
            dense = self.context.cost(*size, None)
            ratio = self.context.cost(*size, Zeros(str(self.pattern), round(share, 2))) / dense
            text += (
                f"; measured on this machine, a product with these zeros takes {ratio:.2f} times the dense one's time"
            )
            values["time_ratio"] = round(ratio, 3)
        if self.pattern.block[0] >= NARROWEST and self.pattern.block[1] == 1:
            text += "; CompactZeros divides products into panels that leave them out"
        self.outcome.missed("", f"{text}; PruneStructures removes whole channels, which does pay", **values)


def _read(weight: Weight) -> Array:
    """The weights as float32 [N, K]."""
    tensor = tensor_of(weight.value)
    assert tensor is not None
    array = tensor.numpy()
    return np.ascontiguousarray(array.T if weight.layout == "kn" else array, np.float32)


def _matrix_of(tensor: onnx_ir.TensorProtocol) -> Array:
    """The weights of a convolution [O, I, ...] as [O x ..., I]."""
    moved = np.moveaxis(np.asarray(tensor.numpy(), np.float32), 1, -1)
    return np.ascontiguousarray(moved.reshape(-1, moved.shape[-1]))
