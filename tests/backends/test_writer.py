from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.backends.onnxruntime import writer
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import stored_bytes, to_bytes, write
from burnish.ir.errors import ModelError, OutputError
from burnish.ir.rewrite import Editor
from burnish.ir.weights import Shared, View, lazy

Make = Callable[..., onnx_ir.Model]


def holding(*tensors: Any) -> onnx_ir.Model:
    """A model with these initializers, each an output."""
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    edit = Editor(model, "test")
    for i, tensor in enumerate(tensors):
        model.graph.outputs.append(edit.op("Identity", [edit.initializer(tensor, f"w{i}")]))
    return model


def values(path: Path) -> list[Any]:
    return [value.const_value.numpy() for value in onnx_ir.load(path).graph.initializers.values()]  # type: ignore[union-attr]


TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_, ml_dtypes.int4, ml_dtypes.uint4]


@pytest.mark.parametrize("external", [False, True])
def test_round_trip_of_every_form(external: bool, tmp_path: Path) -> None:
    arrays = [np.arange(3000).reshape(3, 1000).astype(kind) for kind in TYPES]
    tensors: list[Any] = [onnx_ir.Tensor(array) for array in arrays]
    tensors.append(onnx_ir.PackedTensor(np.arange(600, dtype=np.uint8), onnx_ir.DataType.UINT4, shape=(1199,)))
    tensors.append(lazy(lambda: np.full((40, 50), 2.5, np.float32), onnx_ir.DataType.FLOAT, (40, 50)))
    tensors.append(onnx_ir.StringTensor(np.array([b"a", b"bc"], dtype=object), name="text"))
    tensors.append(onnx_ir.Tensor(np.float32(3.0)))
    tensors.append(onnx_ir.Tensor(np.zeros((0, 4), np.float32)))
    model = holding(*tensors)
    size = write(model, tmp_path / "m.onnx", external=external)
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])
    assert size == sum(f.stat().st_size for f in files)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    for have, tensor in zip(values(tmp_path / "m.onnx"), tensors, strict=True):
        np.testing.assert_array_equal(have, tensor.numpy())
    # The graph is as it was: nothing points to the file.
    assert not any(isinstance(v.const_value, onnx_ir.ExternalTensor) for v in model.graph.initializers.values())


