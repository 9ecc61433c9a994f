"""``python -m burnish``: the command line."""

from .compiler.cli import main

main()
