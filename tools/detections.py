"""What a detector finds, and how far two detectors agree: boxes of YOLOv8, and maps of text of PP-OCR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import ModelError

Array = np.ndarray[Any, Any]

_SCORE, _OVERLAP = 0.2, 0.45
"""Least score of a detection, and overlap above which two boxes of a class are one (nudenet's own numbers)."""
_MATCH = 0.5
_TEXT = 0.3
"""Probability above which PP-OCR counts a pixel as text."""


@dataclass(frozen=True)
class Found:
    """Detections: boxes [n, 4] by corners, scores [n] and classes [n]."""

    boxes: Array
    scores: Array
    classes: Array


def photos(folder: Path, size: int) -> list[Array]:
    """Photographs of a folder as float32 [1, 3, size, size] in 0 to 1, by name; small ones are left out.

    Raises:
        ModelError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError("Pillow is not installed", where="photos", fix="pip install pillow") from error
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".png", ".jpg") and f.stat().st_size > 30_000]
    found = []
    for file in files:
        with Image.open(file) as image:
            array = np.asarray(image.convert("RGB").resize((size, size)), np.float32) / 255
        found.append(np.ascontiguousarray(array.transpose(2, 0, 1)[None]))
    return found


def crops(image: Array, size: int, count: int = 12) -> list[Array]:
    """Pieces of an image [1, 3, height, width] of several sizes and places, nearest pixels, [1, 3, size, size]."""
    generator = np.random.default_rng(0)
    height, width = image.shape[2:]
    found = []
    for share in np.linspace(0.55, 0.95, count):
        tall, wide = int(height * share), int(width * share)
        top, left = generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1)
        rows, columns = top + np.arange(size) * tall // size, left + np.arange(size) * wide // size
        found.append(np.ascontiguousarray(image[:, :, rows][:, :, :, columns]))
    return found


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of boxes [n, 4] and [m, 4] by corners: [n, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (a, b)]
    result: Array = inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-9)
    return result


def boxes(output: Array) -> Found:
    """Detections out of YOLOv8's output [1, 4 + classes, anchors]: centers and sizes, then scores."""
    rows = output[0].T
    classes, scores = rows[:, 4:].argmax(axis=1), rows[:, 4:].max(axis=1)
    kept = np.flatnonzero(scores >= _SCORE)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    half = rows[kept, 2:4] / 2
    corners = np.concatenate([rows[kept, :2] - half, rows[kept, :2] + half], axis=1)
    taken: list[int] = []
    for i in range(len(kept)):
        others = [j for j in taken if classes[kept[j]] == classes[kept[i]]]
        if not others or overlap(corners[[i]], corners[others]).max() < _OVERLAP:
            taken.append(i)
    return Found(corners[taken], scores[kept[taken]], classes[kept[taken]])


@dataclass
class Agreement:
    """How far the detections of two models agree, summed over images.

    Attributes:
        expected: detections of the first model.
        given: detections of the second.
        matched: pairs of the same class that overlap by half or more.
        overlaps: sum of the overlaps of the pairs.
        scores: sum of the differences of their scores.
    """

    expected: int = 0
    given: int = 0
    matched: int = 0
    overlaps: float = 0.0
    scores: float = 0.0

    def add(self, one: Found, other: Found) -> None:
        """Add an image."""
        self.expected += len(one.boxes)
        self.given += len(other.boxes)
        free = set(range(len(other.boxes)))
        shared = overlap(one.boxes, other.boxes)
        for i in range(len(one.boxes)):
            fits = [j for j in free if other.classes[j] == one.classes[i] and shared[i, j] >= _MATCH]
            if fits:
                best = max(fits, key=lambda j: float(shared[i, j]))
                free.remove(best)
                self.matched += 1
                self.overlaps += float(shared[i, best])
                self.scores += abs(float(one.scores[i] - other.scores[best]))

    def figures(self) -> dict[str, float]:
        """Numbers of detections, F1 of the second model against the first, mean overlap and difference of scores."""
        pairs = max(self.matched, 1)
        total = self.expected + self.given
        return {
            "detections": self.expected,
            "f1": 2 * self.matched / total if total else 1.0,
            "overlap": self.overlaps / pairs if self.matched else 1.0,
            "score_difference": self.scores / pairs,
        }


@dataclass
class TextAgreement:
    """How far two maps of text agree, summed over images: pixels in both, in either, and differences."""

    both: int = 0
    either: int = 0
    difference: float = 0.0
    pixels: int = 0

    def add(self, one: Array, other: Array) -> None:
        """Add the maps of an image."""
        a, b = one > _TEXT, other > _TEXT
        self.both += int((a & b).sum())
        self.either += int((a | b).sum())
        self.difference += float(np.abs(one - other).sum())
        self.pixels += one.size

    def figures(self) -> dict[str, float]:
        """Pixels of text, their intersection over union, and the mean difference of probabilities."""
        return {
            "text_pixels": self.either,
            "overlap": self.both / self.either if self.either else 1.0,
            "score_difference": self.difference / max(self.pixels, 1),
        }
