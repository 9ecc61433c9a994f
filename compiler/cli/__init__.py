"""The command line: ``burnish compile | passes | inspect | compare | benchmark``."""

from . import compiling as _compiling
from . import looking as _looking
from .app import main

__all__ = ["main"]

del _compiling, _looking  # importing them registered their commands
