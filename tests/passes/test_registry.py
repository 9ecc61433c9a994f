"""Names of passes, and that none is imported before it is asked for."""

import dataclasses
import subprocess
import sys

import pytest
from burnish import passes
from burnish.ir.errors import OptionError
from burnish.passes.base import Pass, Stage
from burnish.passes.registry import PASSES, pass_class, pass_name


@pytest.mark.parametrize("name", list(PASSES))
def test_every_pass_is_a_frozen_dataclass_with_defaults(name: str) -> None:
    kind = pass_class(name)
    assert issubclass(kind, Pass)
    assert isinstance(kind.stage, Stage)
    assert dataclasses.is_dataclass(kind)
    item = kind()
    assert hash(item) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.anything = 1  # type: ignore[attr-defined]
    assert pass_name(kind) == name
    assert kind.__doc__
    assert getattr(passes, kind.__name__) is kind


def test_names_are_listed_in_the_order_of_the_stages() -> None:
    stages = [pass_class(name).stage for name in PASSES]
    assert stages == sorted(stages)


def test_unknown_name() -> None:
    with pytest.raises(OptionError, match="did you mean 'recover'"):
        pass_class("recovr")
    with pytest.raises(AttributeError, match="Nothing"):
        _ = passes.Nothing


def test_importing_the_names_imports_no_pass() -> None:
    program = (
        "import sys, burnish.passes, burnish.passes.registry\n"
        "deep = [name for name in sys.modules if name.startswith('burnish.passes.') and name.count('.') > 2]\n"
        "print(deep, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] False"
