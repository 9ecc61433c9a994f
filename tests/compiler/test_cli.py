"""The command line: what each command prints, its exit status, and that no error shows a traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import burnish
import numpy as np
import onnx
import pytest
from burnish.compiler.cli.compiling import option_docs
from burnish.passes import Quantize


def run(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "burnish", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})


def done(*args: object) -> str:
    """Run the command line, which must succeed silently on standard error, and return what it prints."""
    result = run(*args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refused(*args: object) -> str:
    """Run the command line, which must fail with a message and no traceback, and return the message."""
    result = run(*args)
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr and "Traceback" not in result.stdout
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.mark.parametrize("name", ["m.onnx", "m"])
def test_compile(network: Callable, tmp_path: Path, name: str) -> None:
    made = network()
    report = tmp_path / "report.json"
    out = done("compile", made.path, "-o", tmp_path / name, "--passes", "w8a16", "--report", report)
    assert "com.microsoft.MatMulNBits × 2" in out and f"written: {tmp_path / name}" in out
    assert json.loads(report.read_text())["passes"][2]["spec"] == "quantize(scheme=w8a16)"
    y = burnish.load(tmp_path / name)(made.x)
    assert np.linalg.norm(y - made.y) / np.linalg.norm(made.y) < 0.02
    again = done("compile", made.path, "-o", tmp_path / name, "--passes", "w8a16", "--overwrite")
    assert "from the compile cache" in again
    fresh = done("compile", made.path, "-o", tmp_path / name, "--passes", "w8a16", "--overwrite", "--no-cache")
    assert "from the compile cache" not in fresh


def test_compile_to_standard_operators_with_numerics(network: Callable, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    out = done("compile", network().path, "-o", path, "--passes", "w4a16", "--target", "onnx", "--verify", "numerics")
    assert "not in ONNX" not in out and "outputs after each pass" in out
    onnx.checker.check_model(str(path), full_check=True)


def test_compile_with_no_passes(network: Callable, tmp_path: Path) -> None:
    made = network()
    done("compile", made.path, "-o", tmp_path / "m.onnx", "--passes", "")
    np.testing.assert_allclose(burnish.load(tmp_path / "m.onnx")(made.x), made.y, rtol=1e-5, atol=1e-4)


def test_passes() -> None:
    out = done("passes")
    for word in ("default", "w4a16", "w8a16", "canonicalize", "recover", "quantize", "group_size", "int | none"):
        assert word in out
    assert "weights that share a scale" in out


def test_options_are_documented() -> None:
    import dataclasses

    assert set(option_docs(Quantize)) == {field.name for field in dataclasses.fields(Quantize)}


def test_inspect(network: Callable, tmp_path: Path) -> None:
    made = network()
    out = done("inspect", made.path, "--graph")
    assert "x: float[batch, 64]" in out and "MatMul × 2" in out and "32.00 bits per weight" in out
    assert "= Relu(%c)" in out
    burnish.export(made.path, tmp_path / "m", passes="w4a16", cache=False)
    out = done("inspect", tmp_path / "m", "--report")
    assert "Burnish, from onnx, for onnxruntime" in out and "quantize(scheme=w4a16)" in out
    assert "ONNX Runtime 1.23 or newer" in out and "Remarks" in out


def test_compare(network: Callable, tmp_path: Path) -> None:
    made = network()
    burnish.export(made.path, tmp_path / "m.onnx", passes="w8a16", cache=False)
    np.savez(tmp_path / "x.npz", x=made.x)
    out = done("compare", made.path, tmp_path / "m.onnx", "--inputs", tmp_path / "x.npz")
    assert "MatMulNBits" in out
    error = float(out.strip().splitlines()[-1].split()[1])
    y = burnish.load(tmp_path / "m.onnx")(made.x)
    assert error == pytest.approx(np.linalg.norm(y - made.y) / np.linalg.norm(made.y), rel=0.05)
    same = done("compare", made.path, made.path)
    assert same.strip().splitlines()[-1].split()[1] == "0"


def test_benchmark(network: Callable, tmp_path: Path) -> None:
    made = network()
    out = done("benchmark", made.path, "--dim", "batch=2", "--rounds", 5, "--json", tmp_path / "figures.json")
    assert "call" in out
    assert (
        len(json.loads((tmp_path / "figures.json").read_text())["scenarios"]["call"]["network0.onnx"]["rounds_ms"]) == 5
    )


def test_version_and_help() -> None:
    assert done("--version").strip() == f"burnish {burnish.__version__}"
    for args in (["--help"], ["compile", "--help"], ["inspect", "-h"]):
        assert "Usage: burnish" in done(*args)
    assert run("frob").returncode == 2
    assert run("compile").returncode == 2


def test_the_light_commands_do_not_import_torch(network: Callable) -> None:
    path = str(network().path)
    for args in (["--version"], ["inspect", path], ["passes"]):
        program = (
            f"import sys; sys.argv = ['burnish', *{args!r}]\n"
            "from burnish.compiler.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print('torch' in sys.modules)"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert out.strip().splitlines()[-1] == "False", args


# Bad input


def test_unknown_names(network: Callable, tmp_path: Path) -> None:
    path, out = network().path, tmp_path / "m.onnx"
    assert "did you mean 'quantize'" in refused("compile", path, "-o", out, "--passes", "quantise")
    assert "did you mean 'group_size'" in refused("compile", path, "-o", out, "--passes", "w4a16(grp_size=32)")
    assert "did you mean 'onnx'" in refused("compile", path, "-o", out, "--target", "onx")
    assert "did you mean 'numerics'" in refused("compile", path, "-o", out, "--verify", "numerc")
    assert "taken by no kernel" in refused("compile", path, "-o", out, "--passes", "w4a16(group_size=48)")
    assert "matches none" in refused("compile", path, "-o", out, "--passes", "quantize(include='*.q_proj')")
    assert not out.exists()


def test_models_that_are_none(network: Callable, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    assert "no such file" in refused("compile", tmp_path / "no.onnx", "-o", out)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(network().path.read_bytes()[:1000])
    for command in (["compile", cut, "-o", out], ["inspect", cut], ["compare", cut, cut], ["benchmark", cut]):
        assert str(cut) in refused(*command)
    assert "config.json is missing" in refused("compile", tmp_path, "-o", out)
    assert "no such file" in refused("inspect", tmp_path / "no.onnx")
    assert not out.exists()


def test_outputs_that_cannot_be(network: Callable, tmp_path: Path) -> None:
    path = network().path
    out = tmp_path / "m.onnx"
    out.write_text("precious")
    assert "m.onnx exists" in refused("compile", path, "-o", out)
    assert out.read_text() == "precious"
    assert "does not exist" in refused("compile", path, "-o", tmp_path / "no" / "m.onnx")
    assert "does not exist" in refused(
        "compile", path, "-o", tmp_path / "a.onnx", "--report", tmp_path / "no" / "r.json"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    assert "not a compiled model" in refused("compile", path, "-o", tmp_path / "mine", "--overwrite")


def test_calibration(network: Callable, tmp_path: Path) -> None:
    path = network().path
    text = tmp_path / "text.txt"
    text.write_text("some words")
    assert "no tokenizer" in refused("compile", path, "-o", tmp_path / "m.onnx", "--calibration", text)
    assert not (tmp_path / "m.onnx").exists()


def test_other_values(network: Callable, tmp_path: Path) -> None:
    path = network().path
    assert "is not NAME=SIZE" in refused("benchmark", path, "--dim", "batch")
    assert "--dim batch=1" in refused("benchmark", path)
    assert "streams=1 with" in refused("benchmark", path, "--dim", "batch=4", "--streams", 1)
    (tmp_path / "x.npz").write_text("no")
    assert "cannot be read" in refused("compare", path, path, "--inputs", tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", z=np.ones(3))
    assert "no array for input x" in refused("compare", path, path, "--inputs", tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    assert "element type DOUBLE" in refused("compare", path, path, "--inputs", tmp_path / "x.npz")


def test_defects_show_no_traceback_either(network: Callable) -> None:
    program = (
        "import sys; sys.argv = ['burnish', 'inspect', sys.argv[1]]\n"
        "import burnish.compiler.cli.looking as c\n"
        "def fail(*a): raise KeyError('boom')\n"
        "c.read_header = fail\n"
        "from burnish.compiler.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, str(network().path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "unexpected error: KeyError: 'boom'" in result.stderr and "BURNISH_TRACEBACK" in result.stderr
    loud = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "BURNISH_TRACEBACK": "1"})
    assert "Traceback" in loud.stderr


def test_interrupt(network: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    program = (
        "import sys, time; sys.argv = ['burnish', 'compile', sys.argv[1], '-o', sys.argv[2], '--no-cache']\n"
        "import burnish.compiler.compilation as b\n"
        "def wait(*a, **k): print('waiting', flush=True); time.sleep(60)\n"
        "b.write = wait\n"
        "from burnish.compiler.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, str(network().path), str(out / "m.onnx")]
    # A runner may have been started in the background, where the shell has interrupts ignored.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "waiting"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said.strip() == "interrupted"
    assert list(out.iterdir()) == []


def test_inspect_merges_the_inputs_of_layers(decoder_file: Path) -> None:
    from burnish.compiler.cli.looking import _merged

    lines = [f"past.{i}.{kind}: float[n, 8]" for i in range(30) for kind in ("key", "value")]
    assert _merged(["ids: int64[n]", *lines, "past.3.key: int8[n]"]) == [
        "ids: int64[n]",
        "past.0…29.key: float[n, 8]",
        "past.0…29.value: float[n, 8]",
        "past.3.key: int8[n]",
    ]
    assert "past_key_values.0.key: float[batch, 2, past, 4]" in done("inspect", decoder_file)


def test_calibration_arrays(network: Callable, tmp_path: Path) -> None:
    made = network()
    np.savez(tmp_path / "x.npz", x=made.x)
    args = ["compile", made.path, "-o", tmp_path / "m.onnx", "--passes", "w8a16", "--verify", "numerics", "--no-cache"]
    out = done(*args, "--calibration", tmp_path / "x.npz")
    assert "random inputs" not in out
    assert "random inputs" in done(*args, "--overwrite")
    np.savez(tmp_path / "x.npz", z=made.x)
    assert "no input 'z'" in refused(*args, "--overwrite", "--calibration", tmp_path / "x.npz")
