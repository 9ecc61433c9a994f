"""``Quantize``: weights of products and embeddings to 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir

from ...ir.errors import OptionError, UnsupportedError, nearest
from ...ir.graph import Graph, module_path
from .. import propagation, selectors
from ..base import Context, Outcome, Pass, Stage, without_data
from . import origin
from .calibrated import Calibrated
from .choice import auto, sensitivity
from .choice.options import Wishes
from .inputs import activations, alike, histogram, static, zero_points
from .inputs.histogram import Range
from .inputs.outliers import Outliers
from .methods import refine
from .plan import Plan, Totals, select
from .replace import where
from .rounding import Rounding
from .scheme import NAMED, Scheme, override, resolve
from .targets import Weight, find

METHODS = ("auto", "gptq", "clip", "signround", "learned_clip", "rtn")
_FITTED = ("gptq", "clip", "signround", "learned_clip")
"""Methods that calibration inputs are needed for."""
_OLDEST_OPSET = 21
"""The first opset whose DequantizeLinear takes groups and 4-bit codes."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Round the weights of ``MatMul``, ``Gemm`` and embeddings to 2 to 8 bits (survey, section 3.3.1).

    The graph gets ``DequantizeLinear`` nodes over the codes. Without calibration inputs nothing is computed until the
    model is written or run, but for a look whether weights were rounded to a grid before. An embedding shared with the
    language model's head stays one shared weight, rounded for the inputs of the head.

    Attributes:
        scheme: bits of weights and activations, with the group size and symmetry that were measured best:
            ``"w4a16"``, ``"w8a16"``; inputs of products quantized, too, token by token: ``"w8a8"``, and with weights
            in groups ``"w4a8"`` and ``"w8a8_groups"``; with one scale a tensor from calibration inputs, convolutions
            included: ``"w8a8_static"``; other number formats: ``"nf4"``, ``"fp8"``.
        bits: 2, 3, 4 or 8 instead of the scheme's.
        group_size: weights that share a scale: 16, 32, 64, 128, 256; 0 or -1 for a whole channel.
        symmetric: whether the zero point is the middle of the range.
        offsets: each group has a float offset instead of an integer zero point (HQQ's zero points, llama.cpp's Q4_1),
            added by a thin product beside the kernel: weights that such a format has rounded before lose nothing.
            Embeddings, and pruned weights, keep zero points.
        float_inputs: 4-bit products take their inputs as they are; the fast kernel rounds them to 8 bits a block.
        half_scales: scales and offsets in float16, two bytes a group less in the file; the scheme "auto" does it for
            ``objective="size"``.
        include: selectors of what to quantize; everything if empty.
        exclude: selectors of what to leave float.
        overrides: (selector, change) pairs, first match wins; a change is a scheme name, a mapping of ``bits``,
            ``group_size``, ``symmetric``, ``offsets``, ``float_inputs``, ``half_scales``, or ``"float"``. A mapping
            from selectors to changes is taken, too.
        method: ``"rtn"`` rounds to nearest; ``"gptq"`` rounds for the calibration inputs (Frantar et al. 2022);
            ``"clip"`` rounds to nearest in ranges searched for the inputs (Lin et al. 2024), ``"learned_clip"`` in
            ranges learned for them (OmniQuant, Shao et al. 2023); ``"signround"`` learns which way to round, too (Cheng
            et al. 2023), and loses more than ``"gptq"`` with its refinement; ``"auto"`` takes
            ``"gptq"`` if there are any, and nearest for 8 bits in groups, which leave GPTQ nothing to gain
            (SmolLM2-135M: perplexity 1.005 by nearest, 1.011 by GPTQ).
        rounds: after GPTQ, how often codes are taken once more given all others (Behdin et al. 2023) and scales fitted
            to them; 0 leaves what GPTQ found.
        propagate: what is done about the errors of what comes before a product, by the methods that look at inputs:
            ``"off"``, statistics are those of the float model; ``"inputs"``, of the inputs that weights rounded before
            make, product after product (as in GPTQ); ``"errors"``, and weights first make up for the errors of their
            inputs (GPTAQ, Li et al. 2025); ``"auto"``, the last if there are calibration inputs and it can be done.
            Runs on the reference backend, and nothing is kept in the cache.
        keep_columns: so many input channels of each product, those that rounding hurts most, stay in floating point in
            a thin product beside it (OWQ, Lee et al. 2024); calibration inputs are needed.
        keep_in: selectors of the products that keep columns; all if empty.
        ranges: how the range of a static quantization of activations is chosen: ``"minmax"``, ``"mse"``, ``"kl"`` or
            ``"percentile"``; ``"auto"`` keeps 99.999 % between
            convolutions, and all elsewhere.
        outliers: with activations quantized by token and weights by channel, input channels that exceed this magnitude
            on the calibration inputs stay in floating point (LLM.int8(), Dettmers et al. 2022, which uses 6).
        fixed_inputs: with activations quantized by token, inputs that a normalization made get one scale from
            calibration inputs instead where their square error grows by no more than this factor, which takes less
            time; if not given, 2.5 where there are calibration inputs and a method looks at them; 0 leaves each token
            its scale.
        fixed_zero_points: with activations quantized by token, inputs get one zero point for all tokens from
            calibration inputs where their square error grows by no more than this factor, which takes less time; if not
            given, 1.4 where ``fixed_inputs`` has a default, too; 0 leaves each token its own.
        budget: with the scheme ``"auto"``, which chooses a scheme for each product (or leaves it float): how much the
            model may lose on the evaluation inputs, or on those for calibration if there are none. For a language
            model, by how much perplexity may grow (0.05 is 5 %); for others, the relative error of the outputs.
        objective: what ``"auto"`` makes small: ``"time"``, by a table of costs measured on this machine, or ``"size"``.
        prompt: tokens of a prompt (or of any input, if the model does not decode), for the time.
        generated: tokens decoded after a prompt, for the time; as many as the prompt if not given.
        candidates: names of schemes that ``"auto"`` may use; if empty all that have a kernel, 4 bits in groups of 64
            and of 32 among them.
        percentile: of the numbers that ``ranges="percentile"`` keeps below the upper end, in percent.

    Raises:
        OptionError: a scheme or value that no kernel takes.
        CalibrationError: (when run) a method that looks at inputs, ``keep_columns``, ``outliers`` or static activations
            without calibration inputs.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.QUANTIZE

    scheme: str = "w4a16"
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    offsets: bool | None = None
    float_inputs: bool | None = None
    half_scales: bool | None = None
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    overrides: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()
    method: str = "auto"
    rounds: int = refine.ROUNDS
    propagate: str = "off"
    keep_columns: int = 0
    keep_in: str | Sequence[str] = ()
    ranges: str = "auto"
    percentile: float = 99.99
    outliers: float | None = None
    fixed_inputs: float | None = None
    fixed_zero_points: float | None = None
    budget: float | None = None
    objective: str = "time"
    prompt: int = 128
    generated: int | None = None
    candidates: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(
                f"method={self.method!r} is no way to round", where="Quantize", fix=nearest(str(self.method), METHODS)
            )
        propagation.check(self.propagate, "Quantize")
        if self.propagate not in ("off", "auto") and self.method == "rtn":
            raise OptionError(
                "propagate looks at inputs, method='rtn' at none", where="Quantize", fix="leave one of them out"
            )
        if self.ranges not in ("auto", *histogram.METHODS):
            raise OptionError(
                f"ranges={self.ranges!r} is no way to choose a range",
                where="Quantize",
                fix=nearest(str(self.ranges), ("auto", *histogram.METHODS)),
            )
        if not 50 < self.percentile <= 100:
            raise OptionError(
                f"percentile={self.percentile!r} is not above 50 and up to 100", where="Quantize", fix="use 99.99"
            )
        for name, number in (("rounds", self.rounds), ("keep_columns", self.keep_columns)):
            if number < 0:
                raise OptionError(f"{name}={number!r} is negative", where="Quantize", fix="use 0, 1, 2 …")
        if self.outliers is not None and not self.outliers > 0:
            raise OptionError(f"outliers={self.outliers!r} is no magnitude", where="Quantize", fix="use 6.0")
        for name, usual in (("fixed_inputs", alike.LIMIT), ("fixed_zero_points", zero_points.LIMIT)):
            factor = getattr(self, name)
            if factor is not None and not factor >= 0:
                raise OptionError(
                    f"{name}={factor!r} is no factor of an error", where="Quantize",
                    fix=f"use {usual}, or 0 for one of its own for each token",
                )  # fmt: skip
            if factor and self.outliers is not None:
                raise OptionError(
                    f"outliers are taken out of inputs that are quantized by token, {name} quantizes them otherwise",
                    where="Quantize", fix="leave one out",
                )  # fmt: skip
        if self.keep_columns and self.method == "rtn":
            raise OptionError(
                "keep_columns needs calibration inputs, method='rtn' takes none", where="Quantize", fix="leave one out"
            )
        object.__setattr__(self, "candidates", tuple(self.candidates))
        self._check_auto()
        base = self.resolved
        pairs = self.overrides.items() if isinstance(self.overrides, Mapping) else self.overrides
        # Frozen and hashable: mappings become tuples.
        frozen = tuple((key, tuple(sorted(v.items())) if isinstance(v, Mapping) else v) for key, v in pairs)
        object.__setattr__(self, "overrides", frozen)
        for name in ("include", "exclude", "keep_in"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all(self.include)
        selectors.parse_all(self.exclude)
        selectors.parse_all(self.keep_in)
        self._overrides(base)

    def _check_auto(self) -> None:
        if self.scheme != auto.NAME:
            if self.budget is not None:
                raise OptionError("a budget is for the scheme 'auto'", where="Quantize", fix="leave it out")
            return
        if self.budget is None or not self.budget > 0:
            raise OptionError(
                f"the scheme 'auto' needs a budget, not {self.budget!r}",
                where="Quantize",
                fix="give what the model may lose, such as budget=0.05",
            )
        if self.objective not in auto.OBJECTIVES:
            raise OptionError(
                f"objective={self.objective!r} is not known",
                where="Quantize",
                fix=nearest(str(self.objective), auto.OBJECTIVES),
            )
        if self.prompt < 1 or (self.generated is not None and self.generated < 0):
            raise OptionError("prompt and generated are numbers of tokens", where="Quantize", fix="use 1 or more")
        if any(value is not None for name, value in self._fields.items() if name != "half_scales"):
            raise OptionError(
                "the scheme 'auto' chooses bits and groups itself", where="Quantize", fix="leave these options out"
            )
        for name in ("fixed_inputs", "fixed_zero_points"):
            if getattr(self, name):
                raise OptionError(
                    f"the scheme 'auto' leaves tokens their scales and zero points, {name} takes them",
                    where="Quantize", fix="leave it out",
                )  # fmt: skip
        for name in self.candidates:
            resolve(name)

    @property
    def resolved(self) -> Scheme:
        """The scheme of a weight that no override touches."""
        if self.scheme == auto.NAME:
            return NAMED["w4a16"]
        return resolve(self.scheme, **self._fields)

    @property
    def _fields(self) -> dict[str, Any]:
        """Fields of the scheme that the options change; None where they do not."""
        return {
            "bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric, "offsets": self.offsets,
            "float_inputs": self.float_inputs, "half_scales": self.half_scales,
        }  # fmt: skip

    @property
    def _fitting(self) -> str:
        """The method for weights that are rounded for calibration inputs."""
        return self.method if self.method in _FITTED else "gptq"

    def _wishes(self) -> Wishes:
        assert self.budget is not None
        half = self.objective == "size" if self.half_scales is None else self.half_scales
        return Wishes(self.budget, self.objective, self.prompt, self.generated, tuple(self.candidates), half)

    def _overrides(self, base: Scheme) -> list[tuple[selectors.Selector, Scheme | None]]:
        assert not isinstance(self.overrides, Mapping)
        return [
            (selectors.parse(key), override(base, dict(change) if isinstance(change, tuple) else change))
            for key, change in self.overrides
        ]

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Quantize every weight that is selected and can be; say of each other one why not."""
        outcome, totals = Outcome(), Totals()
        targets = find(graph)
        base = self.resolved
        plan = Plan(selectors.parse_all(self.include), selectors.parse_all(self.exclude), self._overrides(base), base)
        candidates = [node for weight in targets.weights for node in weight.users]
        candidates += [node for node, _ in targets.others]
        plan.check(candidates)
        keep_in = selectors.parse_all(self.keep_in)
        selectors.require_matches(keep_in, candidates, "products and embeddings")
        chosen = select(targets, plan, outcome, totals)
        rounder: Calibrated | None = None
        known: dict[onnx_ir.Value, Range] = {}
        zeros: dict[onnx_ir.Value, int] = {}
        if self.scheme == auto.NAME:
            chosen, rounder = self._choose(graph, chosen, plan, context, outcome, totals)
        elif self.outliers is None:
            chosen, known, zeros = self._fix_inputs(chosen, context, outcome)
        convolutions, others = plan.split_others(targets, graph, totals)
        origin.tell(outcome, [(weight, scheme) for weight, scheme in chosen if scheme.activations is None])
        opset = graph.opset_imports.get("", 1)
        if (chosen or convolutions) and opset < _OLDEST_OPSET:
            raise UnsupportedError(
                f"the model has opset {opset}, quantized weights need {_OLDEST_OPSET}",
                where=where(chosen[0][0]) if chosen else module_path(convolutions[0]),
                fix="convert the file to a newer opset first (onnx.version_converter)",
            )
        # Statistics are taken of the graph as it is, before the first weight is replaced.
        fitted, rounder = self._fit(graph, chosen, rounder, context, outcome)
        by_token = [weight for weight, scheme in chosen if activations.by_token(weight, scheme)]
        outliers = Outliers(by_token, self.outliers, context) if self.outliers is not None else None
        fixed = [n for weight, s in chosen if s.activations and not s.activations.dynamic for n in weight.products]
        ranges = static.Ranges(graph, convolutions, fixed, context, self.ranges, self.percentile, known)
        rounding = Rounding(
            graph, context, outcome, totals, rounder, fitted, outliers, self.keep_columns, keep_in
        )  # fmt: skip
        rounding.run(chosen)
        products = [n for weight, s in chosen if s.activations and s.activations.dynamic for n in weight.products]
        inputs = activations.quantize_inputs(rounding.edit, products, rounding.order, outliers, zeros)
        if outliers is not None and self.outliers is not None:
            outliers.tell(outcome, self.outliers)
        for nodes in inputs.values():
            outcome.count(activations.RULE)
            outcome.applied(module_path(nodes[0]), f"input quantized by token, once for {len(nodes)} products")
        for figures in static.apply(rounding.edit, ranges, outcome):
            totals.products += 1
            totals.weights += figures["weights"]
            totals.bytes += figures["bytes"]
        for node, reason in others:
            outcome.skipped(module_path(node), reason, op=node.op_type)
        totals.report(outcome)
        return outcome

    def _choose(
        self,
        graph: Graph,
        chosen: Sequence[tuple[Weight, Scheme]],
        plan: Plan,
        context: Context,
        outcome: Outcome,
        totals: Totals,
    ) -> tuple[list[tuple[Weight, Scheme]], Calibrated | None]:
        """Schemes by measurement for all weights that no override has one for, and what rounds them."""
        auto.require(context)
        weights = [weight for weight, _ in chosen]
        sensitivity.prepare(weights, context)
        rounder = None
        if self.method != "rtn":
            rounder = Calibrated(graph, weights, context, self._fitting, self.rounds)
            rounder.remember()
        given = [(weight, scheme) for weight, scheme in chosen if plan.overridden(weight.users)]
        free = [weight for weight in weights if not plan.overridden(weight.users)]
        found, left_float = auto.choose(free, context, self._wishes(), rounder, outcome)
        totals.left_weights += left_float
        return [*given, *found], rounder

    def _fix_inputs(
        self, chosen: list[tuple[Weight, Scheme]], context: Context, outcome: Outcome
    ) -> tuple[list[tuple[Weight, Scheme]], dict[onnx_ir.Value, Range], dict[onnx_ir.Value, int]]:
        """What inputs quantized by token can share: ranges and zero points, and the schemes that weights have then."""
        limit = self._growth(self.fixed_inputs, alike.LIMIT, context)
        limit_zeros = self._growth(self.fixed_zero_points, zero_points.LIMIT, context)
        rounded = [] if self.method == "rtn" or self._propagates(context) else [weight for weight, _ in chosen]
        moments = Calibrated.request(rounded)
        known: dict[onnx_ir.Value, Range] = {}
        zeros: dict[onnx_ir.Value, int] = {}
        if self.fixed_inputs and not alike.candidates(chosen):
            outcome.missed("", "fixed_inputs: no input behind a normalization is quantized by token")
        if limit:
            also = zero_points.requests(chosen) if limit_zeros else []
            chosen, known = alike.fix(chosen, limit, context, outcome, moments, *also)
        if self.fixed_zero_points and not activations.inputs_by_token(chosen):
            outcome.missed("", "fixed_zero_points: no input is quantized by token")
        if limit_zeros:
            zeros = zero_points.fix(chosen, limit_zeros, context, outcome, moments)
        return chosen, known, zeros

    def _growth(self, given: float | None, usual: float, context: Context) -> float:
        """By how much an input's error may grow for what all tokens share; 0 where each token keeps its own."""
        if given is not None:
            return given
        measures = context.has_calibration and context.target != "triton" and self.method != "rtn"
        return usual if measures else 0.0

    def _propagates(self, context: Context) -> bool:
        return self.method != "rtn" and propagation.resolved(self.propagate, context) != "off"

    def _fit(
        self,
        graph: Graph,
        chosen: list[tuple[Weight, Scheme]],
        rounder: Calibrated | None,
        context: Context,
        outcome: Outcome,
    ) -> tuple[list[Weight], Calibrated | None]:
        """The weights that are rounded for calibration inputs, and what does it; ``chosen`` gets into its order."""
        asked = self.method in _FITTED or self.keep_columns > 0 or self.outliers is not None
        fitted = [w for w, scheme in chosen if scheme.format == "int" and (asked or not scheme.is_fine)]
        data = asked or (self.method == "auto" and context.has_calibration and bool(fitted))
        propagates = self._propagates(context)
        if data and (rounder is None or propagates):
            rounder = Calibrated(graph, fitted, context, self._fitting, self.rounds, self.propagate, outcome)
        rounder = rounder if data else None
        if propagates:
            if rounder is None and not context.has_calibration:
                raise without_data("Quantize(propagate=...)")
            if rounder is not None:
                chosen.sort(key=lambda pair: rounder.rank(pair[0]))
            elif self.propagate != "auto":
                outcome.missed("", "no error is propagated: every weight is rounded to nearest")
        return fitted, rounder
