"""Bad input to the Python interface, one case at a time: the kind of error, what it says, and nothing half-written."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from burnish import passes
from burnish.ir.errors import (
    ArtifactError,
    BurnishError,
    CalibrationError,
    InputError,
    ModelError,
    OptionError,
    OutputError,
    SelectorError,
    UnsupportedError,
)
from torch import nn

BATCH = torch.export.Dim("batch")


class Masked(nn.Module):
    """A linear layer and an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.linear(x)
        return y if mask is None else y * mask


@pytest.fixture
def model() -> nn.Module:
    return Masked().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 8)


@pytest.fixture(scope="module")
def compiled() -> burnish.CompiledModel:
    return burnish.compile(Masked().eval(), (torch.randn(4, 8),), dynamic_shapes={"x": {0: BATCH}})


def refused(kind: type[BurnishError], what: str, call: Callable[[], Any]) -> BurnishError:
    """Assert that ``call`` raises exactly ``kind`` with what, where and fix, and return it."""
    with pytest.raises(BurnishError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, error
    assert what in error.what
    assert error.fix, "what to do is missing"
    assert error.where or "'" in error.what, "where is missing"
    return error


# Example inputs


def test_missing_example_inputs(model: nn.Module) -> None:
    error = refused(InputError, "example inputs are missing", lambda: burnish.compile(model))
    assert error.where == "example_inputs= of Masked"


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ((torch.ones(4, 8),) * 3, "too many positional arguments"),
        ({"mask": torch.ones(4, 8)}, "missing a required argument: 'x'"),
        ({"y": torch.ones(4, 8)}, "argument"),
        (torch.ones(4, 9), "mat1 and mat2 shapes cannot be multiplied (4x9 and 8x8)"),
        (torch.ones(4, 8, dtype=torch.int64), "must have the same dtype"),
        (("text",), "must be Tensor, not str"),
        (torch.ones(4, 8, device="meta"), "device 'meta'"),
    ],
)
def test_wrong_example_inputs(model: nn.Module, inputs: Any, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    refused(InputError, what, lambda: burnish.compile(model, inputs))
    assert "Traceback" not in capfd.readouterr().err


# Calls


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((), {}, "argument 'x' is missing"),
        ((torch.ones(4, 8),) * 3, {}, "3 arguments given"),
        ((), {"z": torch.ones(4, 8)}, "no argument 'z'"),
        ((torch.ones(4, 8, dtype=torch.float64),), {}, "element type DOUBLE, the model takes FLOAT"),
        ((torch.ones(8),), {}, "has 1 dimensions (8,), the model takes 2: (batch, 8)"),
        ((torch.ones(4, 7),), {}, "is 7, the model was compiled for exactly 8"),
        ((torch.ones(4, 8, device="meta"),), {}, "is on device 'meta'"),
        (("text",), {}, "is a str, the model takes a tensor"),
        ((None,), {}, "argument 'x' is None"),
    ],
)
def test_wrong_arguments_of_a_call(compiled: burnish.CompiledModel, args: tuple, kwargs: dict, what: str) -> None:
    refused(InputError, what, lambda: compiled(*args, **kwargs))


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((), {}, "input 'x' is missing"),
        ((np.ones((3, 64), np.float32),) * 2, {}, "2 inputs given, the model takes 1"),
        ((), {"z": 1}, "no input 'z'"),
        ((np.ones((3, 64)),), {}, "element type DOUBLE, the model takes FLOAT"),
        ((np.ones(64, np.float32),), {}, "has 1 dimensions"),
        ((np.ones((3, 65), np.float32),), {}, "is 65, the model was compiled for exactly 64"),
        (({},), {}, "is a dict, the model takes a tensor"),
    ],
)
def test_wrong_arguments_of_an_onnx_model(
    network: Callable, tmp_path: Path, args: tuple, kwargs: dict, what: str
) -> None:
    burnish.export(network().path, tmp_path / "m.onnx", cache=False)
    loaded = burnish.load(tmp_path / "m.onnx")
    refused(InputError, what, lambda: loaded(*args, **kwargs))


def test_generate_of_what_is_no_decoder(compiled: burnish.CompiledModel) -> None:
    refused(UnsupportedError, "needs a causal language model", lambda: compiled.generate(torch.ones(1, 2)))


# Dynamic shapes


