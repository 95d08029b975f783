"""torchaudio beside a CPU build of torch: detect the mismatch and repair it.

The wheel of torchaudio on the package index is a CUDA build. Beside a CPU torch its three libraries
in ``torchaudio/lib`` cannot be loaded, so that ``import torchaudio`` raises OSError, and so does
every speech model of transformers, which imports torchaudio where it is installed. All that is used
here (resampling) is plain torch and needs none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from raysere.base.errors import EnvironmentFault

UNUSED = "lib-cuda-unused"
REMEDY = "Run 'raysere doctor --fix': it moves torchaudio's CUDA libraries aside (reversible), and torchaudio then runs on torch alone."


def torchaudio_fault() -> str | None:
    """Why ``import torchaudio`` fails here, in one sentence; None where it works."""
    try:
        importlib.import_module("torchaudio")
    except (OSError, RuntimeError) as error:
        # OSError: a CUDA library is not there. RuntimeError: built for another CUDA version than
        # torch.
        _forget()
        return f"torchaudio cannot be imported beside this build of torch: {str(error).splitlines()[0]}"
    except ImportError as error:
        _forget()
        return f"torchaudio cannot be imported: {error}"
    return None


def require_torchaudio() -> ModuleType:
    """The module. Raises EnvironmentFault that says how to cure it."""
    fault = torchaudio_fault()
    if fault is not None:
        installed = importlib.util.find_spec("torchaudio") is not None
        raise EnvironmentFault(fault, remedy=REMEDY if installed else "Install torchaudio in the version that the constraints file names.")
    return importlib.import_module("torchaudio")


def repair_torchaudio(package: Path | None = None) -> str:
    """Move the compiled libraries of torchaudio out of its way, and say what was done.

    They go from ``torchaudio/lib`` to the sibling folder ``torchaudio/lib-cuda-unused``; nothing is
    deleted, and :func:`undo_repair_torchaudio` moves them back. Does nothing where there are none.

    Args:
        package: folder of the package; default: where the installed one lies.

    Raises:
        EnvironmentFault: torchaudio is not installed, or its folder cannot be written.
    """
    package = package or _package()
    moved = _move(package / "lib", package / UNUSED)
    if not moved:
        return f"There was nothing to move in {package / 'lib'}."
    return (
        f"Moved {', '.join(moved)} from {package / 'lib'} to {package / UNUSED}: torchaudio now runs on torch alone. "
        "To undo it, move them back or reinstall torchaudio."
    )


def undo_repair_torchaudio(package: Path | None = None) -> str:
    """Move the libraries back to where the wheel had put them, and say what was done.

    Raises EnvironmentFault as the repair does.
    """
    package = package or _package()
    moved = _move(package / UNUSED, package / "lib")
    if (package / UNUSED).is_dir() and not any((package / UNUSED).iterdir()):
        (package / UNUSED).rmdir()
    return f"Moved {', '.join(moved)} back to {package / 'lib'}." if moved else f"There was nothing to move in {package / UNUSED}."


def _package() -> Path:
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        raise EnvironmentFault("torchaudio is not installed", remedy="Install it in the version that the constraints file names.")
    return Path(spec.origin).parent


def _move(source: Path, target: Path) -> list[str]:
    libraries = sorted(file for pattern in ("*.so", "*.pyd", "*.dylib") for file in source.glob(pattern))
    try:
        if libraries:
            target.mkdir(exist_ok=True)
        for library in libraries:
            os.replace(library, target / library.name)
    except OSError as error:
        raise EnvironmentFault(
            f"torchaudio's libraries cannot be moved: {error.strerror}",
            where=source,
            remedy="Run it as the owner of this Python environment.",
        ) from error
    return [library.name for library in libraries]


def _forget() -> None:
    """A half-imported package would make the next import fail in another way."""
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]
