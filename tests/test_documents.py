"""README, CONTRIBUTING and docs: every example and command runs, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a small stand-in for SmolLM2, and an ONNX file."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=8191,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=8191)
    model.save_pretrained(folder / "SmolLM2-135M-Instruct")
    letters = Tokenizer(WordLevel({chr(33 + index): index for index in range(90)}, unk_token="!"))
    letters.save(str(folder / "SmolLM2-135M-Instruct" / "tokenizer.json"))
    (folder / "SmolLM2-135M-Instruct" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(shape, np.float32) / 8 for shape in ((64, 128), (128, 32))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["y"]),
        ],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    return folder


def _run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "<example>", "exec"), names)
    return names


@pytest.mark.parametrize("index", range(5), ids=["module", "streams", "language model", "torch.compile", "ONNX file"])
def test_readme_examples(
    folder: Path, index: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    examples = _blocks(ROOT / "README.md", "python")
    assert len(examples) == 5
    names = _run(examples[index])
    shown = capsys.readouterr().out
    if "decoder" in names:
        assert len(re.findall(r"\d+", shown)) == 5 + 16
        assert sum(f.stat().st_size for f in (folder / "smollm2-4bit").glob("model.onnx*")) < 0.8e6  # float32: 2.4 MB
    elif "fast" in names:
        assert "nodes on ONNX Runtime" in shown and "eager" not in shown
    elif "encoder" in names:
        assert names["compiled"].streams == 2
    else:
        assert "canonicalize" in shown


def test_readme_commands(folder: Path) -> None:
    (block,) = _blocks(ROOT / "README.md", "sh")
    program = Path(sys.executable).with_name("burnish")
    commands = block.strip().splitlines()
    assert len(commands) == 8
    for line in commands:
        name, *arguments = shlex.split(line)
        assert name == "burnish"
        done = subprocess.run([program, *arguments], cwd=folder, input="", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert (folder / "smollm2-w4" / "model.onnx").exists()


def test_readme_names_real_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        for target in re.findall(r"\bmake ([a-z][a-z-]*)\b(?=[`\s]*(?:#|`))", document.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.M), f"{document.name}: make {target}"


def test_benchmark_example(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("burnish.compiler.benchmark.runner._TURN", 0.01)
    (folder / "small.onnx").unlink(missing_ok=True)
    (folder / "small.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (example,) = _blocks(ROOT / "docs" / "benchmarks.md", "python")
    _run(example)
    assert "small.onnx" in capsys.readouterr().out
    (folder / "small.onnx").unlink()


def test_contributing_operator() -> None:
    import burnish
    import torch
    from burnish.frontends.torch_export.registry import RULES, find

    class Distance(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.hypot(x, y)

    example, *_ = _blocks(ROOT / "CONTRIBUTING.md", "python")
    assert find(torch.ops.aten.add.Tensor)  # loads the rules
    assert "aten.hypot.default" not in RULES
    try:
        _run(example)
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        compiled = burnish.compile(Distance().eval(), (x, y))
        assert compiled.manifest.route == "torch.export"
        torch.testing.assert_close(compiled(x, y), torch.hypot(x, y))
    finally:
        RULES.pop("aten.hypot.default", None)


def test_contributing_pass() -> None:
    import onnx_ir
    from burnish.passes.base import Context

    names = _run(_blocks(ROOT / "CONTRIBUTING.md", "python")[1])
    graph = onnx_ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> g (float[N,4] x) => (float[N,4] z)'
        " { y = Neg(x) \n w = Neg(y) \n z = Relu(w) }"
    )
    cancel = names["CancelNegations"]()
    assert cancel.run(graph, Context()).rewrites == {"-(-x) => x": 1}
    assert [node.op_type for node in graph.graph] == ["Identity", "Relu"]
    again = cancel.run(graph, Context())
    assert not again.changed
    assert again.remarks[0].reason == "no pair of negations"


def test_contributing_backend(folder: Path) -> None:
    names = _run(_blocks(ROOT / "CONTRIBUTING.md", "python")[2])
    session = names["ReferenceSession"](folder / "model.onnx")
    (y,) = session.run({"x": np.ones((2, 64), np.float32)})
    assert y.shape == (2, 32)


def test_files_named_in_documents_exist() -> None:
    missing = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http") and not (document.parent / target).exists():
                missing.append(f"{document.name}: {target}")
        for path in re.findall(r"`((?:compiler|frontends|passes|backends|ir|tools|tests)/[\w/.]+)`", text):
            if not (ROOT / path).exists():
                missing.append(f"{document.name}: {path}")
    assert not missing


def test_tables_of_figures_can_be_written() -> None:
    from burnish.tools.bench_results import fill

    fill((ROOT / "README.md").read_text(encoding="utf-8"), {"decoder": "", "machine": ""})
    blocks = dict.fromkeys(("decoder", "machine", "files", "scale", "checks"), "")
    fill((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), blocks)
