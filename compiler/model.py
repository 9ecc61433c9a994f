"""A compiled model: called like the model it was made from. Imports neither torch nor onnx."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ArtifactError, InputError, OptionError, UnsupportedError
from ..ir.signature import DecoderSpec, Signature, TensorSpec
from .artifact import GENERATION_FILE, PREFILL_FILE, Manifest, check_files
from .report import Report
from .storage import publish

if TYPE_CHECKING:
    from ..backends.onnxruntime.session import Session
    from .benchmark import Result
    from .generation.decoding import Decoding
    from .generation.tokenizer import Tokenizer


class CompiledModel:
    """A model that runs in ONNX Runtime, or, compiled for ``triton`` or ``reference``, in PyTorch.

    It always lives in a file, and the session reads that file, so that a model larger than memory can be compiled.

    Args:
        path: the ONNX file.
        manifest: what that file says of itself.
        report: what happened when it was made.
        signature: how it is called; by input names if not given.
        threads: threads of the session; ONNX Runtime's own choice if not given.
        streams: shares of a batch that run side by side, see :func:`burnish.compile`.
        owned: the folder of the file is temporary and goes away with this object.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        report: Report,
        *,
        signature: Signature | None = None,
        threads: int | None = None,
        streams: int | None = None,
        owned: bool = False,
    ) -> None:
        self._path, self._manifest, self._report = path, manifest, report
        self._signature = signature or manifest.signature()
        self._threads, self._streams = threads, streams
        self._session: Session | None = None
        self._others: dict[str, Session] = {}
        self._tokenizer: Tokenizer | None = None
        if owned:
            weakref.finalize(self, shutil.rmtree, path.parent, True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the arguments that the original takes; NumPy arrays in, NumPy out, torch in, torch out.

        Raises:
            InputError: the arguments do not fit.
        """
        feeds = self._signature.flatten(args, kwargs)
        if self._manifest.target not in ANYWHERE:
            _on_cpu(feeds)
        return self._signature.unflatten(self.session.run(feeds))

    def generate(self, input_ids: Any, **options: Any) -> Any:
        """Continue sequences of tokens; see :func:`burnish.compiler.generation.generate.generate` for the options.

        Raises:
            UnsupportedError: the model is not a causal language model with a cache.
        """
        if self._manifest.decoder is None:
            raise UnsupportedError(
                "generate() needs a causal language model with a KV cache",
                where=str(self._path),
                fix="compile a Hugging Face folder or GGUF file of a causal language model, or call the model itself",
            )
        from .generation.generate import generate

        return generate(self, input_ids, **options)

    def decoding(self, batch: int = 1) -> Decoding:
        """A cache for ``batch`` rows without padding, to be handed to several calls of :meth:`generate`.

        Of a prompt that begins like the one before, only the rest is read.

        Raises:
            UnsupportedError: the model is not a causal language model with a cache.
        """
        from .generation.decoding import Decoding

        return Decoding(self, batch)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that was saved with the model.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        if self._tokenizer is None:
            from .generation.tokenizer import Tokenizer

            self._tokenizer = Tokenizer(self._path.parent)
        return self._tokenizer

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a file (a name that ends in ``.onnx``) or a folder (any other name).

        Large weights go to a second file, ``<name>.data``. A folder also holds the tokenizer and ``burnish.json``.

        Returns:
            The path that was written.

        Raises:
            OutputError: something is there already, or the place cannot be written to.
        """
        target = Path(path)
        publish(self._path, self._manifest, target, overwrite=overwrite)
        return target

    def benchmark(self, **options: Any) -> Result:
        """Time the model in a process of its own; see :func:`burnish.compiler.benchmark.benchmark` for the options."""
        from .benchmark import Side, benchmark

        options.setdefault("threads", self._threads)
        name = self._report.model or self._path.stem
        return benchmark(Side(name, str(self._path.absolute()), streams=self._streams), **options)

    @property
    def streams(self) -> int | None:
        """Shares of a batch that run side by side; None if a batch runs as one."""
        return self._streams

    @property
    def session(self) -> Session:
        """The ONNX Runtime session, opened when it is first needed.

        Raises:
            ArtifactError: the files are damaged, or ONNX Runtime cannot load them.
        """
        if self._session is None:
            self._session = self._open()
        return self._session

    def open(self) -> None:
        """Load what is run first: the generation graph of a decoder that has one, else the model.

        Raises:
            ArtifactError: the files are damaged, or ONNX Runtime cannot load them.
        """
        _ = self.generation or self.session

    @property
    def generation(self) -> Session | None:
        """Runs the graph that ``generate`` uses, with its cache in place; None if there is none."""
        return self._beside(GENERATION_FILE)

    @property
    def prefill(self) -> Session | None:
        """Runs the graph for prompts, on the cache of :attr:`generation`; None if there is none."""
        return self._beside(PREFILL_FILE)

    def _beside(self, name: str) -> Session | None:
        from ..backends.onnxruntime.session import Session

        if name not in self._manifest.companions or not (file := self._path.with_name(name)).exists():
            return None
        if name not in self._others:
            check_files(self._path, self._manifest)
            # Threads that wait in a loop for the next prompt would take the processor from decoding.
            tokens = name != PREFILL_FILE  # one at a time; for those, scores by tiles are quicker
            self._others[name] = Session(file, threads=self._threads, spinning=tokens, tiled=tokens)
        return self._others[name]

    def _open(self) -> Any:
        from ..backends.onnxruntime.session import Session

        if not self._path.exists():
            raise ArtifactError("the compiled files are gone", where=str(self._path), fix="compile the model again")
        check_files(self._path, self._manifest)
        if self._manifest.target in ANYWHERE:
            return open_graph(self._path, self._manifest.target)
        if self._streams is not None:
            from ..backends.onnxruntime.streams import Streams

            return Streams(self._path, streams=self._streams, threads=self._threads)
        return Session(self._path, threads=self._threads)

    @property
    def report(self) -> Report:
        """What happened when it was made."""
        return self._report

    @property
    def manifest(self) -> Manifest:
        """How it was made, what it takes, and what it needs to run."""
        return self._manifest

    @property
    def decoder(self) -> DecoderSpec | None:
        """What ``generate`` knows of the model; None if it is not a causal language model with a cache."""
        return self._manifest.decoder

    @property
    def path(self) -> Path:
        """The ONNX file that runs."""
        return self._path

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Inputs of the graph."""
        return self._manifest.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Outputs of the graph."""
        return self._manifest.outputs

    def __repr__(self) -> str:
        takes = ", ".join(_short(spec) for spec in self.inputs[:4]) + (", …" if len(self.inputs) > 4 else "")
        gives = ", ".join(_short(spec) for spec in self.outputs[:2]) + (", …" if len(self.outputs) > 2 else "")
        return f"CompiledModel({takes} -> {gives})"


ANYWHERE = ("triton", "reference")
"""Targets whose sessions run on PyTorch's tensors, on any device."""


def check_streams(streams: int, threads: int | None, target: str) -> None:
    """Refuse streams that cannot be, before anything is compiled or opened.

    Raises:
        OptionError: fewer than 2 or more than threads, or not on ONNX Runtime.
    """
    from ..backends.onnxruntime import streams as rows
    from ..backends.onnxruntime.session import usable_cpus

    if target in ANYWHERE:
        raise OptionError(f"streams are ONNX Runtime's, not of {target!r}", where="streams=", fix="leave streams out")
    rows.check_streams(streams, threads or usable_cpus())


def check_rows(signature: Signature) -> None:
    """Refuse streams of a model whose outputs have no rows, or a fixed number of them, before it is compiled.

    Raises:
        UnsupportedError: there is such an output.
    """
    from ..backends.onnxruntime import streams as rows

    rows.check_rows(signature.outputs, known=False)


def open_graph(path: Path, target: str) -> Any:
    """The session of a graph that PyTorch runs, with generated kernels or node by node.

    Raises:
        ArtifactError: the file is damaged.
        UnsupportedError: there is nothing here to run it on.
    """
    import onnx_ir

    try:
        graph = onnx_ir.load(path)
    except Exception as error:
        raise ArtifactError(
            f"the model file is damaged: {str(error)[:200]}", where=str(path), fix="copy or compile the model again"
        ) from error
    if target == "triton":
        from ..backends.triton.session import Session as TritonSession

        return TritonSession(graph)
    from ..backends.reference.session import Session as ReferenceSession

    return ReferenceSession(graph)


def _on_cpu(feeds: Mapping[str, Any]) -> None:
    """Refuse tensors that ONNX Runtime's CPU build cannot read."""
    for name, value in feeds.items():
        device = getattr(value, "device", None)
        if device is not None and str(getattr(device, "type", device)) != "cpu":
            raise InputError(
                f"input {name!r} is on device {str(device)!r}, the model runs on the CPU",
                where=f"input {name!r}",
                fix="pass value.cpu()",
            )


def _short(spec: TensorSpec) -> str:
    shape = "?" if spec.shape is None else ", ".join(map(str, spec.shape))
    return f"{spec.name}: {spec.dtype.lower()}[{shape}]"
