"""Selectors: which nodes a pass is meant for, by module path, operator or node name.

A selector is a string::

    model.layers.*.mlp     module path, a glob; a module selects everything inside it
    op:Gemm                operator type, a glob
    name:/encoder/*        node name in the graph, a glob

``*`` matches any characters, dots included; ``?`` one character; ``[ab]`` one of a set. Case matters.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir

from ..ir.errors import SelectorError
from ..ir.graph import MODULE, module_path

Field = Literal["module", "op", "name"]


@dataclass(frozen=True)
class Selector:
    """One parsed selector.

    Attributes:
        text: the selector as written.
        field: what the glob is compared with.
        glob: the pattern.
    """

    text: str
    field: Field
    glob: str

    def matches(self, node: onnx_ir.Node) -> bool:
        """Whether ``node`` is selected."""
        return any(self._matches(candidate) for candidate in self._candidates(node))

    def _matches(self, candidate: str) -> bool:
        if fnmatchcase(candidate, self.glob):
            return True
        return self.field == "module" and fnmatchcase(candidate, f"{self.glob}.*")

    def _candidates(self, node: onnx_ir.Node) -> Sequence[str]:
        if self.field == "op":
            qualified = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return (node.op_type, qualified)
        if self.field == "name":
            return (node.name or "",)
        # A node of an imported file has no module; its name is the nearest thing to one.
        return (node.metadata_props.get(MODULE) or node.name or "",)


def parse(text: str) -> Selector:
    """Read one selector.

    Raises:
        SelectorError: the text is empty or its prefix is unknown.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix in ("op", "name") and rest:
        return Selector(text, "op" if prefix == "op" else "name", rest)
    if not text or (colon and prefix in ("op", "name", "module", "path", "")):
        raise SelectorError(
            f"{text!r} is not a selector",
            fix="write a module path such as 'model.layers.*.mlp', 'op:Gemm' or 'name:/encoder/*'",
        )
    return Selector(text, "module", text)


def parse_all(texts: str | Iterable[str]) -> tuple[Selector, ...]:
    """Read several selectors; one string is one selector.

    Raises:
        SelectorError: one of them is malformed.
    """
    return tuple(parse(text) for text in ([texts] if isinstance(texts, str) else texts))


def first(selectors: Sequence[Selector], node: onnx_ir.Node) -> int | None:
    """Index of the first selector that matches ``node``, or None."""
    return next((i for i, selector in enumerate(selectors) if selector.matches(node)), None)


def require_matches(selectors: Iterable[Selector], nodes: Iterable[onnx_ir.Node], what: str) -> None:
    """Check that each selector selects at least one of ``nodes``.

    Args:
        selectors: to check.
        nodes: what the pass can work on.
        what: names these nodes in the message, e.g. ``"products"``.

    Raises:
        SelectorError: one selects nothing; the message offers the nearest names.
    """
    nodes = list(nodes)
    for selector in selectors:
        if not any(selector.matches(node) for node in nodes):
            raise SelectorError(
                f"selector {selector.text!r} matches none of the {len(nodes)} {what}",
                fix=_offer(selector, nodes, what),
            )


def selected(nodes: Sequence[onnx_ir.Node], include: Sequence[str], what: str) -> list[onnx_ir.Node]:
    """Those of ``nodes`` that one of the selectors matches; all if there are none.

    Raises:
        SelectorError: a selector is malformed, or selects nothing.
    """
    parsed = parse_all(include)
    require_matches(parsed, nodes, what)
    return [node for node in nodes if not parsed or first(parsed, node) is not None]


def _offer(selector: Selector, nodes: Sequence[onnx_ir.Node], what: str) -> str:
    if selector.field == "op":
        known = {node.op_type for node in nodes}
    elif selector.field == "name":
        known = {node.name or "" for node in nodes}
    else:
        known = {module_path(node) for node in nodes}
    known.discard("")
    if not known:
        return f"the graph has no {what}"
    close = difflib.get_close_matches(selector.glob, sorted(known), n=3, cutoff=0.3) or sorted(known)[:3]
    return f"the nearest are {', '.join(map(repr, close))}"
