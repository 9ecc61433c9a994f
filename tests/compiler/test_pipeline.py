"""The pipeline: order, records, checks between passes, and what is said when a pass fails."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir
import pytest
from burnish.compiler.pipeline import PassRecord, check_mode, run_passes
from burnish.compiler.verification import NumericsCheck, StructureCheck, relative_error
from burnish.frontends.onnx_file import import_onnx
from burnish.ir.errors import InputError, OptionError, PassError
from burnish.ir.graph import Graph
from burnish.passes import Canonicalize, Quantize
from burnish.passes.base import Context, Outcome, Pass, Stage


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing."""

    stage = Stage.CANONICALIZE

    def run(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        outcome.skipped("", "nothing to do")
        return outcome


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the second weight, as a defect would."""

    stage = Stage.CANONICALIZE
    by: float = 1.01

    def run(self, graph: Graph, context: Context) -> Outcome:
        value = graph.graph.initializers["w2"]
        value.const_value = onnx_ir.Tensor(value.const_value.numpy() * np.float32(self.by), name="w2")
        outcome = Outcome()
        outcome.count("scale")
        return outcome


@dataclass(frozen=True)
class LossyScale(Scale):
    """The same in a stage that may lose accuracy."""

    stage = Stage.QUANTIZE


@dataclass(frozen=True)
class Breaks(Pass):
    """Leaves a graph that is not in order."""

    stage = Stage.RECOVER

    def run(self, graph: Graph, context: Context) -> Outcome:
        last = graph.graph[-1]
        graph.graph.remove(last)
        graph.graph.insert_before(graph.graph[0], last)
        outcome = Outcome()
        outcome.count("move")
        return outcome


@dataclass(frozen=True)
class Fails(Pass):
    """Raises what it is told to."""

    stage = Stage.RECOVER
    mine: bool = False

    def run(self, graph: Graph, context: Context) -> Outcome:
        raise InputError("calibration is missing") if self.mine else KeyError("boom")


class Journal:
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, graph: Graph) -> None:
        self.seen.append("begin")

    def after(self, item: Pass, graph: Graph, record: PassRecord) -> None:
        self.seen.append(record.spec)

    def end(self, graph: Graph) -> None:
        self.seen.append("end")


@pytest.fixture
def graph(network: Callable) -> Graph:
    return import_onnx(network().path).graph


def test_records_and_callbacks(graph: Graph) -> None:
    journal, told = Journal(), []
    context = Context(progress=lambda done, total, what: told.append((done, total, what)))
    records = run_passes(graph, [Nothing(), Canonicalize(), Quantize()], context, [journal])
    assert [record.spec for record in records] == ["Nothing", "canonicalize", "quantize(scheme=w4a16)"]
    assert journal.seen == ["begin", *(record.spec for record in records), "end"]
    assert records[2].outcome.rewrites == {"quantize weights": 2}
    assert (records[2].nodes_before, records[2].nodes_after) == (4, 6)
    assert all(record.seconds >= 0 and record.error is None for record in records)
    assert told[0] == (0, 3, "Nothing") and told[-1][:2] == (3, 3)


def test_order_is_checked_before_anything_runs(graph: Graph) -> None:
    journal = Journal()
    with pytest.raises(OptionError, match="cannot run after"):
        run_passes(graph, [Quantize(), Canonicalize()], Context(), [journal])
    assert journal.seen == [] and len(list(graph.graph)) == 4


def test_a_pass_that_raises_names_those_that_ran(graph: Graph) -> None:
    with pytest.raises(PassError) as error:
        run_passes(graph, [Nothing(), Canonicalize(), Fails()], Context())
    assert error.value.what == "the pass Fails failed: KeyError: 'boom'"
    assert error.value.where == "ran before it: Nothing, canonicalize"
    assert isinstance(error.value.__cause__, KeyError)


def test_errors_made_for_the_user_pass_through(graph: Graph) -> None:
    with pytest.raises(InputError, match="calibration is missing"):
        run_passes(graph, [Fails(mine=True)], Context())


def test_a_broken_graph_is_noticed_at_once(graph: Graph) -> None:
    journal = Journal()
    with pytest.raises(PassError, match="the pass Breaks broke the graph") as error:
        run_passes(graph, [Nothing(), Breaks(), Quantize()], Context(), [StructureCheck(), journal])
    assert "ran before it: Nothing" in str(error.value.where)
    assert journal.seen == ["begin", "Nothing"]


def test_errors_are_measured_pass_by_pass(graph: Graph, network: Callable) -> None:
    numerics = NumericsCheck([{"x": network().x}], "onnxruntime")
    records = run_passes(graph, [Nothing(), LossyScale(by=1.01), LossyScale(by=1.0)], Context(), [numerics])
    assert records[0].error == 0.0
    assert records[1].error == pytest.approx(0.01, rel=1e-3)
    assert records[2].error == 0.0


def test_a_lossless_pass_must_not_change_the_outputs(graph: Graph, network: Callable) -> None:
    numerics = NumericsCheck([{"x": network().x}], "onnxruntime")
    with pytest.raises(PassError, match=r"outputs changed by 1\.0e-02"):
        run_passes(graph, [Scale(by=1.01)], Context(), [numerics])
    tiny = NumericsCheck([{"x": network().x}], "onnxruntime")
    assert run_passes(graph, [Scale(by=1.0001)], Context(), [tiny])[0].error == pytest.approx(1e-4, rel=1e-2)


def test_relative_error() -> None:
    a = np.asarray([3.0, 4.0])
    assert relative_error([[a]], [[a]]) == 0.0
    assert relative_error([[a]], [[a + np.asarray([0.0, 0.5])]]) == pytest.approx(0.1)
    assert relative_error([[a, a]], [[a, a * 2]]) == pytest.approx(1.0)
    assert relative_error([[a]], [[a[:1]]]) == np.inf
    assert relative_error([[a]], [[np.asarray([3.0, np.nan])]]) == np.inf
    hole = np.asarray([3.0, -np.inf])
    assert relative_error([[hole]], [[hole]]) == 0.0
    assert relative_error([[np.asarray(["a"])]], [[np.asarray(["b"])]]) == np.inf
    assert relative_error([[np.zeros(2)]], [[np.zeros(2)]]) == 0.0
    assert relative_error([[[a, a]]], [[[a]]]) == np.inf


def test_modes() -> None:
    assert [check_mode(mode) for mode in ("off", "structure", "numerics")] == ["off", "structure", "numerics"]
    with pytest.raises(OptionError, match="did you mean 'numerics'"):
        check_mode("numeric")


def test_random_inputs_that_a_model_cannot_take(network: Callable) -> None:
    graph = import_onnx(network().path).graph
    wrong = {"x": np.ones((2, 63), np.float32)}
    with pytest.raises(InputError, match="does not run on random inputs") as error:
        run_passes(graph, [], Context(), [NumericsCheck([wrong], "onnxruntime", made_up=True)])
    assert error.value.where == "x [2, 63]"
    assert "--calibration" in str(error.value.fix)
