"""The Triton backend: kernels for GPUs that use what the passes leave, and what they cost."""

from __future__ import annotations

from types import ModuleType

from ...ir.errors import UnsupportedError


def require_triton() -> ModuleType:
    """The module ``triton``.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import triton
    except ImportError as error:
        raise UnsupportedError(
            "Triton is not installed", where="backends/triton", fix="pip install 'burnish[triton]'"
        ) from error
    found: ModuleType = triton
    return found
