"""Agreement of detectors, on made-up detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from burnish.tools.detections import Agreement, Found, TextAgreement, boxes, crops, overlap, photos


def found(*rows: tuple[float, float, float, float, float, int]) -> Found:
    table = np.array(rows, float).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].astype(int))


def test_overlap() -> None:
    a = np.array([[0, 0, 2, 2.0]])
    b = np.array([[0, 0, 2, 2.0], [1, 0, 3, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(overlap(a, b), [[1, 1 / 3, 0]])


def test_boxes_that_overlap_are_one() -> None:
    output = np.zeros((1, 6, 4))
    output[0, :4] = np.array([[10, 10, 4, 4], [10.2, 10, 4, 4], [30, 30, 4, 4], [10, 10, 4, 4]]).T
    output[0, 4] = [0.9, 0.8, 0.1, 0]
    output[0, 5] = [0, 0, 0.0, 0.7]
    result = boxes(output)
    assert sorted(zip(result.classes.tolist(), result.scores.tolist(), strict=True)) == [(0, 0.9), (1, 0.7)]
    np.testing.assert_allclose(result.boxes[0], [8, 8, 12, 12])


def test_agreement_counts_what_is_lost_and_what_is_new() -> None:
    one = found((0, 0, 2, 2, 0.9, 0), (5, 5, 7, 7, 0.8, 1))
    other = found((0, 0, 2, 2, 0.7, 0), (5, 5, 7, 7, 0.8, 2))
    total = Agreement()
    total.add(one, other)
    figures = total.figures()
    assert figures["f1"] == pytest.approx(0.5) and figures["score_difference"] == pytest.approx(0.2)
    assert figures["overlap"] == 1 and figures["detections"] == 2
    same = Agreement()
    same.add(one, one)
    assert same.figures()["f1"] == 1


def test_nothing_found_is_agreement() -> None:
    total = Agreement()
    total.add(found(), found())
    assert total.figures()["f1"] == 1


def test_maps_of_text() -> None:
    total = TextAgreement()
    total.add(np.array([[0.9, 0.1, 0.5]]), np.array([[0.8, 0.1, 0.1]]))
    figures = total.figures()
    assert figures["overlap"] == 0.5 and figures["score_difference"] == pytest.approx(0.5 / 3)


def test_crops() -> None:
    image = np.random.default_rng(0).random((1, 3, 40, 50)).astype(np.float32)
    found = crops(image, 16, 5)
    assert len(found) == 5 and all(one.shape == (1, 3, 16, 16) for one in found)
    assert set(found[0].ravel()) <= set(image.ravel())


def test_photos_are_read_by_name(tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "small.png")
    (image,) = photos(tmp_path, 32)
    assert image.shape == (1, 3, 32, 32) and 0 <= image.min() <= image.max() <= 1
