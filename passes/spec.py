"""Pass specifications: ``"canonicalize,quantize(bits=8,group_size=128)"``, ``"w4a16(group_size=32)"``.

The options are the fields of the pass's dataclass, so the text is checked against the same types as Python code.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..ir.errors import OptionError, nearest
from .base import Pass, Stage
from .presets import PRESETS
from .registry import PASSES, pass_class, pass_name

Passes = str | Pass | Sequence["str | Pass"]
"""What a user may write for a list of passes."""

_BARE = {"true": True, "false": False, "none": None}
_KEYWORD = re.compile(rf"=\s*({'|'.join(word for word in keyword.kwlist if word.islower())})(?=\s*[,)])")
"""A bare word that is one of Python's own, such as ``global``."""


def parse(passes: Passes) -> list[Pass]:
    """The passes of a specification, or of a list of passes and specifications.

    Raises:
        OptionError: unknown pass, preset or option, a value of the wrong type, or text that cannot be read.
    """
    if isinstance(passes, Pass):
        return [passes]
    if isinstance(passes, str):
        return _parse_text(passes)
    if isinstance(passes, type) or not isinstance(passes, Sequence):
        raise OptionError(_not_a_pass(passes), fix='pass a specification such as "w4a16", or a list of passes')
    found: list[Pass] = []
    for item in passes:
        if isinstance(item, str):
            found += _parse_text(item)
        elif isinstance(item, Pass):
            found.append(item)
        else:
            raise OptionError(
                _not_a_pass(item), fix='pass a pass such as passes.Quantize(bits=4), or its name "quantize"'
            )
    return found


def _not_a_pass(item: object) -> str:
    if isinstance(item, type) and issubclass(item, Pass):
        return f"{item.__name__} is a class, not a pass; write {item.__name__}()"
    return f"a {type(item).__name__} is not a pass"


def _parse_text(text: str) -> list[Pass]:
    if not text.strip():
        return []
    try:
        tree = ast.parse(f"[{_KEYWORD.sub(lambda found: f'={found[1]!r}', text)}]", mode="eval").body
    except SyntaxError as error:
        raise OptionError(
            f"the pass specification {text!r} cannot be read ({error.msg})",
            fix='write it like "quantize(bits=4,group_size=64)"; put quotes around patterns such as "*.q_proj"',
        ) from None
    found: list[Pass] = []
    assert isinstance(tree, ast.List)
    for item in tree.elts:
        call = item if isinstance(item, ast.Call) else ast.Call(func=item, args=[], keywords=[])
        if not isinstance(call.func, ast.Name):
            raise OptionError(
                f"{ast.unparse(item)!r} is not the name of a pass", where=text, fix=nearest("", [*PASSES, *PRESETS])
            )
        name = call.func.id
        if any(keyword.arg is None for keyword in call.keywords):
            raise OptionError(f"options of {name!r} must be written name=value", where=text)
        named = [keyword.arg for keyword in call.keywords]
        if twice := [option for option in named if named.count(option) > 1]:
            raise OptionError(f"the option {twice[0]!r} of {name!r} is given twice", where=text)
        values = [_literal(argument, text) for argument in call.args]
        options = {str(keyword.arg): _literal(keyword.value, text) for keyword in call.keywords}
        found += _build(name, values, options)
    return found


def _literal(node: ast.expr, text: str) -> Any:
    """A value: numbers, strings, lists, tuples and mappings; a bare word is a string, ``true`` and ``none`` are not."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _BARE.get(name.lower(), name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _literal(operand, text)
            if isinstance(value, int | float):
                return -value
        case ast.Tuple(elts=items):
            return tuple(_literal(item, text) for item in items)
        case ast.List(elts=items):
            return tuple(_literal(item, text) for item in items)
        case ast.Dict(keys=keys, values=items) if all(key is not None for key in keys):
            return {
                _literal(key, text): _literal(item, text)
                for key, item in zip(keys, items, strict=True)
                if key is not None
            }
        case _:
            pass
    raise OptionError(
        f"{ast.unparse(node)!r} is not a value",
        where=text,
        fix="write a number, a word, a quoted text, or a list of them",
    )


def _build(name: str, values: Sequence[Any], options: Mapping[str, Any]) -> list[Pass]:
    if name in PRESETS:
        if values:
            raise OptionError(f"options of the preset {name!r} must be written name=value")
        return _override(name, _parse_text(PRESETS[name].spec), options)
    kind = pass_class(name)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    if len(values) > len(known):
        raise OptionError(f"the pass {name!r} has {len(known)} options, {len(values)} values were given")
    given = dict(zip(known, values, strict=False))
    for option, value in options.items():
        if option in given:
            raise OptionError(f"the option {option!r} of {name!r} is given twice")
        given[option] = value
    return [make(kind, given)]


def _override(preset: str, passes: list[Pass], options: Mapping[str, Any]) -> list[Pass]:
    """The passes of a preset with each option set on the pass that has it."""
    left = dict(options)
    result = []
    for item in passes:
        mine = {field.name for field in dataclasses.fields(item) if field.init} & set(left)
        changed = {name: _typed(type(item), name, left.pop(name)) for name in mine}
        result.append(_construct(type(item), lambda item=item, changed=changed: dataclasses.replace(item, **changed)))
    if left:
        name = next(iter(left))
        known = {field.name for item in passes for field in dataclasses.fields(item)}
        raise OptionError(f"no pass of the preset {preset!r} has an option {name!r}", fix=nearest(name, known))
    return result


def make(kind: type[Pass], options: Mapping[str, Any]) -> Pass:
    """A pass from options by name, each converted to the type of its field.

    Raises:
        OptionError: unknown option, or a value of the wrong type.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in options:
        if name not in known:
            fix = nearest(name, known) if known else "this pass has no options"
            raise OptionError(f"the pass {pass_name(kind)!r} has no option {name!r}", fix=fix)
    typed = {name: _typed(kind, name, value) for name, value in options.items()}
    return _construct(kind, lambda: kind(**typed))


