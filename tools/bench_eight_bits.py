"""Eight-bit weights and activations against float32 on ONNX Runtime: SmolLM2's prompts, MiniLM, YOLOv8n, PP-OCR.

Speed of all in one run, a process a side; accuracy on data that nothing was calibrated on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..backends.onnxruntime.session import Session
from ..compiler.api import export
from ..compiler.benchmark import Scenario, Side, benchmark, prefill
from ..compiler.benchmark.machine import describe_machine
from ..compiler.benchmark.onnx_side import find_model
from ..compiler.benchmark.result import Result
from ..compiler.progress import terminal_progress
from .baseline import baseline_path, minilm_path
from .bench_results import Check, write_results
from .detections import Agreement, TextAgreement, boxes, crops, photos
from .fetch import model_path
from .perplexity import file_logits, perplexity
from .rivals.bench import reason
from .text import (
    CORPORA,
    calibration_text,
    encyclopedia_text,
    load_tokenizer,
    sentences,
    split_sentences,
    windows,
)

Array = np.ndarray[Any, Any]
FLOAT = "float32"
LEARNED = "w4a16, groups of 32, learned, embedding in 8 bits"
AUTO = "smoothquant, auto, error 0.05"
STATIC = "w8a8 static"
STREAMED = (FLOAT, "w8a8", STATIC, AUTO)
"""Sides that are also measured with two streams."""
RUNTIME = "ONNX Runtime's quantize_static"
_IMAGE = {"yolov8n": 320, "ppocr_det": 640}


class Encoder:
    """MiniLM's tokenizer: its inputs out of text."""

    def __init__(self) -> None:
        self._fast = Tokenizer.from_file(str(model_path("minilm") / "tokenizer.json"))
        self._fast.no_truncation()
        self._fast.no_padding()

    def feeds(self, ids: Sequence[int]) -> dict[str, Array]:
        """One sequence."""
        row = np.asarray([ids], np.int64)
        return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}

    def sentence(self, text: str) -> dict[str, Array]:
        """A sentence with its special tokens."""
        return self.feeds(self._fast.encode(text).ids)

    def calibration(self, count: int = 32, length: int = 128) -> list[dict[str, Array]]:
        """Stretches of the calibration text."""
        return self.stretches(calibration_text(), count, length)

    def mixed(self) -> list[dict[str, Array]]:
        """Stretches of the calibration text and batches of sentences of an encyclopedia, as many of each."""
        stretches = self.calibration()
        return [*stretches, *self.sentence_batches()[: len(stretches)]]

    def stretches(self, text: str, count: int, length: int) -> list[dict[str, Array]]:
        """So many stretches of a text, of this many tokens with the special ones around them."""
        ids = self._fast.encode(text).ids
        first, last = ids[0], ids[-1]
        starts = np.linspace(1, len(ids) - length, count).astype(int)
        return [self.feeds([first, *ids[start : start + length - 2], last]) for start in starts]

    def encyclopedia(self, count: int, length: int = 128, rows: int = 1) -> list[dict[str, Array]]:
        """``count`` inputs, each of ``rows`` stretches of an encyclopedia."""
        parts = self.stretches(encyclopedia_text(), count * rows, length)
        order = np.random.default_rng(0).permutation(len(parts))
        groups = [[parts[i] for i in order[at : at + rows]] for at in range(0, len(parts), rows)]
        return [{name: np.concatenate([one[name] for one in group]) for name in group[0]} for group in groups]

    def sentence_batches(self, tokens: int = 512) -> list[dict[str, Array]]:
        """Sentences of an encyclopedia, each once: about so many tokens an input, of one length, so none is padded."""
        found = dict.fromkeys(s for line in encyclopedia_text().split("\n") for s in split_sentences(line))
        lengths: dict[int, list[Sequence[int]]] = {}
        for text in found:
            ids = self._fast.encode(text).ids
            lengths.setdefault(len(ids), []).append(ids)
        generator = np.random.default_rng(0)
        batches = []
        for length, rows in sorted(lengths.items()):
            order, count = generator.permutation(len(rows)), max(1, tokens // length)
            for at in range(0, len(rows) - count + 1, count):
                batch = np.asarray([rows[i] for i in order[at : at + count]], np.int64)
                batches.append(
                    {"input_ids": batch, "attention_mask": np.ones_like(batch), "token_type_ids": np.zeros_like(batch)}
                )
        return [batches[i] for i in generator.permutation(len(batches))]


def embeddings(path: Path, encoder: Encoder) -> Array:
    """Normalized mean embeddings of 200 sentences: [200, hidden]."""
    session = Session(find_model(path))
    names = [spec.name for spec in session.inputs]
    rows = []
    for text in sentences():
        feeds = encoder.sentence(text)
        hidden = np.asarray(session.run({name: feeds[name] for name in names})[0])[0].mean(axis=0)
        rows.append(hidden / np.linalg.norm(hidden))
    return np.stack(rows)


def encoders(work: Path, rounds: int, checks: list[Check]) -> dict[str, Any]:
    """MiniLM."""
    encoder = Encoder()
    recipes = {
        "default": "default",
        "w8a8": "w8a8",
        STATIC: "w8a8_static",
        AUTO: "smoothquant(alpha=0.8,insert=true),quantize(scheme=auto,budget=0.05,generated=0)",
        "w4a16, groups of 32": "quantize(group_size=32),merge_products",
        LEARNED: "quantize(group_size=32,propagate=errors,overrides={'embeddings':'w8a16'}),"
        "learn_codes(steps=400,batch=1,outputs=last_hidden_state),merge_products",
    }
    sides = [Side(FLOAT, str(minilm_path()))]
    accuracy: dict[str, float] = {}
    expected = embeddings(minilm_path(), encoder)
    for name, passes in recipes.items():
        folder = work / f"minilm-{list(recipes).index(name)}"
        # Training wants more data than statistics do, of the kind that is judged: ordinary English.
        data = encoder.sentence_batches()[:256] if name == LEARNED else encoder.mixed()
        export(model_path("minilm"), folder, passes=passes, calibration=data, overwrite=True)
        sides.append(Side(name, str(folder)))
        accuracy[name] = float((embeddings(folder, encoder) * expected).sum(axis=1).mean())
        print(f"MiniLM {name}: cosine {accuracy[name]:.5f}", flush=True)
    generator = np.random.default_rng(0)
    inputs = {
        "input_ids": generator.integers(1000, 30000, (8, 128)),
        "attention_mask": np.ones((8, 128), np.int64),
        "token_type_ids": np.zeros((8, 128), np.int64),
    }
    sides += [Side(streamed(side.name), side.source, streams=2) for side in sides if side.name in STREAMED]
    result = measure_sides(sides, [Scenario("call", "run")], rounds, inputs)
    checks += [
        Check("MiniLM w8a8: 1 - cosine on 200 sentences", 1 - accuracy["w8a8"], 0.002, ""),
        Check("MiniLM w8a8 static: 1 - cosine on 200 sentences", 1 - accuracy[STATIC], 0.002, ""),
        Check("MiniLM w4a16, groups of 32, learned: 1 - cosine", 1 - accuracy[LEARNED], 0.005, ""),
        Check("MiniLM w8a8: time of 8 x 128 against float32", result.ratio("call", "w8a8"), 1 / 3, "×"),
        Check("MiniLM w8a8 static: time of 8 x 128 against float32", result.ratio("call", STATIC), 1 / 3, "×"),
        Check("MiniLM auto: time of 8 x 128 against float32", result.ratio("call", AUTO), 1 / 3, "×"),
        Check(
            "MiniLM w8a8 static, 2 streams: time of 8 x 128 against float32",
            result.ratio("call", streamed(STATIC)), 1 / 3, "×",
        ),
    ]  # fmt: skip
    accuracy |= {streamed(name): accuracy[name] for name in STREAMED if name in accuracy}  # the same files
    return result.to_json() | {"cosine": accuracy}


def streamed(name: str) -> str:
    """What a side is called with two streams."""
    return f"{name}, 2 streams"


def detectors(work: Path, rounds: int, checks: list[Check]) -> dict[str, Any]:
    """YOLOv8n and the PP-OCR detector."""
    found: dict[str, Any] = {}
    for name, size in _IMAGE.items():
        images = photos(model_path("photos"), size)
        if name == "ppocr_det":
            images = [(image - 0.5) / 0.5 for image in images]
        original, file = model_path(name), work / f"{name}-static.onnx"
        key = Session(original).inputs[0].name
        calibration, judged = images[1::2], images[::2]
        if name == "yolov8n":  # there is one person in the photographs: calibration sees her in a mirror
            person = judged[0]
            calibration = [*calibration, *(np.ascontiguousarray(c[..., ::-1]) for c in crops(person, size, 8))]
            judged = [*judged, *crops(person, size)]
        export(
            original, file, passes="quantize(scheme=w8a8_static)", calibration=[{key: one} for one in calibration],
            overwrite=True, cache=False,
        )  # fmt: skip
        sides = [Side(FLOAT, str(original)), Side("static", str(file))]
        agreement = {"static": _agreement(name, original, file, key, judged)}
        missing: dict[str, str] = {}
        try:
            other = runtime_static(original, work / f"{name}-runtime.onnx", key, calibration)
            agreement[RUNTIME] = _agreement(name, original, other, key, judged)
            sides.append(Side(RUNTIME, str(other)))
        except Exception as error:  # whatever it raises is the row
            missing[RUNTIME] = reason(error)
        result = measure_sides(sides, [Scenario("call", "run")], rounds, {key: images[1]})
        print(f"{name}: {agreement} {missing}", flush=True)
        ours = agreement["static"]
        checks.append(Check(f"{name} static: time against float32", result.ratio("call", "static"), 1 / 1.5, "×"))
        checks.append(Check(f"{name} static: 1 - overlap of detections", 1 - ours["overlap"], 0.1, ""))
        if "f1" in ours:
            checks.append(Check(f"{name} static: 1 - F1 of detections", 1 - ours["f1"], 0.15, ""))
        found[name] = result.to_json() | {"agreement": agreement, "missing": missing}
    return found


def runtime_static(original: Path, file: Path, key: str, calibration: Sequence[Array]) -> Path:
    """The same by ONNX Runtime's own quantizer, as its documentation has it: QDQ, per channel, u8 by s8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        """Gives the images one by one."""

        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            """The next image, or None."""
            image = next(self._left, None)
            return None if image is None else {key: image}

    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(file), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    Session(file)
    return file


def _agreement(name: str, original: Path, file: Path, key: str, images: Sequence[Array]) -> dict[str, float]:
    one, other = Session(original), Session(file)
    found: Agreement | TextAgreement = Agreement() if name == "yolov8n" else TextAgreement()
    for image in images:
        a, b = (np.asarray(session.run({key: image})[0]) for session in (one, other))
        if isinstance(found, Agreement):
            found.add(boxes(a), boxes(b))
        else:
            found.add(a, b)
    return found.figures()


def decoders(work: Path, rounds: int, checks: list[Check]) -> dict[str, Any]:
    """SmolLM2's prompts."""
    encode = load_tokenizer(model_path("smollm2"))
    calibration = [{"input_ids": row[None]} for row in windows(encode, calibration_text(), 32)]
    recipes = {"w8a8": "w8a8", "w8a8 static": "w8a8_static"}
    sides = [Side(FLOAT, str(baseline_path()))]
    for name, passes in recipes.items():
        folder = work / f"smollm2-eight-{list(recipes).index(name)}"
        export(model_path("smollm2"), folder, passes=passes, calibration=calibration, overwrite=True)
        sides.append(Side(name, str(folder)))
    texts = {name: windows(encode, text(), 8) for name, text in CORPORA.items()}
    perplexities = {
        side.name: {name: perplexity(file_logits(side.source), ids) for name, ids in texts.items()} for side in sides
    }
    scenarios = [prefill(128), prefill(512)]
    result = measure_sides(sides, scenarios, rounds, None)
    for scenario in scenarios:
        label = f"SmolLM2 w8a8: {scenario.name} against float32"
        checks.append(Check(label, result.ratio(scenario.name, "w8a8"), 1 / 2.7, "×"))
    ratio = perplexities["w8a8"]["held-out"] / perplexities[FLOAT]["held-out"]
    checks.append(Check("SmolLM2 w8a8: perplexity against float32", ratio, 1.01, "×"))
    return result.to_json() | {"perplexity": perplexities}


def measure_sides(
    sides: Sequence[Side], scenarios: Sequence[Scenario], rounds: int, inputs: Mapping[str, Array] | None
) -> Result:
    """Time scenarios on both sides, a process a side, rounds alternated."""
    with terminal_progress() as progress:
        result = benchmark(*sides, scenarios=scenarios, inputs=inputs, rounds=rounds, progress=progress)
    print(result, flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``eight_bits.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.bench_eight_bits", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["encoders", "detectors", "decoders"], help="one part")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where eight_bits.json goes")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    checks: list[Check] = []
    parts = {"encoders": encoders, "detectors": detectors, "decoders": decoders}
    found = {
        name: part(options.work, options.rounds, checks) for name, part in parts.items() if options.only in (None, name)
    }
    results = {**found, "checks": [check.to_json() for check in checks], "machine": describe_machine()}
    return write_results(options.out / "eight_bits.json", results)


if __name__ == "__main__":
    sys.exit(main())
