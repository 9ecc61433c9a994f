"""Nested arguments and results: what a call's tensors are packed in.

Nothing here imports torch: the classes that it packs (cache objects, model outputs) bring their own functions along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from ...ir.errors import InputError

Path: TypeAlias = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor: input or output number ``index`` of the graph."""

    index: int


@dataclasses.dataclass(frozen=True)
class Constant:
    """Something that is not a tensor and was fixed when the model was exported."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Container:
    """A list, tuple, dict or object of parts.

    Attributes:
        kind: the class.
        keys: names of the parts: positions, keys or fields.
        parts: the parts.
        context: what the class's own unflattening function needs, for a class that torch's pytrees know.
        registered: whether torch's pytrees flatten it.
    """

    kind: type
    keys: tuple[Any, ...]
    parts: tuple[Structure, ...]
    context: Any = None
    registered: bool = False


Structure: TypeAlias = Leaf | Constant | Container


def is_tensor(value: Any) -> bool:
    """Whether a value goes through the graph: a tensor, or an array."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def open_up(value: Any) -> tuple[type, tuple[Any, ...], list[Any], Any, bool] | None:
    """Class, keys, parts, context of a container; None for anything else."""
    kind = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind, tuple(value._fields), list(value), None, False
    if kind in (tuple, list):
        return kind, tuple(range(len(value))), list(value), None, False
    if kind is dict:
        return kind, tuple(value), list(value.values()), None, False
    known = _torch_node(kind)
    if known is not None:
        children, context = known.flatten_fn(value)
        children = list(children)
        return kind, _keys(value, context, children), children, context, True
    if isinstance(value, dict):
        return kind, tuple(value), list(value.values()), None, False
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(f.name for f in dataclasses.fields(value))
        return kind, names, [getattr(value, name) for name in names], None, False
    return None


def _torch_node(kind: type) -> Any:
    import sys

    pytree = sys.modules.get("torch.utils._pytree")
    return None if pytree is None else pytree.SUPPORTED_NODES.get(kind)


def _keys(value: Any, context: Any, children: list[Any]) -> tuple[Any, ...]:
    if isinstance(value, dict):
        return tuple(value)
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if getattr(value, f.name) is not None]
        if len(names) == len(children):
            return tuple(names)
    if isinstance(context, (list, tuple)) and len(context) == len(children):
        return tuple(map(str, context))
    return tuple(range(len(children)))


def flatten(value: Any, leaves: list[Any], is_leaf: Any = is_tensor) -> Structure:
    """The structure of a value; its tensors are appended to ``leaves`` in order."""
    if is_leaf(value):
        leaves.append(value)
        return Leaf(len(leaves) - 1)
    opened = open_up(value)
    if opened is None:
        return Constant(value)
    kind, keys, parts, context, registered = opened
    return Container(kind, keys, tuple(flatten(part, leaves, is_leaf) for part in parts), context, registered)


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The value of a structure with these tensors in it."""
    if isinstance(structure, Leaf):
        return leaves[structure.index]
    if isinstance(structure, Constant):
        return structure.value
    parts = [unflatten(part, leaves) for part in structure.parts]
    kind = structure.kind
    if structure.registered:
        return _torch_node(kind).unflatten_fn(parts, structure.context)
    if kind in (tuple, list):
        return kind(parts)
    if issubclass(kind, tuple):
        return kind(*parts)
    if issubclass(kind, dict) and not dataclasses.is_dataclass(kind):
        return kind(zip(structure.keys, parts, strict=True))
    return kind(**dict(zip(structure.keys, parts, strict=True)))


def paths(structure: Structure, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    """Each tensor's place in a structure."""
    if isinstance(structure, Leaf):
        yield path, structure
    elif isinstance(structure, Container):
        for key, part in zip(structure.keys, structure.parts, strict=True):
            yield from paths(part, (*path, str(key)))


def match(structure: Structure, value: Any, where: str, leaves: dict[int, Any], is_leaf: Any = is_tensor) -> None:
    """Collect the tensors of ``value``, which must be packed as ``structure`` says, by index.

    Raises:
        InputError: something is missing, there is something else, or a constant differs.
    """
    if isinstance(structure, Leaf):
        if value is None:
            raise InputError(f"{where} is None, the model was compiled with a tensor there", fix="pass a tensor")
        leaves[structure.index] = value
        return
    if isinstance(structure, Constant):
        if is_leaf(value) or not _equal(structure.value, value):
            raise InputError(
                f"{where} is {_brief(value)}, the model was compiled for {_brief(structure.value)}",
                fix="pass the same value, or compile the model with this one",
            )
        return
    opened = open_up(value)
    if opened is None:
        raise InputError(f"{where} is {_brief(value)}, the model was compiled with a {structure.kind.__name__} there")
    _, keys, parts, _, _ = opened
    if issubclass(structure.kind, dict) and not structure.registered:
        given = dict(zip(keys, parts, strict=True))
        if set(given) != set(structure.keys):
            raise InputError(f"{where} has keys {sorted(map(str, given))}, the model was compiled with "
                             f"{sorted(map(str, structure.keys))}")  # fmt: skip
        parts = [given[key] for key in structure.keys]
    if len(parts) != len(structure.parts):
        raise InputError(f"{where} has {len(parts)} parts, the model was compiled with {len(structure.parts)}")
    for key, part, inner in zip(structure.keys, parts, structure.parts, strict=True):
        match(inner, part, f"{where}[{key!r}]", leaves, is_leaf)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a is b or a == b)
    except (ValueError, TypeError, RuntimeError):
        return False


def _brief(value: Any) -> str:
    if is_tensor(value):
        return "a tensor"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
