"""Pass specifications: text to passes and back, and what is said of text that is wrong."""

from dataclasses import dataclass
from typing import Literal

import pytest
from burnish.ir.errors import OptionError
from burnish.passes import Canonicalize, MergeProducts, Prune, PruneStructures, Quantize, Recover, Rotate
from burnish.passes.base import Context, Outcome, Pass, Stage
from burnish.passes.spec import annotation_text, check_order, format_pass, format_passes, implied, make, parse


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with options of every kind."""

    stage = Stage.SMOOTH
    mode: Literal["fast", "good"] = "fast"
    alpha: float = 0.5
    count: int | None = None
    flag: bool = False
    names: tuple[str, ...] = ()

    def run(self, graph: object, context: Context) -> Outcome:
        return Outcome()


@dataclass(frozen=True)
class Late(Sample):
    stage = Stage.FUSE


def test_names_and_options() -> None:
    assert parse("canonicalize,quantize(bits=8,group_size=128)") == [Canonicalize(), Quantize(bits=8, group_size=128)]
    assert parse(" canonicalize , recover ") == [Canonicalize(), Recover()]
    assert parse('quantize("w8a16")') == [Quantize("w8a16")]
    assert parse("quantize(w8a16)") == [Quantize("w8a16")]
    assert parse("") == []


def test_words_of_python_are_words_too() -> None:
    """``global`` is an option's value, and no name in Python."""
    expected = [Prune(layer_ratios="global"), PruneStructures(distribution="global", ratio=0.1)]
    assert parse("prune(layer_ratios=global),prune_structures(distribution = global, ratio=0.1)") == expected
    assert parse(format_passes(expected)) == expected
    with pytest.raises(OptionError, match="cannot be read"):
        parse("prune(global)")


def test_presets_take_options_of_their_passes() -> None:
    before = [Canonicalize(), Recover(), Rotate(only_calibrated=True)]
    assert parse("w4a16") == [*before, Quantize("w4a16"), MergeProducts()]
    assert parse("w4a16(group_size=32)") == [*before, Quantize("w4a16", group_size=32), MergeProducts()]
    assert parse("default(rotary=false)") == [Canonicalize(), Recover(rotary=False)]
    assert parse("w4a16,quantize(bits=8)")[3:] == [Quantize("w4a16"), MergeProducts(), Quantize(bits=8)]


def test_lists_mix_passes_and_text() -> None:
    assert parse(["default", Quantize(bits=8)]) == [Canonicalize(), Recover(), Quantize(bits=8)]
    assert parse(Quantize()) == [Quantize()]
    assert parse([]) == []


def test_values_get_the_type_of_their_field() -> None:
    made = make(Sample, {"alpha": 1, "count": None, "names": ["a", "b"]})
    assert made == Sample(alpha=1.0, names=("a", "b"))
    assert isinstance(made.alpha, float)
    assert make(Sample, {"names": "one"}) == Sample(names=("one",))
    assert make(Sample, {"mode": "good", "count": 3, "flag": True}) == Sample("good", count=3, flag=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": "much"}, "takes float, not 'much'"),
        ({"count": 1.5}, "takes int | none, not 1.5"),
        ({"count": True}, "takes int | none, not True"),
        ({"flag": 1}, "takes bool, not 1"),
        ({"mode": "god"}, "takes fast | good, not 'god'"),
        ({"names": [1]}, "takes tuple"),
    ],
)
def test_values_of_the_wrong_type(options: dict, said: str) -> None:
    with pytest.raises(OptionError) as error:
        make(Sample, options)
    assert said in error.value.what
    assert error.value.fix


def test_nearest_choice_is_offered() -> None:
    with pytest.raises(OptionError, match="did you mean 'good'"):
        make(Sample, {"mode": "god"})


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("quantise", "no pass or preset 'quantise'", "did you mean 'quantize'"),
        ("w4a61", "no pass or preset 'w4a61'", "did you mean 'w4a16'"),
        ("quantize(bit=4)", "'quantize' has no option 'bit'", "did you mean 'bits'"),
        ("w4a16(grop_size=4)", "no pass of the preset 'w4a16' has an option 'grop_size'", "did you mean 'group_size'"),
        ("canonicalize(x=1)", "'canonicalize' has no option 'x'", "has no options"),
        ("quantize(", "cannot be read", "put quotes"),
        ("quantize(include=*.q_proj)", "cannot be read", "put quotes"),
        ("quantize(bits=4,bits=8)", "'bits' of 'quantize' is given twice", None),
        ("w4a16(32)", "must be written name=value", None),
        ("quantize(w4a16,scheme=w8a16)", "given twice", None),
        ("3", "'3' is not the name of a pass", "quantize"),
        ("quantize(bits=4+4)", "is not a value", "write a number"),
        ("quantize(**x)", "must be written name=value", None),
    ],
)
def test_wrong_text(text: str, what: str, fix: str | None) -> None:
    with pytest.raises(OptionError) as error:
        parse(text)
    assert what in error.value.what
    if fix:
        assert fix in str(error.value.fix)


@pytest.mark.parametrize("item", [3, None, Quantize, object()])
def test_what_is_no_pass(item: object) -> None:
    with pytest.raises(OptionError, match="not a pass"):
        parse([item])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="not a pass"):
        parse(item)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "item",
    [
        Canonicalize(),
        Recover(rotary=False),
        Quantize("w8a16", symmetric=True),
        Quantize(include=("*.q_proj", "MatMul"), overrides=(("*.v_proj", {"bits": 8}), ("lm_head", "float"))),
    ],
)
def test_round_trip(item: Pass) -> None:
    assert parse(format_pass(item)) == [item]
    assert parse(format_passes([item, item])) == [item, item]


def test_format_shows_what_differs() -> None:
    assert format_pass(Canonicalize()) == "canonicalize"
    assert format_pass(Quantize(group_size=32)) == "quantize(scheme=w4a16,group_size=32)"
    assert format_pass(Sample(names=("a.*", "b"))) == "Sample(mode=fast,names=['a.*',b])"


def test_implied_passes_come_first_and_once() -> None:
    assert implied([]) == []
    assert implied([Quantize()]) == [Canonicalize(), Recover(), Quantize()]
    assert implied([Canonicalize()]) == [Canonicalize(), Recover()]
    assert implied([Recover(rotary=False)]) == [Canonicalize(), Recover(rotary=False)]
    assert implied([Canonicalize(), Recover(), Late()]) == [Canonicalize(), Recover(), Late()]


def test_order() -> None:
    check_order([Canonicalize(), Recover(), Sample(), Quantize(), Late()])
    check_order([Quantize(), Quantize(bits=8)])
    with pytest.raises(OptionError) as error:
        check_order([Canonicalize(), Late(), Quantize()])
    assert "'quantize' cannot run after 'Late'" in error.value.what
    assert "canonicalize,quantize(scheme=w4a16),Late(mode=fast)" in str(error.value.fix)


def test_types_as_users_write_them() -> None:
    assert annotation_text(int | None) == "int | none"
    assert annotation_text(Literal["a", "b"]) == "a | b"
    assert annotation_text(tuple[str, ...]) == "tuple[str, ...]"


def test_distillation_may_follow_structures_and_patterns() -> None:
    check_order(parse("prune_structures,distill,rotate,quantize"))
    check_order(parse("prune_structures,distill,prune,distill,quantize"))
    with pytest.raises(OptionError, match="prune comes before quantize"):
        check_order(parse("quantize,distill"))
    with pytest.raises(OptionError, match="smooth comes before sparsify"):
        check_order(parse("prune,distill,rotate"))