def _construct(kind: type[Pass], build: Any) -> Pass:
    try:
        made: Pass = build()
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"the pass {pass_name(kind)!r} refuses its options: {error}") from error
    return made


class _Mismatch(Exception):
    pass


def _typed(kind: type[Pass], name: str, value: Any) -> Any:
    annotation = typing.get_type_hints(kind)[name]
    try:
        return _coerce(value, annotation)
    except _Mismatch:
        shown = annotation_text(annotation)
        fix = None
        choices = typing.get_args(annotation)
        if typing.get_origin(annotation) is Literal and isinstance(value, str):
            fix = nearest(value, [str(choice) for choice in choices])
        raise OptionError(
            f"the option {name!r} of {pass_name(kind)!r} takes {shown}, not {value!r}",
            where=f"{pass_name(kind)}({name}={value!r})",
            fix=fix or f"pass a value of type {shown}",
        ) from None


def _coerce(value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or (origin is typing.Annotated and not args):
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in sorted(args, key=lambda choice: _exact(value, choice), reverse=True):
            try:
                return _coerce(value, choice)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        for choice in args:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise _Mismatch
    if origin is tuple:
        return _coerce_tuple(value, args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch
        return {_coerce(key, args[0]): _coerce(item, args[1]) for key, item in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _coerce_tuple(value, (args[0], ...))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is None or annotation is types.NoneType:
        if value is None:
            return None
        raise _Mismatch
    if not isinstance(annotation, type):
        return value
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return annotation(**value)
    if isinstance(value, bool) and annotation is not bool:
        raise _Mismatch
    if isinstance(value, annotation):
        return value
    raise _Mismatch


def _exact(value: Any, choice: Any) -> bool:
    return isinstance(choice, type) and type(value) is choice


def _coerce_tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # One word stands for a list of one, so that `layers="*.q_proj"` does what it says.
    items = (value,) if isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(item, args[0]) for item in items)
    if len(items) != len(args):
        raise _Mismatch
    return tuple(_coerce(item, kind) for item, kind in zip(items, args, strict=True))


def format_pass(item: Pass) -> str:
    """The specification of a pass: the options that differ from their defaults, and a first option that is a name."""
    options = []
    for at, field in enumerate(field for field in dataclasses.fields(item) if field.init):
        value = getattr(item, field.name)
        if value != default_of(field) or (at == 0 and isinstance(value, str)):
            options.append(f"{field.name}={_show(value)}")
    return pass_name(type(item)) + (f"({','.join(options)})" if options else "")


def format_passes(items: Sequence[Pass]) -> str:
    """The specification of a list of passes; :func:`parse` reads it back."""
    return ",".join(format_pass(item) for item in items)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of an option, or ``dataclasses.MISSING``."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value.isidentifier() and value.lower() not in _BARE and value not in ("None",) else repr(value)
    if isinstance(value, tuple | list):
        return f"[{','.join(_show(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_show(key)}:{_show(item)}" for key, item in value.items()) + "}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _show({name: item for name, item in fields.items()})
    return repr(value)


def annotation_text(annotation: Any) -> str:
    """A type as users write it: ``int``, ``"a" | "b"``, ``int | none``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(annotation_text(choice) for choice in args)
    if annotation is types.NoneType:
        return "none"
    if origin is not None:
        inside = ", ".join("..." if choice is Ellipsis else annotation_text(choice) for choice in args)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))


def implied(passes: Sequence[Pass]) -> list[Pass]:
    """The list with ``canonicalize`` and ``recover`` put first where they are missing; an empty list stays empty."""
    if not passes:
        return []
    result, kinds = list(passes), {type(item) for item in passes}
    if (canonicalize := pass_class("canonicalize")) not in kinds:
        result.insert(0, canonicalize())
    if (recover := pass_class("recover")) not in kinds:
        later = [at for at, item in enumerate(result) if item.stage >= Stage.RECOVER]
        result.insert(later[0] if later else len(result), recover())
    return result


def check_order(passes: Sequence[Pass]) -> None:
    """Refuse a list of passes that goes backwards.

    Raises:
        OptionError: with the order that would work.
    """
    now = [item.stage for item in passes]
    for at in range(1, len(passes)):
        earlier, later = passes[at - 1], passes[at]
        if later.latest is not None and later.stage < now[at - 1] <= later.latest:
            now[at] = now[at - 1]
        if now[at] < now[at - 1]:
            works = sorted(passes, key=lambda item: item.stage)
            raise OptionError(
                f"{pass_name(type(later))!r} cannot run after {pass_name(type(earlier))!r}: "
                f"{later.stage.name.lower()} comes before {now[at - 1].name.lower()}",
                where=f"passes={format_passes(passes)!r}",
                fix=f"this order works: {format_passes(works)}",
            )