class View(nn.Module):
    """Fixes its batch to 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(4, -1) + 1


def test_a_dynamic_dimension_used_as_static(x: torch.Tensor) -> None:
    error = refused(
        InputError,
        "dimension batch cannot vary",
        lambda: burnish.compile(View().eval(), (x,), dynamic_shapes={"x": {0: BATCH}}),
    )
    assert "4" in str(error.fix)


def test_dynamic_shapes_that_do_not_fit(model: nn.Module, x: torch.Tensor) -> None:
    refused(InputError, "dynamic_shapes", lambda: burnish.compile(model, (x,), dynamic_shapes={"no": {0: BATCH}}))


def test_dynamic_shapes_of_a_file(network: Callable) -> None:
    refused(OptionError, "has its shapes already", lambda: burnish.compile(network().path, dynamic_shapes={}))


class Branches(nn.Module):
    """Computes one thing or another, depending on its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_result_that_depends_on_values(x: torch.Tensor) -> None:
    refused(UnsupportedError, "depends on the values", lambda: burnish.compile(Branches().eval(), (x,)))


# Models


def test_training_mode(x: torch.Tensor) -> None:
    error = refused(ModelError, "training mode", lambda: burnish.compile(Masked(), (x,)))
    assert error.where == "Masked, linear"
    model = Masked().eval()
    model.linear.train()
    assert refused(ModelError, "training mode", lambda: burnish.compile(model, (x,))).where == "linear"


def test_a_model_without_weights(x: torch.Tensor) -> None:
    error = refused(ModelError, "has no weights", lambda: burnish.compile(Masked().eval().to("meta"), (x,)))
    assert error.where == "linear.weight"


@pytest.mark.parametrize("thing", [3, None, object(), [1], b"bytes"])
def test_what_is_no_model(thing: object) -> None:
    with pytest.raises(ModelError, match="is not a model"):
        burnish.compile(thing)


def test_classes_and_other_forms(x: torch.Tensor, compiled: burnish.CompiledModel) -> None:
    with pytest.raises(ModelError, match="is a class, not a model"):
        burnish.compile(Masked)
    refused(UnsupportedError, "compiled already", lambda: burnish.compile(compiled))
    refused(UnsupportedError, "TorchScript", lambda: burnish.compile(torch.jit.trace(Masked().eval(), x), (x,)))


# Files


def test_missing_file(tmp_path: Path) -> None:
    refused(ModelError, "no such file or folder", lambda: burnish.compile(tmp_path / "no.onnx"))
    refused(ModelError, "no such file or folder", lambda: burnish.compile("organization/model"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(network: Callable) -> None:
    path = network().path
    path.chmod(0)
    refused(ModelError, "cannot be read", lambda: burnish.compile(path))


@pytest.mark.parametrize("name", ["m.onnx", "m.gguf", "m.pt2", "m", "m.txt"])
@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"\x00" * 60])
def test_foreign_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(ModelError, "", lambda: burnish.compile(path))
    assert name in str(error.where)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.bin"])
def test_weights_without_a_program(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    refused(UnsupportedError, "weights without the program", lambda: burnish.compile(tmp_path / name))


def test_truncated_file(network: Callable, tmp_path: Path) -> None:
    whole = network().path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * part)])
        refused(ModelError, "not a whole ONNX file", lambda: burnish.compile(tmp_path / "cut.onnx"))


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_external_data(network: Callable, damage: str) -> None:
    made = network(external=True)
    data = made.path.with_name(made.path.name + ".weights")
    data.unlink() if damage == "missing" else data.write_bytes(data.read_bytes()[:-4])
    error = refused(ModelError, "", lambda: burnish.compile(made.path))
    assert data.name in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) { y = Add(x, missing) }',
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) { y = Nonsense(x) }',
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) { y = Relu(x) y = Abs(x) }',
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] z) { y = Relu(x) }',
        '<ir_version: 10, opset_import: ["": 23]> g (float[2] x, float[3] z) => (float[2] y) { y = Add(x, z) }',
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) { y = Relu <nope=1> (x) }',
    ],
)
def test_invalid_graphs(text: str) -> None:
    proto = onnx.parser.parse_model(text)
    with pytest.raises(BurnishError) as caught:
        burnish.compile(proto)
    assert isinstance(caught.value, ModelError | UnsupportedError), repr(caught.value)
    assert caught.value.where


