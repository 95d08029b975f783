"""The fault of a CUDA torchaudio beside a CPU torch, and its reversible cure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from raysere.base.errors import EnvironmentFault
from raysere.features import torchaudio_cpu
from raysere.features.torchaudio_cpu import repair_torchaudio, require_torchaudio, torchaudio_fault, undo_repair_torchaudio

NAMES = ["_torchaudio.abi3.so", "libtorchaudio.abi3.so", "torchaudio_prefixctc.abi3.so"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "torchaudio"
    (package / "lib").mkdir(parents=True)
    for name in NAMES:
        (package / "lib" / name).write_text(name)
    (package / "lib" / "__init__.py").touch()
    return package


def test_the_repair_moves_the_libraries_and_says_so(package: Path) -> None:
    message = repair_torchaudio(package)
    assert all(name in message for name in NAMES)
    assert str(package / "lib-cuda-unused") in message
    assert [file.name for file in (package / "lib").iterdir()] == ["__init__.py"]
    assert sorted(file.name for file in (package / "lib-cuda-unused").iterdir()) == NAMES
    assert "nothing to move" in repair_torchaudio(package)


def test_the_repair_can_be_undone(package: Path) -> None:
    repair_torchaudio(package)
    assert NAMES[0] in undo_repair_torchaudio(package)
    assert sorted(file.name for file in (package / "lib").glob("*.so")) == NAMES
    assert (package / "lib" / NAMES[0]).read_text() == NAMES[0]
    assert not (package / "lib-cuda-unused").exists()
    assert "nothing to move" in undo_repair_torchaudio(package)


@pytest.mark.parametrize(
    "error", [OSError("libcudart.so.13: cannot open shared object file"), RuntimeError("compiled with different CUDA versions\nmore")]
)
def test_the_fault_is_found_and_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real = importlib.import_module
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchaudio"}

    def fail(name: str, *arguments: object) -> object:
        if name == "torchaudio":
            raise error
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torchaudio_cpu.importlib, "import_module", fail)
    try:
        fault = torchaudio_fault()
        assert fault is not None
        assert str(error).splitlines()[0] in fault
        assert "\n" not in fault
        with pytest.raises(EnvironmentFault, match="raysere doctor --fix") as caught:
            require_torchaudio()
        assert caught.value.exit_code == 3
    finally:
        sys.modules.update(kept)


def test_a_folder_that_cannot_be_written(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torchaudio_cpu.os, "replace", refuse)
    with pytest.raises(EnvironmentFault, match="Permission denied"):
        repair_torchaudio(package)


def test_torchaudio_works_here() -> None:
    assert torchaudio_fault() is None
    assert require_torchaudio().__name__ == "torchaudio"