def test_equal_bytes_are_written_once(tmp_path: Path) -> None:
    base = np.arange(100_000, dtype=np.uint8)
    tensor = onnx_ir.Tensor(base)
    computed = lazy(lambda: base[::-1].copy(), onnx_ir.DataType.UINT8, (100_000,))
    model = holding(
        tensor,
        onnx_ir.Tensor(base),  # the same memory
        View(tensor, onnx_ir.DataType.UINT4, (200_000,)),
        View(View(tensor, onnx_ir.DataType.UINT8, (100, 1000)), onnx_ir.DataType.FLOAT, (25_000,)),
        computed,
        View(computed, onnx_ir.DataType.UINT8, (1000, 100)),
    )
    assert stored_bytes(model) == 200_000
    write(model, tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size < 210_000
    for have, value in zip(values(tmp_path / "m.onnx"), model.graph.initializers.values(), strict=True):
        assert value.const_value is not None
        np.testing.assert_array_equal(have, value.const_value.numpy())


def test_views_of_one_array_that_differ_are_both_written(tmp_path: Path) -> None:
    square = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    write(holding(onnx_ir.Tensor(square), onnx_ir.Tensor(square.T)), tmp_path / "m.onnx", external=True)
    first, second = values(tmp_path / "m.onnx")
    np.testing.assert_array_equal(first, square)
    np.testing.assert_array_equal(second, square.T)


def test_weights_are_aligned_for_mapping(tmp_path: Path) -> None:
    model = holding(np.ones(500, np.float32), np.ones(100_000, np.float32) * 2, np.ones(300, np.float32) * 3)
    write(model, tmp_path / "m.onnx", external=True)
    tensors = [v.const_value for v in onnx_ir.load(tmp_path / "m.onnx").graph.initializers.values()]
    assert [t.offset % 64 for t in tensors] == [0, 0, 0]  # type: ignore[union-attr]
    assert tensors[1].offset % 4096 == 0  # type: ignore[union-attr]


def test_lazy_weights_are_computed_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    edit = Editor(model, "test")
    for i in range(3):

        def compute(i: int = i) -> tuple[np.ndarray, np.ndarray]:
            order.append(f"compute {i}")
            return np.full(5000, i, np.float32), np.full(10, i, np.float32)

        pair = Shared(compute, readers=2)
        large = lazy(lambda pair=pair: pair.get()[0], onnx_ir.DataType.FLOAT, (5000,))  # type: ignore[misc]
        small = lazy(lambda pair=pair: pair.get()[1], onnx_ir.DataType.FLOAT, (10,))  # type: ignore[misc]
        for tensor in (large, small):
            model.graph.outputs.append(edit.op("Identity", [edit.initializer(tensor, "w")]))
    seen: list[tuple[int, int]] = []
    write(model, tmp_path / "m.onnx", external=True, progress=lambda done, total, _: seen.append((done, total)))
    assert order == ["compute 0", "compute 1", "compute 2"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (60_120, 60_120)


def test_memory_is_that_of_one_weight(tmp_path: Path) -> None:
    """Twenty weights of 16 MB each: the process that writes them grows by far less than their sum."""
    code = f"""
import numpy as np, onnx_ir
from burnish.ir.rewrite import Editor
from burnish.ir.weights import lazy
from burnish.backends.onnxruntime.writer import write
model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={{"": 23}}, name="g"), ir_version=10)
edit = Editor(model, "test")
for i in range(20):
    tensor = lazy(lambda i=i: np.full(1 << 22, i, np.float32), onnx_ir.DataType.FLOAT, (1 << 22,))
    model.graph.outputs.append(edit.op("Identity", [edit.initializer(tensor, "w")]))
def peak():  # ru_maxrss would start at the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
write(model, {str(tmp_path / "m.onnx")!r})
print(peak() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 64 << 10  # KiB
    assert (tmp_path / "m.onnx.data").stat().st_size == 20 << 24


def test_the_size_decides_about_the_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = holding(np.ones(5000, np.float32))
    write(model, tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx.data").exists()
    monkeypatch.setattr(writer, "EXTERNAL_FROM", 10_000)
    write(model, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").exists()
    monkeypatch.setattr(writer, "_PROTOBUF_LIMIT", 15_000)
    with pytest.raises(OutputError, match="do not fit into one file"):
        write(model, tmp_path / "single.onnx", external=False)
    with pytest.raises(OutputError, match="do not fit into one message"):
        to_bytes(model)


def test_shared_bytes_decide_about_the_data_file(tmp_path: Path) -> None:
    base = np.ones(1_500_000, np.uint8)
    write(holding(onnx_ir.Tensor(base), np.zeros(9, np.float32)), tmp_path / "once.onnx")
    assert not (tmp_path / "once.onnx.data").exists()
    assert write(holding(onnx_ir.Tensor(base), onnx_ir.Tensor(base)), tmp_path / "shared.onnx") < 1_600_000
    assert (tmp_path / "shared.onnx.data").exists()


@pytest.mark.parametrize("existing", ["m.onnx", "m.onnx.data"])
def test_existing_files_are_kept_unless_asked(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(OutputError, match="the file exists") as caught:
        write(holding(np.ones(5000, np.float32)), tmp_path / "m.onnx", external=True)
    assert existing in str(caught.value) and "overwrite=True" in str(caught.value)
    assert [f.read_text() for f in tmp_path.iterdir()] == ["precious"]
    write(holding(np.ones(5000, np.float32)), tmp_path / "m.onnx", external=True, overwrite=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 20_000


def test_a_stale_data_file_does_not_survive(tmp_path: Path) -> None:
    model = holding(np.ones(5000, np.float32))
    write(model, tmp_path / "m.onnx", external=True)
    write(model, tmp_path / "m.onnx", external=False, overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_a_model_can_replace_the_file_its_weights_come_from(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write(holding(np.arange(5000, dtype=np.float32)), path, external=True)
    write(onnx_ir.load(path), path, external=True, overwrite=True)
    np.testing.assert_array_equal(values(path)[0], np.arange(5000, dtype=np.float32))


def test_unusable_paths(tmp_path: Path) -> None:
    model = holding(np.ones(3, np.float32))
    with pytest.raises(OutputError, match="the folder does not exist"):
        write(model, tmp_path / "no" / "m.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        write(model, tmp_path)


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        write(holding(np.ones(3, np.float32)), tmp_path / "m.onnx", external=True)
    assert "choose a folder you may write to" in str(caught.value)


@pytest.mark.parametrize("external", [False, True])
def test_full_disk_leaves_nothing(external: bool, tmp_path: Path) -> None:
    """The limit on file sizes fails like a full disk: in the middle of a write."""
    target = tmp_path / "m.onnx"
    target.write_text("precious")
    model = holding(*[np.full(100_000, i, np.float32) for i in range(10)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(OutputError, match="could not be written") as caught:
            write(model, target, external=external, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free space" in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"] and target.read_text() == "precious"


@pytest.mark.parametrize("kind", [OSError, ModelError, KeyboardInterrupt])
def test_a_weight_that_fails_leaves_nothing(kind: type[BaseException], tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if kind is OSError else kind("bad weight")

    model = holding(np.ones(100_000, np.float32), lazy(fail, onnx_ir.DataType.FLOAT, (5000,)))
    with pytest.raises(OutputError if kind is OSError else kind):
        write(model, tmp_path / "m.onnx", external=True)
    assert list(tmp_path.iterdir()) == []
    # And the graph is whole again.
    assert not any(isinstance(v.const_value, onnx_ir.ExternalTensor) for v in model.graph.initializers.values())


def test_bytes_run(tiny_lm: Make) -> None:
    ids = np.array([[1, 2]])
    assert Session(to_bytes(tiny_lm())).run({"ids": ids})[0].shape == (1, 2, 4096)
