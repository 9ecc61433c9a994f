"""compile, export, save and load, from ONNX files."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import burnish
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish import passes
from burnish.ir.errors import ArtifactError


@pytest.mark.parametrize("kind", ["path", "text", "proto", "ir"])
def test_every_form_of_an_onnx_model(network: Callable, kind: str) -> None:
    made = network()
    model = {
        "path": made.path,
        "text": str(made.path),
        "proto": made.proto,
        "ir": onnx_ir.serde.deserialize_model(made.proto),
    }[kind]
    compiled = burnish.compile(model, cache=False)
    np.testing.assert_allclose(compiled(made.x), made.y, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(compiled(made.x), compiled(x=made.x))
    assert compiled.report.route == "onnx"


def test_the_users_model_is_not_changed(network: Callable) -> None:
    made = network()
    before = made.proto.SerializeToString()
    burnish.compile(made.proto, passes="w4a16")
    assert made.proto.SerializeToString() == before
    graph = onnx_ir.serde.deserialize_model(made.proto)
    before = onnx_ir.serde.serialize_model(graph).SerializeToString()
    burnish.compile(graph, passes="w4a16")
    assert onnx_ir.serde.serialize_model(graph).SerializeToString() == before


# Four bits of N(0, 1) weights in groups of 64: a step of about 5/15 gives a relative error of 0.33/√12 ≈ 0.1 a layer.
@pytest.mark.parametrize(
    ("preset", "least", "most"), [("default", 0, 1e-6), ("w4a16", 0.02, 0.2), ("w8a16", 1e-3, 0.02)]
)
def test_presets(network: Callable, preset: str, least: float, most: float) -> None:
    made = network()
    compiled = burnish.compile(made.path, passes=preset, verify="numerics", example_inputs=made.x, cache=False)
    y = compiled(made.x)
    error = np.linalg.norm(y - made.y) / np.linalg.norm(made.y)
    assert least <= error <= most
    assert compiled.report.error == pytest.approx(error, rel=1e-2, abs=1e-6)
    lost = max(item.error or 0.0 for item in compiled.report.passes)  # one pass loses, the others nothing
    assert compiled.report.error == pytest.approx(lost, rel=1e-3, abs=1e-7)
    assert compiled.report.nonstandard == ({} if preset == "default" else {"com.microsoft.MatMulNBits": 2})


def test_numerics_without_example_inputs(network: Callable) -> None:
    report = burnish.compile(network().path, passes="w8a16", verify="numerics", cache=False).report
    assert report.error is not None and 0 < report.error < 0.02
    off = burnish.compile(network().path, verify="off", cache=False).report
    assert off.error is None and off.verify == "off"


def test_bits_per_weight(network: Callable) -> None:
    report = burnish.compile(network(256, 512, 256).path, passes="w4a16(symmetric=true)", cache=False).report
    weights = 256 * 512 * 2 + 512
    assert report.weights == weights
    # A group of 64: 32 bytes of codes and a float32 scale; the bias stays in 32 bits.
    assert report.bits_per_weight == pytest.approx((256 * 512 * 2 * 4.5 + 512 * 32) / weights, rel=1e-3)
    assert report.source_bytes == 4 * weights


def test_empty_list_of_passes_changes_nothing(network: Callable) -> None:
    made = network()
    compiled = burnish.compile(made.path, passes=[], cache=False)
    assert compiled.report.passes == []
    plain = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(compiled(made.x), plain.run(None, {"x": made.x})[0])


def test_passes_as_objects(network: Callable) -> None:
    report = burnish.compile(network().path, passes=[passes.Quantize(bits=8, group_size=32)], cache=False).report
    assert [item.spec for item in report.passes] == [
        "canonicalize",
        "recover",
        "quantize(scheme=w4a16,bits=8,group_size=32)",
    ]


@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
def test_export_and_load(network: Callable, tmp_path: Path, target: str) -> None:
    made = network()
    path = tmp_path / "small.onnx"
    report = burnish.export(made.path, path, passes="w4a16", target=target, cache=False)
    assert (report.nonstandard == {}) == (target == "onnx")
    loaded = burnish.load(path)
    reference = burnish.compile(made.path, passes="w4a16", cache=False)(made.x)
    np.testing.assert_allclose(loaded(made.x), reference, rtol=0.05, atol=0.02 * np.abs(reference).max())
    if target == "onnx":
        onnx.checker.check_model(str(path), full_check=True)
    assert loaded.manifest.target == target
    assert loaded.manifest.passes == (
        "canonicalize",
        "recover",
        "rotate(only_calibrated=true)",
        "quantize(scheme=w4a16)",
        "merge_products",
    )
    assert loaded.report == report
    assert sorted(item.name for item in tmp_path.iterdir() if item.name.startswith("small")) == ["small.onnx"]
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("name", ["small.onnx", "folder"])
def test_save_with_a_data_file(network: Callable, tmp_path: Path, name: str, cache: bool) -> None:
    made = network(4096, 4096, 64)  # more than 64 MB of weights: they go to a data file
    compiled = burnish.compile(made.path, cache=tmp_path / "cache" if cache else False)
    out = tmp_path / "out"
    out.mkdir()
    compiled.save(out / name)
    assert compiled(made.x).shape == (3, 64)  # saving leaves the model as it is
    model = out / name if name.endswith(".onnx") else out / name / "model.onnx"
    assert model.stat().st_size < 100_000
    expected = {model.name, f"{model.name}.data"} | ({"burnish.json"} if name == "folder" else set())
    assert {item.name for item in model.parent.iterdir()} == expected
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(plain.run(None, {"x": made.x})[0], compiled(made.x))
    again = burnish.load(out / name, check=True)
    np.testing.assert_array_equal(again(made.x), compiled(made.x))
    again.save(out / "copy.onnx")
    np.testing.assert_array_equal(burnish.load(out / "copy.onnx")(made.x), compiled(made.x))
    again.save(out / "folder2")
    np.testing.assert_array_equal(burnish.load(out / "folder2")(made.x), compiled(made.x))
    if name == "folder":
        manifest = json.loads((model.parent / "burnish.json").read_text())
        assert manifest["data"]["size"] == (model.parent / "model.onnx.data").stat().st_size


def test_overwriting(network: Callable, tmp_path: Path) -> None:
    first, second = (burnish.compile(network(seed=seed).path, cache=False) for seed in (0, 1))
    x = network().x
    for name in ("m.onnx", "m"):
        first.save(tmp_path / name)
        second.save(tmp_path / name, overwrite=True)
        np.testing.assert_array_equal(burnish.load(tmp_path / name)(x), second(x))
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


def test_overwriting_a_large_model_by_a_small_one_takes_its_data_away(network: Callable, tmp_path: Path) -> None:
    large = burnish.compile(network(4096, 4096, 64).path, cache=False)
    large.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    burnish.compile(network().path, cache=False).save(tmp_path / "m.onnx", overwrite=True)
    assert not (tmp_path / "m.onnx.data").exists()


def test_temporary_files_go_away_with_the_model(network: Callable) -> None:
    compiled = burnish.compile(network().path, cache=False)
    folder = compiled.path.parent
    assert folder.exists()
    del compiled
    gc.collect()
    assert not folder.exists()


def test_torch_tensors_in_and_out(network: Callable) -> None:
    torch = pytest.importorskip("torch")
    made = network()
    y = burnish.compile(made.path)(torch.from_numpy(made.x))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(y.numpy(), made.y, rtol=1e-5, atol=1e-4)


def test_loading_imports_neither_torch_nor_onnx(network: Callable, tmp_path: Path) -> None:
    made = network()
    for name in ("m.onnx", "m"):
        burnish.export(made.path, tmp_path / name, passes="w4a16", cache=False)
        np.save(tmp_path / "x.npy", made.x)
        program = f"""
import sys, numpy, burnish
model = burnish.load({str(tmp_path / name)!r})
y = model(numpy.load({str(tmp_path / "x.npy")!r}))
print(model.manifest.runtime, repr(model), type(y).__name__)
heavy = {{"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "sympy", "rich", "typer"}}
print(sorted(heavy & set(sys.modules)))
"""
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert out.splitlines() == ["1.23 CompiledModel(x: float[batch, 64] -> y: float[batch, 32]) ndarray", "[]"]


def test_a_model_that_was_compiled_and_loaded_with_onnx_compiles_again(network: Callable, tmp_path: Path) -> None:
    made = network()
    burnish.export(made.path, tmp_path / "a.onnx", cache=False)
    again = burnish.compile(onnx.load(tmp_path / "a.onnx"), passes="w8a16")
    again.save(tmp_path / "b.onnx")
    assert burnish.load(tmp_path / "b.onnx").manifest.passes[-2] == "quantize(scheme=w8a16)"


def test_a_runtime_that_is_too_old(network: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    burnish.export(network().path, tmp_path / "m.onnx", cache=False)
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(ArtifactError, match=r"needs ONNX Runtime 1\.23 or newer, 1\.20\.1 is installed"):
        burnish.load(tmp_path / "m.onnx")
