"""Running a graph by generated kernels: on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import hashlib
import importlib.util
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir
import torch

from ...ir.errors import BurnishError, UnsupportedError
from ...ir.graph import Graph, tensor_of
from ...ir.infer import infer_graph
from ...ir.remarks import Remark
from ...ir.signature import TensorSpec
from ..reference.executor import Reference
from ..reference.registry import tensor_from
from ..reference.session import checked
from ..reference.tensors import specification, to_numpy
from . import require_triton

MOST_GRAPHS = 16
"""Sets of input shapes whose launches are recorded: a decoder whose cache grows has another set for each token."""


def device_for(choice: str | torch.device | None = None) -> torch.device:
    """Where kernels can run.

    Args:
        choice: a device; the GPU if there is one, else the CPU under the interpreter.

    Raises:
        UnsupportedError: there is no GPU, and kernels are not interpreted; or Triton is missing.
    """
    require_triton()
    from .launch import is_interpreted

    if choice is not None:
        device = torch.device(choice)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() and not is_interpreted() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("there is no GPU", where=f"device {device}", fix="run it where there is one")
    if device.type == "cpu" and not is_interpreted():
        raise UnsupportedError(
            "Triton's kernels run on a GPU, and there is none here",
            where='backend="triton"',
            fix='use backend="onnxruntime" on this machine, or set TRITON_INTERPRET=1 before Python starts, to try '
            "kernels slowly on the CPU",
        )
    return device


class Session:
    """A graph that runs by generated kernels and PyTorch.

    Args:
        graph: its types and shapes are inferred here.
        device: see :func:`device_for`.
        cuda_graph: whether launches are recorded once for each set of input shapes, up to :data:`MOST_GRAPHS`, and
            replayed; on a GPU only.
        source: the generated file, if it was made before.
        title: first line of the generated file.

    Raises:
        UnsupportedError: there is nothing to run kernels on, or an operator can be run by nobody.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: str | torch.device | None = None,
        cuda_graph: bool = False,
        source: str | None = None,
        title: str = "A graph compiled by Burnish",
    ) -> None:
        self.device = device_for(device)
        self.remarks: tuple[Remark, ...] = ()
        self.graph = graph
        infer_graph(graph)
        if source is None:
            from .codegen.program import generate

            program = generate(graph, title)
            source, self.remarks = program.source, program.remarks
        self.source: str = source
        """The generated file."""
        self.module = load_source(source)
        self.inputs: tuple[TensorSpec, ...] = tuple(specification(v) for v in graph.graph.inputs)
        """What the graph takes."""
        self.outputs: tuple[TensorSpec, ...] = tuple(specification(v) for v in graph.graph.outputs)
        """What the graph gives."""
        self._run = Run(graph, self.device)
        self._graphs: dict[tuple[Any, ...], Any] | None = None
        if cuda_graph and self.device.type == "cuda":
            self._graphs = {}

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the graph.

        Args:
            feeds: NumPy arrays or torch tensors by input name.

        Returns:
            The outputs: torch tensors on the session's device if any feed is one, else NumPy arrays.

        Raises:
            InputError: an input is missing, unknown, or of another type or shape.
        """
        given = [tensor.to(self.device) for tensor in checked(self.inputs, feeds).values()]
        with torch.no_grad():
            results = self._replayed(given) if self._graphs is not None else self.call(given)
        if any(isinstance(value, torch.Tensor) for value in feeds.values()):
            return results
        return [to_numpy(tensor) for tensor in results]

    def call(self, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors of the session's device, in the order of the inputs, without looking at them."""
        found: list[torch.Tensor] = self.module.call(given, self._run.constants, self._run)
        return found

    def _replayed(self, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Through a recorded CUDA graph for these shapes; recorded now if there is none."""
        assert self._graphs is not None
        key = tuple((tuple(t.shape), t.dtype) for t in given)
        if key not in self._graphs and len(self._graphs) >= MOST_GRAPHS:
            said = Remark("skipped", "", f"launches are recorded for {MOST_GRAPHS} sets of input shapes, no more")
            if said not in self.remarks:
                self.remarks = (*self.remarks, said)
            return self.call(given)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._recorded(given)
            except RuntimeError as error:  # an operator that looks at numbers on the way
                reason = f"launches cannot be recorded: {str(error).splitlines()[0][:200]}"
                self.remarks = (*self.remarks, Remark("skipped", "", reason))
                self._graphs = None
                return self.call(given)
        recorded, static, results = self._graphs[key]
        for target, tensor in zip(static, given, strict=True):
            target.copy_(tensor)
        recorded.replay()
        return [t.clone() for t in results]

    def _recorded(self, given: Sequence[torch.Tensor]) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
        """A CUDA graph, the inputs that it reads and the outputs that it writes."""
        static = [t.clone() for t in given]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and measured before
            for _ in range(2):
                self.call(static)
        torch.cuda.current_stream().wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            results = self.call(static)
        return recorded, static, results


class Run:
    """What a generated file asks for while it runs.

    Attributes:
        device: where tensors are made.
        constants: tensors by name, read when they are used for the first time.
    """

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.device = device
        self._reference = Reference(graph, device=device)
        self._graph = graph
        self._nodes: dict[str, onnx_ir.Node] = {}
        self._reads: dict[str, list[onnx_ir.Value | None]] = {}
        for n, node in enumerate(graph.graph):
            self._nodes[str(n)] = node
            function = graph.functions.get(node.op_identifier())
            if function is not None:
                for i, inner in enumerate(function):
                    self._nodes[f"{n}.{i}"] = inner
        self.constants = _Constants(self)

    def constant(self, name: str) -> Any:
        """A constant by the name that the generated file has for it: a tensor, or weights packed for a template."""
        if name.startswith("packed "):
            return self._packed(*name.removeprefix("packed ").split(" "))
        device = self.device
        if name.startswith("host "):
            name, device = name.removeprefix("host "), torch.device("cpu")
        if name.startswith("node "):
            value = self._nodes[name.removeprefix("node ")].outputs[0]
        else:
            value = self._graph.graph.initializers[name]
        tensor = tensor_of(value)
        assert tensor is not None
        return tensor_from(tensor, device)

    def _packed(self, function: str, key: str) -> Any:
        from .codegen.weights import pack

        outer: dict[onnx_ir.Value, onnx_ir.Value] = {}
        if "." in key:
            call = self._nodes[key.split(".")[0]]
            body = self._graph.functions[call.op_identifier()]
            outer = {a: b for a, b in zip(body.inputs, call.inputs, strict=False) if b is not None}
        return pack(function, self._nodes[key], outer, self.device)

    def node(self, key: str, *arguments: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Compute a node by the reference backend.

        Args:
            key: of the node.
            arguments: its inputs, then what its subgraphs read.
        """
        node = self._nodes[key]
        if key not in self._reads:
            from .codegen.operands import captured

            self._reads[key] = [*node.inputs, *captured(node)]
        given = {v: a for v, a in zip(self._reads[key], arguments, strict=True) if v is not None and a is not None}
        return self._reference.node(node, given)


class _Constants(dict[str, Any]):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __missing__(self, name: str) -> Any:
        self[name] = self._run.constant(name)
        return self[name]


def load_source(source: str) -> ModuleType:
    """The module of a generated file, which is kept in the cache folder, as Triton reads the source of kernels there.

    Raises:
        BurnishError: the file cannot be written.
    """
    from .launch import cache_folder

    name = f"burnish_{hashlib.sha256(source.encode()).hexdigest()[:20]}"
    if name in sys.modules:
        return sys.modules[name]
    path = cache_folder() / f"{name}.py"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
            temporary.write_text(source, encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise BurnishError(
            f"the generated file cannot be written: {error.strerror}",
            where=str(path),
            fix="set BURNISH_CACHE to a folder that can be written to",
        ) from error
    return load_file(path, name)


def load_file(path: Path, name: str) -> ModuleType:
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
