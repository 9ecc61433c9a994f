"""The compile cache: what finds an entry, what does not, and what happens to damaged and old ones."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import burnish
import numpy as np
import onnx
import pytest
from burnish.compiler import cache as caching
from burnish.compiler.cache import Cache, open_cache
from burnish.compiler.calibration.data import DataFile, digest_inputs
from burnish.ir.errors import OptionError
from burnish.ir.graph import Graph
from burnish.passes.base import Context, Outcome, Pass, Stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def test_second_compile_comes_from_the_cache(network: Callable, folder: Path) -> None:
    made = network()
    first = burnish.compile(made.path, passes="w4a16", cache=folder)
    second = burnish.compile(made.path, passes="w4a16", cache=folder)
    assert (first.report.cached, second.report.cached) == (False, True)
    assert len(entries(folder)) == 1
    np.testing.assert_array_equal(first(made.x), second(made.x))
    assert "from the compile cache" in str(second.report)
    assert first.path == second.path


def test_what_makes_another_entry(network: Callable, folder: Path) -> None:
    made = network()
    for passes in ("default", "w4a16", "w4a16(group_size=32)", []):
        assert not burnish.compile(made.path, passes=passes, cache=folder).report.cached
    burnish.export(made.path, folder.parent / "portable.onnx", passes="w4a16", target="onnx", cache=folder)
    assert len(entries(folder)) == 5
    os.utime(made.path, (1, 1))
    assert not burnish.compile(made.path, cache=folder).report.cached


def test_external_data_is_part_of_the_key(network: Callable, folder: Path) -> None:
    made = network(external=True)
    burnish.compile(made.path, cache=folder)
    assert burnish.compile(made.path, cache=folder).report.cached
    data = made.path.with_name(made.path.name + ".weights")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert not burnish.compile(made.path, cache=folder).report.cached


def test_objects_by_content(network: Callable, folder: Path) -> None:
    made = network()
    burnish.compile(made.proto, cache=folder)
    copy = onnx.ModelProto()
    copy.CopyFrom(made.proto)
    assert burnish.compile(copy, cache=folder).report.cached
    assert not burnish.compile(network(seed=1).proto, cache=folder).report.cached
    copy.graph.node[2].op_type = "Sigmoid"
    assert not burnish.compile(copy, cache=folder).report.cached


def test_default_is_on_for_files_and_off_for_objects(
    network: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(folder))
    made = network()
    burnish.compile(made.proto)
    burnish.compile(made.path, cache=False)
    assert not folder.exists()
    burnish.compile(made.path)
    assert len(entries(folder)) == 1
    monkeypatch.setenv("BURNISH_CACHE", "off")
    assert open_cache(None, from_disk=True) is None


def test_a_damaged_entry_is_rebuilt_and_said(network: Callable, folder: Path) -> None:
    made = network(wide=4096, inside=4096)  # large enough for a data file
    burnish.compile(made.path, cache=folder)
    (entry,) = entries(folder)
    data = entry / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    again = burnish.compile(made.path, cache=folder)
    assert not again.report.cached
    assert any("was damaged" in group.reason and "compiled anew" in group.reason for group in again.report.backend)
    assert burnish.compile(made.path, cache=folder).report.cached
    (entry / "model.onnx").write_bytes(b"nothing")
    assert not burnish.compile(made.path, cache=folder).report.cached


def test_least_recently_used_goes_first(network: Callable, folder: Path) -> None:
    store = Cache(folder, limit=0)
    for seed in range(3):
        burnish.compile(network(seed=seed).path, cache=folder)
    names = entries(folder)
    assert len(names) == 3
    for age, name in enumerate(names):
        os.utime(name / "used", (1000 - age, 1000 - age))
    size = sum(item.stat().st_size for item in names[0].iterdir())
    store.limit = int(2.5 * size)
    store.trim()
    assert entries(folder) == names[:2]
    store.limit = 0
    store.trim(keep=names[1].name)
    assert entries(folder) == [names[1]]


def test_unfinished_entries_are_removed_once_old(folder: Path) -> None:
    folder.mkdir()
    store = Cache(folder)
    old, new = store.workspace(), store.workspace()
    os.utime(old, (time.time() - 7200,) * 2)
    store.trim()
    assert not old.exists() and new.exists()


@dataclass(frozen=True)
class Own(Pass):
    """A pass of the user's."""

    stage = Stage.FUSE

    def run(self, graph: Graph, context: Context) -> Outcome:
        return Outcome()


def test_passes_of_the_user_are_not_cached(network: Callable, folder: Path) -> None:
    compiled = burnish.compile(network().path, passes=[Own()], cache=folder)
    assert entries(folder) == []
    assert any("not one of Burnish's own" in group.reason for group in compiled.report.backend)


def test_a_failed_compilation_leaves_nothing(network: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.compiler.compilation.write", fail)
    with pytest.raises(KeyboardInterrupt):
        burnish.compile(network().path, cache=folder)
    assert list(folder.iterdir()) == []


def test_two_writers_at_once(network: Callable, folder: Path) -> None:
    made = network()
    program = f"import burnish; burnish.compile({str(made.path)!r}, cache={str(folder)!r})"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(entries(folder)) == len(list(folder.iterdir())) == 1
    assert burnish.compile(made.path, cache=folder).report.cached


def test_options() -> None:
    with pytest.raises(OptionError, match="not a folder"):
        open_cache(3, from_disk=True)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="cannot be made"):
        open_cache("/dev/null/x", from_disk=True)
    assert open_cache(False, from_disk=True) is None
    assert open_cache(None, from_disk=False) is None


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BURNISH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert caching.default_folder() == tmp_path / "burnish"


def test_calibration_inputs_are_part_of_the_key(network: Callable, folder: Path) -> None:
    made = network()
    rows = [np.random.default_rng(seed).standard_normal((4, 64), np.float32) for seed in range(3)]

    def compiled(calibration: object) -> object:
        quantize = burnish.passes.Quantize("w8a16", method="gptq")
        return burnish.compile(made.path, passes=[quantize], calibration=calibration, cache=folder).report

    assert not compiled(rows).cached and compiled(rows).cached and compiled([row.copy() for row in rows]).cached
    assert not compiled([*rows[:2], rows[2] + 1]).cached
    count = len(entries(folder))
    report = compiled(iter(rows))
    assert not report.cached and len(entries(folder)) == count
    assert any("not cached: calibration inputs" in remark.reason for remark in report.backend)


def test_digests_of_inputs(tmp_path: Path) -> None:
    ids = np.arange(6).reshape(2, 3)
    same = [digest_inputs(given) for given in ([{"a": ids}], ({"a": ids.copy()},))]
    assert same[0] == same[1] is not None
    others = [[{"b": ids}], [{"a": ids.reshape(3, 2)}], [{"a": ids.astype(np.int32)}], [[1, 2]]]
    assert len({*same, *map(digest_inputs, others)}) == 5
    assert digest_inputs(iter([ids])) is None and digest_inputs([object()]) is None
    file = tmp_path / "text.txt"
    file.write_text("one")
    first = digest_inputs(DataFile(file))
    file.write_text("two")
    assert first != digest_inputs(DataFile(file)) != digest_inputs(DataFile(file, length=8))
    assert digest_inputs(DataFile(tmp_path / "nothing")) is None
