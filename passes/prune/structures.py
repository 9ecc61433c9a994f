"""``PruneStructures``: channels, neurons and heads go, and the model's matrices get smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir

from ...ir.errors import OptionError, nearest
from ...ir.graph import Graph
from ...ir.infer import infer_graph
from ...ir.rewrite import Editor
from .. import selectors
from ..base import Context, Outcome, Pass, Stage, without_data
from . import importance
from .allocate import Steps, globally, share_of, uniformly
from .analyse import analyse
from .biases import Biases
from .coupling import Coupling
from .grids import Array
from .importance import Order
from .readers import Readers
from .remove import gone, remove
from .savings import MEASURES, Savings
from .units import Group, Place, find

RULE = "remove structures"
METRICS = ("auto", "magnitude", "wanda", "flap", "taylor", "fisher", "obs")
SCORES = ("magnitude", "wanda", "flap")
"""Metrics that are sums over channels: ``"standardized"`` is for these."""
COMPENSATE = ("auto", "off", "bias", "least_squares")
DISTRIBUTIONS = ("auto", "global", "standardized", "uniform")
HEADS = ("auto", "query", "shared")
WHAT = ("all", "channels", "heads")


@dataclass(frozen=True)
class PruneStructures(Pass):
    """Remove what a model can do without: neurons, attention heads, channels (survey, section 4.2.2 and 4.3).

    What must go together is found by data flow, in any model: the rows of one matrix with the columns of the next, the
    three products of a gated layer, a head in queries, keys, values and output, channels that a residual joins.
    Weights, biases, normalizations and target shapes shrink; no mask is left. The model is faster wherever it runs.

    Attributes:
        ratio: share to remove, of what ``of`` says.
        of: ``"parameters"``, ``"flops"`` or ``"time"`` (of products by a table measured on this machine).
        what: ``"all"``, ``"channels"`` (neurons and channels of convolutions) or ``"heads"``.
        metric: which go. ``"magnitude"``: those of the smallest weights. With calibration inputs: ``"wanda"``, by
            weights and inputs; ``"flap"``, by how much they fluctuate (An et al. 2024); ``"obs"``, those whose loss the
            others make up for best (Optimal Brain Surgeon; ZipLM, Kurtic et al. 2023), for convolutions as ``"flap"``;
            ``"fisher"`` and ``"taylor"``, those that the loss feels least, by the mean square or the mean size of its
            derivative by a factor on the unit (Kwon et al. 2022, equation 8; LLM-Pruner, Ma et al. 2023, equation 3,
            to first order). With calibration inputs ``"auto"`` is ``"fisher"`` for language models (SmolLM2-135M
            without a tenth of its weights, perplexity against float32: 1.11 by ``"fisher"``, 1.13 by ``"obs"``, 1.36 by
            ``"flap"``, 2000 by ``"magnitude"``) and ``"obs"`` for others (MiniLM without a fifth of its arithmetic,
            cosine with float32: 0.92 by ``"obs"``, 0.91 by ``"flap"``, 0.78 by ``"magnitude"``), else ``"magnitude"``.
        compensate: what the products behind do about it. ``"least_squares"``: their weights are fitted anew;
            ``"bias"``: the mean of what is lost is added (FLAP), an addition where there was none; ``"auto"``: least
            squares for products and a bias for convolutions that have one, if there are calibration inputs.
        distribution: ``"global"`` takes where it costs least, ``"uniform"`` the same share everywhere,
            ``"standardized"`` the units of least score, scores of each place standardized (FLAP, section 4.2: for
            MiniLM worse, see ``docs/pruning.md``); ``"auto"``: uniform for magnitudes, which cannot be compared across
            layers, else global. What a place costs is weighed by the loss's gradients with ``"obs"``, ``"fisher"`` and
            ``"taylor"``.
        heads: where heads of queries share one of keys: ``"query"`` removes queries evenly, ``"shared"`` a head of keys
            with its queries, ``"auto"`` the first where that can be.
        multiple: of channels that stay, for the kernels' sake.
        most: share of the units of one place that may go.
        ratios: (selector, share of units) pairs for what a selector matches, apart from ``ratio``; a mapping is taken.
        include: selectors of what may lose units; everything if empty.
        exclude: selectors of what must not.

    Raises:
        OptionError: a value that does not exist.
        CalibrationError: (when run) a metric or compensation that needs calibration inputs, without any.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.PRUNE
    approximate = True

    ratio: float = 0.2
    of: str = "parameters"
    what: str = "all"
    metric: str = "auto"
    compensate: str = "auto"
    distribution: str = "auto"
    heads: str = "auto"
    multiple: int = 8
    most: float = 0.8
    ratios: Mapping[str, float] | Sequence[tuple[str, float]] = ()
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, choices in (
            ("of", MEASURES),
            ("what", WHAT),
            ("metric", METRICS),
            ("compensate", COMPENSATE),
            ("distribution", DISTRIBUTIONS),
            ("heads", HEADS),
        ):
            value = getattr(self, name)
            if value not in choices:
                fix = nearest(str(value), choices)
                raise OptionError(f"{name}={value!r} does not exist", where="PruneStructures", fix=fix)
        given = self.ratios.items() if isinstance(self.ratios, Mapping) else self.ratios
        pairs = tuple((str(text), float(share)) for text, share in given)
        object.__setattr__(self, "ratios", pairs)
        for name, number in (("ratio", self.ratio), *((f"ratios: {text}", share) for text, share in pairs)):
            if not 0 <= number < 1:
                raise OptionError(
                    f"{name}={number!r} is no share below 1", where="PruneStructures", fix="use 0.2 for a fifth"
                )
        if self.multiple < 1 or not 0 < self.most < 1:
            raise OptionError(
                f"multiple={self.multiple!r} must be 1 or more, most={self.most!r} between 0 and 1",
                where="PruneStructures",
                fix="use multiple=8, most=0.8",
            )
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all((*self.include, *self.exclude, *(text for text, _ in pairs)))
        if self.distribution == "standardized" and self.metric not in SCORES:
            raise OptionError(
                f"metric={self.metric!r} is of losses, which are compared as they are",
                where="PruneStructures", fix='use metric="flap", or distribution="global"',
            )  # fmt: skip

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Remove what costs least; say of all else why it stays."""
        return _Run(self, graph, context).run()


class _Run:
    """One run of the pass over one graph."""

    def __init__(self, options: PruneStructures, graph: Graph, context: Context) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.outcome = Outcome()
        self.felt: dict[int, Array] = {}
        data = context.has_calibration
        self.metric = options.metric
        if self.metric == "auto":
            decoder = context.decodes and context.influence is not None
            self.metric = "fisher" if decoder else "obs" if data else "magnitude"
        self.distribution = options.distribution
        if self.distribution == "auto":
            self.distribution = "uniform" if self.metric == "magnitude" else "global"
        self.compensate = options.compensate
        if self.compensate == "auto":
            self.compensate = "both" if data else "off"

    def run(self) -> Outcome:
        infer_graph(self.graph)
        coupling = analyse(self.graph)
        heads: Literal["auto", "query", "shared"] = self.options.heads  # type: ignore[assignment]
        found = find(coupling, heads)
        for where, reason, count in found.misses:
            self.outcome.missed(where, f"{count} channels stay: {reason}", channels=count)
        groups, fixed = self._selected(coupling, found.groups)
        if not groups:
            self.outcome.missed("", "nothing can be removed: no channels, neurons or heads are free to go")
            return self.outcome
        readers = Readers(coupling, groups)
        if self.metric != "magnitude" or self.compensate != "off":
            squares = self.compensate in ("both", "least_squares") or self.metric == "obs"
            means = self.metric in ("wanda", "flap") or self.compensate == "bias"
            readers.measure(self.context, hessians=squares, moments=means or not squares)
        self._influence(groups)
        orders = [self._order(group, readers, at, len(groups)) for at, group in enumerate(groups)]
        savings = Savings(coupling, self.options.of, self.context)
        steps = self._allocate(groups, orders, fixed, savings)
        chosen = [
            [unit for step in order.steps[:count] for unit in step] for order, count in zip(orders, steps, strict=True)
        ]
        atoms = gone(coupling, [r for g, units in zip(groups, chosen, strict=True) for u in units for r in g.roots[u]])
        self._tell(groups, chosen, orders, steps, savings, atoms)
        if atoms.any():
            replaced = self._fitted(groups, chosen, readers)
            edit = Editor(self.graph, RULE)
            biases = Biases(edit, coupling, readers, atoms)
            if self.compensate in ("both", "bias"):
                places = [p for g, units in zip(groups, chosen, strict=True) if units for p in g.reads]
                biases.prepare(places, convolutions_only=self.compensate == "both")
            remove(edit, coupling, atoms, replaced)
            biases.add(self.outcome)
        return self.outcome

    def _selected(self, coupling: Coupling, groups: Sequence[Group]) -> tuple[list[Group], dict[int, float]]:
        """Groups that may lose units, and shares that a selector gives some of them, by their number."""
        options = self.options
        include, exclude = selectors.parse_all(options.include), selectors.parse_all(options.exclude)
        assert not isinstance(options.ratios, Mapping)
        shares = [(selectors.parse(text), share) for text, share in options.ratios]
        nodes = [_nodes(coupling, group) for group in groups]
        everything = [node for some in nodes for node in some]
        selectors.require_matches([*include, *exclude, *(s for s, _ in shares)], everything, "removable structures")
        chosen: list[Group] = []
        fixed: dict[int, float] = {}
        for group, mine in zip(groups, nodes, strict=True):
            if options.what != "all" and group.kind != options.what:
                self.outcome.skipped(group.where, f"its {len(group)} {group.kind} stay: only {options.what} go")
            elif (include and not _any(include, mine)) or _any(exclude, mine):
                self.outcome.skipped(group.where, f"its {len(group)} {group.kind} stay: not selected")
            else:
                share = next((share for s, share in shares if any(s.matches(node) for node in mine)), None)
                if share is not None:
                    fixed[len(chosen)] = share
                chosen.append(group)
        return chosen, fixed

    def _influence(self, groups: Sequence[Group]) -> None:
        """What the loss feels of each unit of each group, where it is asked for."""
        if self.metric not in ("obs", "fisher", "taylor"):
            return
        if self.context.influence is None:
            if self.metric != "obs":
                raise without_data("PruneStructures")
            return
        places = list(dict.fromkeys(place for group in groups for place in group.reads))
        rows = dict(zip(places, self.context.influence(places), strict=True))
        for group in groups:
            felt = sum(rows[place][:, group.axes[place]].sum(axis=2) for place in group.reads)
            size = np.abs if self.metric == "taylor" else np.square
            self.felt[id(group)] = size(np.asarray(felt, np.float64)).mean(axis=0)

    def _order(self, group: Group, readers: Readers, at: int, count: int) -> Order:
        self.context.progress(at, count, f"weighing {group.where}")
        heads = group.kind == "heads"
        sizes = importance.batches(len(group), 1 if heads else self.options.multiple, self.options.most)
        if self.metric == "obs":
            hessians = [(place, readers.hessian(place)) for place in group.reads]
            if all(h is not None for _, h in hessians):
                matrices = [readers.matrix(place) for place in group.reads]
                places = [group.axes[place] for place in group.reads]
                found = importance.by_reconstruction(
                    matrices, [h for _, h in hessians if h is not None], places, sizes, group.balance
                )
                felt = self.felt.get(id(group))
                # Shares of the group's outputs become what the model feels of them.
                return found if felt is None else Order(found.steps, found.losses * float(felt.sum()))
        if self.metric in ("fisher", "taylor") or (self.metric == "obs" and id(group) in self.felt):
            return importance.by_score(self.felt[id(group)], sizes, group.balance)
        scores = np.zeros(len(group))
        for place in group.reads if self.metric != "magnitude" else group.axes:
            mine = self._scores(place, readers)[group.axes[place]]
            scores += mine.mean(axis=1) if self.distribution == "standardized" else mine.sum(axis=1)
        return importance.by_score(scores, sizes, group.balance)

    def _scores(self, place: Place, readers: Readers) -> Array:
        """Of each channel of a weight, relative to all of them: as a share, or in standard deviations off the mean."""
        matrix = readers.matrix(place)
        moments = readers.moments(place)
        if self.metric == "magnitude" or moments is None:
            found = np.square(matrix, dtype=np.float64).sum(axis=0)
        elif self.metric == "wanda":
            found = importance.wanda(matrix, moments[1])
        else:
            found = importance.flap(matrix, *moments)
        if self.distribution == "standardized":
            return importance.standardized(found)
        total = float(found.sum())
        relative: Array = found / total if total > 0 else found
        return relative

    def _allocate(
        self, groups: Sequence[Group], orders: Sequence[Order], fixed: Mapping[int, float], savings: Savings
    ) -> Steps:
        """How many steps of each group are taken."""
        free = [at for at in range(len(groups)) if at not in fixed]
        base = [0] * len(groups)
        for at, share in fixed.items():
            base[at] = share_of(orders[at], len(groups[at]), share)

        def whole(steps: Steps) -> Steps:
            result = list(base)
            for at, count in zip(free, steps, strict=True):
                result[at] = count
            return result

        def saved(steps: Steps) -> float:
            roots = [
                root
                for group, order, count in zip(groups, orders, whole(steps), strict=True)
                for step in order.steps[:count]
                for unit in step
                for root in group.roots[unit]
            ]
            return savings.share(gone(savings.coupling, roots))

        mine = [orders[at] for at in free]
        goal = self.options.ratio
        if not free:
            return base
        if self.distribution == "uniform":
            return whole(uniformly(mine, [len(groups[at]) for at in free], saved, goal))
        # Standardized scores are compared unit by unit, whatever a unit saves.
        equal = self.distribution == "standardized"
        return whole(globally(mine, [1.0 if equal else savings.unit(groups[at]) for at in free], saved, goal))

    def _fitted(
        self, groups: Sequence[Group], chosen: Sequence[Sequence[int]], readers: Readers
    ) -> dict[onnx_ir.Value, Array]:
        """Weights that make up for what goes."""
        replaced: dict[onnx_ir.Value, Array] = {}
        if self.compensate not in ("both", "least_squares"):
            return replaced
        for at, (group, units) in enumerate(zip(groups, chosen, strict=True)):
            self.context.progress(at, len(groups), f"fitting {group.where}")
            for place in group.reads if units else ():
                hessian = readers.hessian(place)
                if hessian is None:
                    continue
                keep = np.ones(len(hessian), bool)
                keep[group.axes[place][list(units)].reshape(-1)] = False
                replaced[place[0]] = readers.restored(place, importance.fitted(readers.matrix(place), hessian, keep))
        return replaced

    def _tell(
        self,
        groups: Sequence[Group],
        chosen: Sequence[Sequence[int]],
        orders: Sequence[Order],
        steps: Steps,
        savings: Savings,
        atoms: Array,
    ) -> None:
        for group, units, order, count in zip(groups, chosen, orders, steps, strict=True):
            if not units:
                reason = "the others cost less" if order.steps else "too few to remove any"
                self.outcome.skipped(group.where, f"all {len(group)} {group.kind} stay: {reason}")
                continue
            self.outcome.count(RULE, len(units))
            left = len(group) - len(units)
            self.outcome.applied(
                group.where, f"{self.metric}: {len(units)} of {len(group)} {group.kind} removed, {left} stay",
                units=len(group), removed=len(units), loss=float(f"{order.losses[count - 1]:.3g}"),
            )  # fmt: skip
        before, after = savings.parameters(np.zeros_like(atoms)), savings.parameters(atoms)
        share = savings.share(atoms)
        values = {"parameters_before": before, "parameters_after": after, "share": round(share, 4), "of": savings.of}
        text = f"{share:.1%} of the {savings.of} removed: {before} weights of products and tables became {after}"
        if share < self.options.ratio and not self.options.ratios:
            text += f"; {self.options.ratio:.1%} were asked for, no more can go"
            self.outcome.missed("", text, **values)
        else:
            self.outcome.applied("", text, **values)


def _nodes(coupling: Coupling, group: Group) -> list[onnx_ir.Node]:
    return list(dict.fromkeys(node for base, _ in group.axes for node in coupling.places.get(base, [])))


def _any(chosen: Sequence[selectors.Selector], nodes: Sequence[onnx_ir.Node]) -> bool:
    return any(selectors.first(chosen, node) is not None for node in nodes)
