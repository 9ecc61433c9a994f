"""What a block costs where nothing was measured: starting a kernel, bytes, arithmetic done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from ...ir.cost import flops
from ...ir.graph import attribute, is_op
from ...ir.outline import boundary, embedded
from ...ir.symbolic import evaluate, symbols_of
from ...ir.traits import trait
from .block_types import BlockType
from .resources import estimate
from .sizes import Sizes
from .structure import Info


@dataclass(frozen=True)
class Machine:
    """What a kernel runs on.

    Attributes:
        name: printed in remarks.
        launch: seconds to start a kernel.
        bandwidth: bytes a second from memory.
        products: operations a second inside products.
        arithmetic: operations a second elsewhere.
        tile: rows and columns of a product's tile; what stands in front of it is computed once for each.
    """

    name: str
    launch: float
    bandwidth: float
    products: float
    arithmetic: float
    tile: tuple[int, int]


GPU = Machine("a GPU of 2 TB/s", 5e-6, 2e12, 2e14, 2e13, (64, 64))
CPU = Machine("a CPU of 20 GB/s", 2e-6, 2e10, 1e11, 2e10, (64, 256))
MACHINES = {"gpu": GPU, "cpu": CPU}
_PICKING = ("Gather", "GatherElements", "Slice", "Split")


class CostModel:
    """Seconds of blocks, from a machine's figures.

    Args:
        infos: what is known of each node.
        sizes: stand-ins for named dimensions.
        machine: where the blocks run.
    """

    def __init__(self, infos: Mapping[onnx_ir.Node, Info], sizes: Sizes, machine: Machine = GPU) -> None:
        self._infos, self._sizes, self.machine = infos, sizes, machine
        self._flops: dict[onnx_ir.Node, float] = {}

    def seconds(self, block: Sequence[Info], anchored: Mapping[onnx_ir.Value, object]) -> float:
        """Seconds of one block.

        Args:
            block: nodes in topological order.
            anchored: values that a reduction or product of the block holds, computed once.
        """
        if all(info.view or info.type is BlockType.HOST for info in block):
            return 0.0
        nodes = [info.node for info in block]
        inputs, outputs = boundary(nodes)
        passes = estimate(block, len(inputs), outputs).passes if len(block) > 1 else 1
        read = self._read(block, inputs) * passes
        written = sum(self._sizes.bytes(value) for value in outputs)
        times = self._repetitions(block, anchored)
        machine = self.machine
        products = sum(self._work(info) for info in block if info.type is BlockType.CONTRACTION)
        others = (info for info in block if info.type is not BlockType.CONTRACTION)
        arithmetic = sum(self._work(info) * times[info.node] for info in others)
        busy = products / machine.products + arithmetic / machine.arithmetic
        return machine.launch + max((read + written) / machine.bandwidth, busy)

    def _read(self, block: Sequence[Info], inputs: Sequence[onnx_ir.Value]) -> float:
        outside = {value for value in inputs if embedded(value) is None}
        whole: set[onnx_ir.Value] = set()
        picked: dict[onnx_ir.Value, float] = {}
        for info in block:
            for index, value in enumerate(info.node.inputs):
                if value is None or value not in outside:
                    continue
                if index == 0 and is_op(info.node, *_PICKING):
                    picked[value] = picked.get(value, 0) + sum(self._sizes.bytes(v) for v in info.node.outputs)
                elif not info.movement or value in info.sources or value.producer() is None:
                    whole.add(value)
        total = float(sum(self._sizes.bytes(value) for value in whole))
        for value, count in picked.items():
            if value not in whole:
                total += min(count, self._sizes.bytes(value))
        return total

    def _work(self, info: Info) -> float:
        found = self._flops.get(info.node)
        if found is None:
            found = self._flops[info.node] = self._operations(info)
        return found

    def _operations(self, info: Info) -> float:
        row = trait(info.node)
        if info.type is not BlockType.CONTRACTION and row is not None:
            per = info.node.inputs[0] if info.type is BlockType.REDUCTION else info.node.outputs[0]
            return float(row.work * self._sizes.elements(per)) if per is not None else 0.0
        count = flops(info.node)
        if isinstance(count, int):
            return float(count)
        found = evaluate(count, self._sizes.names((count,))) if symbols_of(count) else None
        return float(found) if found is not None else 2.0 * self._sizes.elements(info.node.outputs[0])

    def _repetitions(
        self, block: Sequence[Info], anchored: Mapping[onnx_ir.Value, object]
    ) -> dict[onnx_ir.Node, float]:
        """How often each element of a node's result is computed."""
        times = {info.node: 1.0 for info in block}
        for info in reversed(block):
            for index, value in enumerate(info.node.inputs):
                maker = None if value is None else value.producer()
                if value is None or maker is None or maker not in times or value in anchored:
                    continue
                again = self._repeats(info, index, value)
                own = 1.0 if info.type in (BlockType.CONTRACTION, BlockType.REDUCTION) else times[info.node]
                times[maker] = max(times[maker], own * again)
        return times

    def _repeats(self, info: Info, index: int, value: onnx_ir.Value) -> float:
        """How often ``info`` needs each element of an input."""
        node, elements = info.node, max(1, self._sizes.elements(value))
        out = node.outputs[0]
        if info.type is BlockType.REDUCTION:
            if not info.overlaps:
                return 1.0
            return max(1.0, self._sizes.elements(out) * info.row / elements)
        if info.type is not BlockType.CONTRACTION:
            return max(1.0, self._sizes.elements(out) / elements)
        rows, columns = self.machine.tile
        dims = [self._sizes.dim(dim) for dim in out.shape or ()]
        if is_op(node, "Conv", "ConvTranspose") and index == 0 and len(dims) > 2:
            window = 1
            for size, step in zip(
                attribute(node, "kernel_shape", []), attribute(node, "strides", [1] * 9), strict=False
            ):
                window *= -(-size // step)
            return float(max(1, window) * -(-dims[1] // attribute(node, "group", 1) // columns))
        if index == 0:
            return float(max(1, -(-dims[-1] // columns))) if dims else 1.0
        return float(max(1, -(-dims[-2] // rows))) if len(dims) > 1 else 1.0
