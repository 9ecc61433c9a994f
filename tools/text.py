"""Text for calibration and for perplexity: the topics of Python's own help (``pydoc_data``), split by topic.

A second corpus is of ordinary English: 300 articles of news (Lee, Pincombe and Welsh 2005); nothing is calibrated on
it. A third, of an encyclopedia, is for calibrating models of ordinary English.

The split is by a hash of a topic's name, so it is the same in every run; a paragraph of the held-out part that also
stands in a calibration topic is left out, so that nothing is calibrated on what it is judged by.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import ModelError

Encode = Callable[[str], list[int]]

_PROSE = 120  # characters that a paragraph has at least; headings and lists have fewer
_HELD_OUT = 3  # one topic in so many


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _is_held_out(topic: str) -> bool:
    return hashlib.sha256(topic.encode()).digest()[0] % _HELD_OUT == 0


def _paragraphs(held_out: bool) -> Iterator[str]:
    for name, text in sorted(_topics().items()):
        if _is_held_out(name) == held_out:
            yield from (paragraph.strip("\n") for paragraph in text.split("\n\n"))


def calibration_text() -> str:
    """The text that calibration may use."""
    return "\n\n".join(dict.fromkeys(_paragraphs(held_out=False)))


def held_out_text() -> str:
    """The text that perplexity is measured on: no paragraph of it is in :func:`calibration_text`."""
    seen = set(_paragraphs(held_out=False))
    return "\n\n".join(dict.fromkeys(p for p in _paragraphs(held_out=True) if p not in seen))


def news_text() -> str:
    """Articles of news, one a line: English as people write it, unlike what anything was calibrated on."""
    from .fetch import model_path

    return model_path("news").read_text(encoding="utf-8")


def encyclopedia_text() -> str:
    """Paragraphs of 106 articles of Wikipedia, one a line: English to calibrate on that is neither help nor news."""
    import bz2

    from .fetch import model_path

    with bz2.open(model_path("encyclopedia"), "rt", encoding="utf-8") as file:
        return "\n".join(plain_paragraphs(file.read()))


def plain_paragraphs(dump: str) -> Iterator[str]:
    """Paragraphs of prose out of a dump of MediaWiki, without its markup."""
    for page in re.findall(r"<text[^>]*>(.*?)</text>", dump, re.DOTALL):
        text = html.unescape(html.unescape(page))
        for _ in range(4):  # templates and tables nest
            text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", text)
        text = re.sub(r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->|<[^>]+>", "", text, flags=re.DOTALL)
        text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
        text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text).replace("'''", "").replace("''", "")
        for line in text.split("\n"):
            if len(line) > _PROSE and line[0].isalpha() and line[0].isupper():
                yield line.strip()


CORPORA: dict[str, Callable[[], str]] = {"held-out": held_out_text, "news": news_text}
"""What perplexity is measured on, by name."""


def sentences(count: int = 200, shortest: int = 40, longest: int = 300) -> list[str]:
    """``count`` sentences of the news, evenly spread, of a length in characters between the two."""
    found = split_sentences(news_text(), shortest, longest)
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def split_sentences(text: str, shortest: int = 40, longest: int = 300) -> list[str]:
    """Sentences of a text, of a length in characters between the two."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text) if shortest <= len(s) <= longest]


def windows(encode: Encode, text: str, count: int = 8, length: int = 512) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``count`` stretches of ``length`` tokens, evenly spread over ``text``, as int64 [count, length].

    Raises:
        ValueError: the text is too short.
    """
    ids = np.asarray(encode(text), dtype=np.int64)
    if len(ids) < count * length:
        raise ValueError(f"the text has {len(ids)} tokens, {count} windows of {length} need {count * length}")
    starts = np.linspace(0, len(ids) - length, count).astype(int) if count > 1 else np.zeros(1, int)
    return np.stack([ids[start : start + length] for start in starts])


def load_tokenizer(source: str | Path) -> Encode:
    """The function from text to token ids (no special tokens added) of a model.

    Args:
        source: a ``tokenizer.json``, a folder with one, or a GGUF file (read with transformers).

    Raises:
        ModelError: there is no tokenizer.
    """
    source = Path(source)
    if source.suffix == ".gguf":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
    file = source / "tokenizer.json" if source.is_dir() else source
    if not file.is_file():
        raise ModelError("there is no tokenizer.json", where=str(source), fix="name the model's own with --tokenizer")
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(file))
    fast.no_truncation()  # some files cut every text to the length that an encoder was trained on
    fast.no_padding()
    return lambda text: list(fast.encode(text, add_special_tokens=False).ids)
