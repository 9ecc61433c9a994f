"""What became of the graphs that ``torch.compile`` gave to Burnish."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.remarks import Remark

_NAMES = {"onnxruntime": "ONNX Runtime", "triton": "Triton"}


@dataclass
class GraphReport:
    """What became of one captured graph.

    Attributes:
        name: of the function or module that it is a part of.
        nodes: operators that TorchDynamo captured.
        operators: nodes of the graph that runs; 0 if it runs eagerly, or has nothing to compute.
        compilations: how often it was compiled.
        seconds: spent on that.
        calls: how often it ran.
        eager: why it runs eagerly, or None.
        recompiled: why it was compiled again, each time.
        eager_calls: how often a compiled graph ran eagerly for the sake of its arguments.
        why: of the last such call.
        apart: operators without a rule that PyTorch's decompositions were taken for.
        backend: what it runs on.
        remarks: what passes and lowering said of the last compilation: rewrites, choices of kernels and their figures.
    """

    nodes: int
    operators: int = 0
    compilations: int = 0
    seconds: float = 0.0
    calls: int = 0
    eager: str | None = None
    recompiled: list[str] = field(default_factory=list)
    name: str = ""
    eager_calls: int = 0
    why: str | None = None
    apart: tuple[str, ...] = ()
    backend: str = "onnxruntime"
    remarks: list[Remark] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        how = f"eager: {self.eager}" if self.eager else f"{self.operators} nodes on {_NAMES[self.backend]}"
        if not self.eager and self.apart:
            how += f" ({', '.join(self.apart)} taken apart)"
        again = f", again because {'; '.join(self.recompiled)}" if self.recompiled else ""
        took = f"{self.compilations} compilations in {self.seconds:.2f} s"
        calls = f"{self.calls} calls"
        if self.eager_calls:
            calls += f", {self.eager_calls} of them eager: {self.why}"
        of = f" of {self.name}" if self.name else ""
        return f"{self.nodes} operators captured{of}, {how}; {took}{again}; {calls}"


class Graphs(list[GraphReport]):
    """Reports, a line each when printed, and why TorchDynamo divided what it captured."""

    @property
    def breaks(self) -> dict[str, int]:
        """Reasons for graph breaks that TorchDynamo has counted in this process, and how many of each."""
        from torch._dynamo.utils import counters

        return {" ".join(str(reason).split())[:200]: count for reason, count in counters["graph_break"].items()}

    def __str__(self) -> str:
        if not self:
            return "nothing was compiled"
        lines = [f"graph {index}: {one}" for index, one in enumerate(self)]
        lines += [f"graph break, {count} times: {reason}" for reason, count in self.breaks.items()]
        return "\n".join(lines)


reports = Graphs()
"""Of this process."""
