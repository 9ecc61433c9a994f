"""Presets name passes that exist, in an order that works."""

import pytest
from burnish.passes import Canonicalize, Quantize, Recover
from burnish.passes.presets import PRESETS
from burnish.passes.quantize.scheme import Activations
from burnish.passes.spec import check_order, implied, parse


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_parse_and_run_in_order(name: str) -> None:
    listed = parse(name)
    check_order(listed)
    assert implied(listed) == listed
    assert PRESETS[name].summary.endswith(".")


def test_what_the_presets_hold() -> None:
    assert parse("default") == [Canonicalize(), Recover()]
    four, eight = parse("w4a16")[-2], parse("w8a16")[-2]
    assert isinstance(four, Quantize) and isinstance(eight, Quantize)
    assert (four.resolved.bits, four.resolved.group_size) == (4, 64)
    assert eight.resolved.bits == 8
    integer = parse("w8a8")[-2]
    assert isinstance(integer, Quantize)
    assert (integer.resolved.bits, integer.resolved.group_size, integer.resolved.symmetric) == (8, 0, True)
    assert integer.resolved.activations == Activations(granularity="token", dynamic=True)
