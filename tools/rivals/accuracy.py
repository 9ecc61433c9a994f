"""Perplexity of one side on held-out text, in a process of its own; prints JSON. Started by :mod:`.bench`."""

from __future__ import annotations

import json
import sys
from typing import Any

from ...compiler.benchmark.worker import made
from ..fetch import model_path
from ..perplexity import file_logits, perplexity
from ..text import held_out_text, load_tokenizer, windows


def main() -> int:
    """Measure the side named on the command line: a factory with ``eager`` behind it, or a file or folder."""
    source, eager, count = sys.argv[1], sys.argv[2] == "eager", int(sys.argv[3])
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text(), count)
    if eager:
        side: Any = made(source, None)
        figure = perplexity(lambda rows: side.numpy(side.start(rows)[0]), ids)
    else:
        figure = perplexity(file_logits(source), ids)
    print(json.dumps({"perplexity": figure}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
