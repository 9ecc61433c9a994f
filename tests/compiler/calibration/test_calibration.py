"""Calibration inputs: what they may be, what is filled in, and what is refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from burnish.compiler.inputs import Calibration, as_numpy, fill_tokens
from burnish.ir.errors import CalibrationError, InputError
from burnish.ir.signature import DecoderSpec, NamedSignature, TensorSpec

DECODER = DecoderSpec(layers=1, kv_heads=2, head_dim=4, vocabulary=32, context=64)
CACHE = ("past_key_values.0.key", "past_key_values.0.value")
TOKENS = NamedSignature(
    (
        TensorSpec("input_ids", "INT64", ("batch", "sequence")),
        TensorSpec("attention_mask", "INT64", ("batch", "past + sequence")),
        TensorSpec("position_ids", "INT64", ("batch", "sequence")),
        *(TensorSpec(name, "FLOAT", ("batch", 2, "past", 4)) for name in CACHE),
    ),
    (),
)
ENCODER = NamedSignature(
    tuple(TensorSpec(name, "INT64", ("b", "s")) for name in ("input_ids", "attention_mask", "token_type_ids")), ()
)
PLAIN = NamedSignature((TensorSpec("x", "FLOAT", ("batch", 8)),), ())


def bound(items: Any, signature: NamedSignature = TOKENS) -> list[dict[str, np.ndarray]]:
    return [dict(feeds) for feeds in Calibration(items, signature, DECODER if signature is TOKENS else None)]


@pytest.mark.parametrize(
    "item",
    [
        np.array([[3, 4, 5]]),
        np.array([3, 4, 5]),
        [3, 4, 5],
        [[3, 4, 5]],
        (np.array([[3, 4, 5]]),),
        {"input_ids": np.array([[3, 4, 5]])},
        {"input_ids": [3, 4, 5]},
        torch.tensor([[3, 4, 5]]),
        {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)},
    ],
    ids=["array", "vector", "list", "lists", "tuple", "name", "name-list", "torch", "mask"],
)
def test_tokens_alone(item: Any) -> None:
    (feeds,) = bound([item])
    assert list(feeds) == [spec.name for spec in TOKENS.inputs]
    arrays = {name: as_numpy(value) for name, value in feeds.items()}
    np.testing.assert_array_equal(arrays["input_ids"], [[3, 4, 5]])
    np.testing.assert_array_equal(arrays["attention_mask"], [[1, 1, 1]])
    np.testing.assert_array_equal(arrays["position_ids"], [[0, 1, 2]])
    assert all(arrays[name].shape == (1, 2, 0, 4) and arrays[name].dtype == np.float32 for name in CACHE)


def test_padding_on_the_left_and_a_cache() -> None:
    padded = {
        "input_ids": np.array([[0, 0, 7, 8], [1, 2, 3, 4]]),
        "attention_mask": np.array([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    (feeds,) = bound([padded])
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 0, 0, 1], [0, 1, 2, 3]])
    (feeds,) = bound([{"input_ids": np.array([[7]]), **{name: np.zeros((1, 2, 5, 4), np.float32) for name in CACHE}}])
    np.testing.assert_array_equal(feeds["position_ids"], [[5]])
    assert feeds["attention_mask"].shape == (1, 6)


def test_encoders() -> None:
    (feeds,) = bound([np.array([[3, 4]])], ENCODER)
    np.testing.assert_array_equal(feeds["token_type_ids"], [[0, 0]])


def test_what_tokens_do_not_tell_stays_missing() -> None:
    signature = NamedSignature((*TOKENS.inputs, TensorSpec("pixels", "FLOAT", (1, 3))), ())
    assert "pixels" not in fill_tokens(signature.inputs, {"input_ids": [1, 2]})
    with pytest.raises(InputError, match="input 'pixels' is missing"):
        list(Calibration([[1, 2]], signature))


X = np.ones((2, 8), np.float32)
NAN = np.where(np.arange(16).reshape(2, 8) == 3, np.nan, X).astype(np.float32)


@pytest.mark.parametrize(
    ("signature", "item", "kind", "what"),
    [
        (PLAIN, X.astype(np.float64), InputError, "element type DOUBLE, the model takes FLOAT"),
        (PLAIN, np.ones(8, np.float32), InputError, "has 1 dimensions"),
        (PLAIN, {"y": X}, InputError, "no input 'y'"),
        (PLAIN, NAN, CalibrationError, "input 'x' holds NaN"),
        (PLAIN, torch.from_numpy(NAN), CalibrationError, "input 'x' holds NaN"),
        (PLAIN, X[:0], CalibrationError, r"input 'x' of shape \(0, 8\) is empty"),
        (TOKENS, np.ones((1, 4), np.float32), InputError, "element type FLOAT, the model takes INT64"),
        (TOKENS, [0.5, 1.5], InputError, "element type DOUBLE, the model takes INT64"),
        (TOKENS, [], InputError, "'input_ids', .* is missing"),
        (TOKENS, np.zeros((1, 0), np.int64), CalibrationError, "is empty"),
        (TOKENS, [5], CalibrationError, "one token is too short"),
        (TOKENS, [5, 32], CalibrationError, "token 32 is not in the vocabulary of 32"),
        (TOKENS, [5, -1], CalibrationError, "token -1 is not in the vocabulary"),
        (TOKENS, np.zeros((1, 2, 3), np.int64), InputError, "is missing"),
    ],
)
def test_inputs_that_do_not_fit(signature: NamedSignature, item: Any, kind: type[InputError], what: str) -> None:
    good = X if signature is PLAIN else [1, 2]
    with pytest.raises(InputError, match=what) as error:
        bound([good, item], signature)
    assert type(error.value) is kind
    assert str(error.value.where).startswith("calibration input 1")
    assert error.value.fix


def test_nan_in_bfloat16() -> None:
    signature = NamedSignature((TensorSpec("x", "BFLOAT16", ("batch", 8)),), ())
    assert len(bound([X.astype(ml_dtypes.bfloat16), torch.ones(2, 8, dtype=torch.bfloat16)], signature)) == 2
    with pytest.raises(CalibrationError, match="NaN"):
        bound([torch.from_numpy(NAN).to(torch.bfloat16)], signature)


def test_an_infinite_mask_is_no_error() -> None:
    assert len(bound([np.where(NAN == 1, X, -np.inf).astype(np.float32)], PLAIN)) == 1


class Once:
    """Gives the same generator each time, which ends after one reading."""

    def __init__(self, count: int) -> None:
        self._inputs = (X for _ in range(count))

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._inputs


class Shrinking:
    """Gives fewer inputs each time."""

    def __init__(self) -> None:
        self._count = 4

    def __iter__(self) -> Iterator[np.ndarray]:
        self._count -= 1
        return iter([X] * self._count)


def test_iterables() -> None:
    for items in ([X, X], (X, X), (X for _ in range(2)), map(np.copy, [X, X]), np.stack([X, X])):
        calibration = Calibration(items, PLAIN)
        assert [len(list(calibration)) for _ in range(3)] == [2, 2, 2]


def test_empty() -> None:
    for items in ([], iter([]), Once(0)):
        with pytest.raises(CalibrationError, match="holds no inputs"):
            bound(items, PLAIN)


@pytest.mark.parametrize("items", [Once(3), Shrinking()], ids=["once", "shrinking"])
def test_an_iterable_that_ends_early(items: Any) -> None:
    calibration = Calibration(items, PLAIN)
    assert len(list(calibration)) == 3
    with pytest.raises(CalibrationError, match="ended"):
        list(calibration)


def broken(count: int) -> Iterator[np.ndarray]:
    yield from [X] * count
    raise OSError("the disk is gone")


@pytest.mark.parametrize("wrap", [lambda items: items, lambda items: type("Lazy", (), {"__iter__": lambda _: items})()])
def test_an_iterator_that_fails(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(CalibrationError, match="ended early: OSError: the disk is gone") as error:
        bound(wrap(broken(2)), PLAIN)
    assert error.value.where == "calibration input 2"


def test_no_iterable() -> None:
    for items in (3, "text", b"text", {"x": X}, Path()):
        with pytest.raises(CalibrationError, match="not a list of inputs"):
            bound(items, PLAIN)
