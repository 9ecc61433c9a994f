"""The command line: ``burnish compile | passes | inspect | compare | benchmark | chat``."""

from . import chatting as _chatting
from . import compiling as _compiling
from . import looking as _looking
from .app import main

__all__ = ["main"]

del _chatting, _compiling, _looking  # importing them registered their commands
