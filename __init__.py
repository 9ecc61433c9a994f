"""Burnish: a graph compiler that makes neural networks smaller and faster.

The public names are loaded on first use, so that ``import burnish`` followed by :func:`burnish.load` costs
ONNX Runtime's memory and not torch's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import passes as passes
    from .compiler.api import compile as compile
    from .compiler.api import export as export
    from .compiler.load import load as load
    from .compiler.model import CompiledModel as CompiledModel
    from .compiler.torch_backend import refresh as refresh
    from .compiler.torch_backend import torch_report as torch_report
    from .ir.errors import BurnishError as BurnishError

__version__ = "0.1.0"

_HOME = {
    "BurnishError": ".ir.errors",
    "CompiledModel": ".compiler.model",
    "compile": ".compiler.api",
    "export": ".compiler.api",
    "load": ".compiler.load",
    "refresh": ".compiler.torch_backend",
    "torch_report": ".compiler.torch_backend",
}

__all__ = [
    "BurnishError", "CompiledModel", "__version__", "compile", "export", "load", "passes", "refresh", "torch_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "passes":
        return importlib.import_module(".passes", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module 'burnish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