def test_folders(tmp_path: Path) -> None:
    refused(ModelError, "config.json is missing", lambda: burnish.compile(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        burnish.compile(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    refused(ModelError, "no weights", lambda: burnish.compile(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    error = refused(UnsupportedError, "'nonsense'", lambda: burnish.compile(tmp_path))
    assert len(str(error)) < 2000


def test_a_model_that_is_compiled_already(network: Callable, tmp_path: Path) -> None:
    for name in ("m.onnx", "m"):
        burnish.export(network().path, tmp_path / name, cache=False)
        error = refused(ModelError, "compiled already", lambda: burnish.compile(tmp_path / name))  # noqa: B023
        assert "burnish.load" in str(error.fix)


# Options


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ("quantise", "no pass or preset 'quantise'", "did you mean 'quantize'"),
        ("w4a61", "no pass or preset 'w4a61'", "did you mean 'w4a16'"),
        ("quantize(bit=8)", "no option 'bit'", "did you mean 'bits'"),
        ("quantize(bits=three)", "takes int | none, not 'three'", "type int"),
        ("quantize(bits=5)", "bits=5", "use 2, 3, 4 or 8 bits"),
        ("w4a16(group_size=48)", "group_size=48 is taken by no kernel", "16, 32, 64, 128, 256"),
        ("quantize,canonicalize", "cannot run after", "this order works: canonicalize,recover,quantize"),
    ],
)
def test_passes(network: Callable, given: str, what: str, fix: str) -> None:
    with pytest.raises(OptionError) as caught:
        burnish.compile(network().path, passes=given)
    assert what in caught.value.what
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_selector_that_matches_nothing(network: Callable, option: str) -> None:
    chosen = passes.Quantize(**{option: "*.q_proj"})
    error = refused(SelectorError, "'*.q_proj' matches none", lambda: burnish.compile(network().path, passes=[chosen]))
    assert "MatMul" in str(error.fix)


def test_a_group_size_that_does_not_divide_is_no_error(network: Callable) -> None:
    made = network(inside=72)
    y = burnish.compile(made.path, passes="w8a16", cache=False)(made.x)
    assert np.linalg.norm(y - made.y) / np.linalg.norm(made.y) < 0.02


@pytest.mark.parametrize(
    ("options", "kind", "what"),
    [
        ({"backend": "triton"}, UnsupportedError, "kernels run on a GPU"),
        ({"backend": "onnxruntme"}, OptionError, "no backend 'onnxruntme'"),
        ({"verify": "numeric"}, OptionError, "not a way to verify"),
        ({"threads": 0}, OptionError, "not a number of threads"),
        ({"cache": 3}, OptionError, "not a folder"),
        ({"calibration": "text"}, CalibrationError, "not a list of inputs"),
        ({"calibration": [], "verify": "numerics"}, CalibrationError, "holds no inputs"),
        ({"calibration": [np.ones(3, np.float32)], "verify": "numerics"}, InputError, "has 1 dimensions"),
    ],
)
def test_other_options(network: Callable, options: dict, kind: type[BurnishError], what: str) -> None:
    refused(kind, what, lambda: burnish.compile(network().path, **options))


def test_calibration_that_nothing_reads_is_said(network: Callable) -> None:
    report = burnish.compile(network().path, calibration=[(network().x,)]).report
    assert any("calibration inputs were not read" in group.reason for group in report.backend)


def test_target(network: Callable, tmp_path: Path) -> None:
    refused(OptionError, "no target 'onx'", lambda: burnish.export(network().path, tmp_path / "m.onnx", target="onx"))


# Outputs


def left(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if not item.name.startswith("network"))


@pytest.mark.parametrize("name", ["m.onnx", "m"])
def test_existing_output(network: Callable, tmp_path: Path, name: str) -> None:
    burnish.export(network().path, tmp_path / name, cache=False)
    model = tmp_path / name if name == "m.onnx" else tmp_path / name / "model.onnx"
    before = model.read_bytes()
    refused(OutputError, "exists", lambda: burnish.export(network().path, tmp_path / name, passes="w4a16"))
    refused(OutputError, "exists", lambda: burnish.compile(network().path).save(tmp_path / name))
    assert model.read_bytes() == before and left(tmp_path) == [name]


def test_a_folder_of_the_users_is_never_overwritten(network: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    refused(
        OutputError, "not a compiled model", lambda: burnish.export(network().path, folder, overwrite=True, cache=False)
    )
    assert (folder / "notes.txt").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    refused(
        OutputError, "a file of this name", lambda: burnish.export(network().path, tmp_path / "file", overwrite=True)
    )
    (tmp_path / "m.onnx").mkdir()
    refused(OutputError, "a folder of this name", lambda: burnish.export(network().path, tmp_path / "m.onnx"))


def test_output_folder_that_does_not_exist(network: Callable, tmp_path: Path) -> None:
    refused(OutputError, "does not exist", lambda: burnish.export(network().path, tmp_path / "no" / "m.onnx"))
    assert left(tmp_path) == []


def test_unwritable_output(network: Callable) -> None:
    # /proc refuses new files even to root.
    refused(OutputError, "", lambda: burnish.export(network().path, "/proc/m.onnx", cache=False))
    refused(OutputError, "", lambda: burnish.compile(network().path).save("/proc/m.onnx"))


@pytest.mark.parametrize("name", ["m.onnx", "m"])
@pytest.mark.parametrize("moment", ["weights", "publish", "save"])
def test_full_disk(network: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str) -> None:
    made = network()
    compiled = burnish.compile(made.path, cache=False)

    def full(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "weights":
        monkeypatch.setattr("burnish.backends.onnxruntime.writer._serialize", lambda *args: full(0, tmp_path / ".part"))
        call = lambda: burnish.export(made.path, tmp_path / name, cache=False)  # noqa: E731
    elif moment == "publish":
        monkeypatch.setattr(shutil, "copyfile", full)
        call = lambda: burnish.export(made.path, tmp_path / name, cache=tmp_path.parent / "full")  # noqa: E731
    else:
        monkeypatch.setattr(shutil, "copyfile", full)
        call = lambda: compiled.save(tmp_path / name)  # noqa: E731
    error = refused(OutputError, "No space left on device", call)
    assert "space" in str(error.fix)
    (tmp_path / ".part").unlink(missing_ok=True)
    assert left(tmp_path) == []


def test_a_disk_that_fills_in_mid_write(network: Callable, tmp_path: Path) -> None:
    made = network(2048, 2048, 64)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    program = f"""
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import burnish
from burnish.ir.errors import OutputError
try:
    burnish.export({str(made.path)!r}, {str(tmp_path / "m.onnx")!r}, cache=False)
except OutputError as error:
    print("refused", error.what)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limit)
    assert done.stdout.startswith("refused"), done.stderr
    assert left(tmp_path) == []


# Saved models


def test_what_cannot_be_loaded(network: Callable, tmp_path: Path) -> None:
    refused(ArtifactError, "no such file", lambda: burnish.load(tmp_path / "no"))
    refused(ArtifactError, "burnish.json is missing", lambda: burnish.load(tmp_path))
    refused(ArtifactError, "not written by Burnish", lambda: burnish.load(network().path))
    (tmp_path / "t.txt").write_text("hello")
    refused(ArtifactError, "not a whole ONNX file", lambda: burnish.load(tmp_path / "t.txt"))


def test_damaged_artifacts(network: Callable, tmp_path: Path) -> None:
    made = network(4096, 4096, 64)
    folder = tmp_path / "m"
    burnish.export(made.path, folder, cache=False)
    model, data, manifest = folder / "model.onnx", folder / "model.onnx.data", folder / "burnish.json"
    whole = {path: path.read_bytes() for path in (model, manifest)}
    for path, content in ((model, whole[model][:-10]), (manifest, b"{"), (manifest, b"{}"), (model, b"")):
        path.write_bytes(content)
        refused(ArtifactError, "", lambda: burnish.load(folder))
        path.write_bytes(whole[path])
    model.unlink()
    refused(ArtifactError, "model.onnx is missing", lambda: burnish.load(folder))
    model.write_bytes(whole[model])
    with data.open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00\x01\x02\x03")
    burnish.load(folder)
    refused(ArtifactError, "changed after it was written", lambda: burnish.load(folder, check=True))
    os.truncate(data, 1000)
    refused(ArtifactError, "has 1000 bytes", lambda: burnish.load(folder))
    data.unlink()
    refused(ArtifactError, "model.onnx.data is missing", lambda: burnish.load(folder))


def test_an_artifact_of_a_newer_format(network: Callable, tmp_path: Path) -> None:
    burnish.export(network().path, tmp_path / "m.onnx", cache=False)
    model = onnx_ir.load(tmp_path / "m.onnx")
    manifest = json.loads(model.metadata_props["burnish.manifest"]) | {"format": 99}
    model.metadata_props["burnish.manifest"] = json.dumps(manifest)
    onnx_ir.save(model, tmp_path / "newer.onnx")
    refused(ArtifactError, "format 99", lambda: burnish.load(tmp_path / "newer.onnx"))


def test_files_that_vanish_under_a_compiled_model(network: Callable, tmp_path: Path) -> None:
    compiled = burnish.compile(network().path, cache=False)
    shutil.rmtree(compiled.path.parent)
    refused(ArtifactError, "compiled files are gone", lambda: compiled.save(tmp_path / "m.onnx"))
    assert left(tmp_path) == []
