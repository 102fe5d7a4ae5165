"""Dataclasses as plain values of JSON and back: their annotations are the schema."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from secateurs.types import FileError, SecateursError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def document(value: Any, what: str, form: str, version: int) -> str:
    """A dataclass as a JSON text that names its format and version.

    Raises `SecateursError` where it holds something that is neither text nor a number.
    """
    content = {"format": form, "version": version, **to_plain(value, what)}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parsed(text: str, kind: Any, what: str, form: str, versions: Sequence[int]) -> Any:
    """The dataclass that `document` wrote; raises `FileError`, saying what was expected where, for any other text."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(found, dict) or found.get("format") != form:
            raise Mismatch(f'expected the JSON object that {kind.__name__}.to_json() wrote, with "format": "{form}"')
        if found.get("version") not in versions:
            known = f"this version of secateurs reads up to {max(versions)}; upgrade secateurs, or write the {what} again"
            raise Mismatch(f"version is {_shown(found.get('version'))}, {known}")
        return _from_plain({key: value for key, value in found.items() if key not in ("format", "version")}, kind, what)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileError(f"this is not a {what}: expected JSON ({error})") from error
    except ValueError as error:
        raise FileError(f"this is not a {what}: {error}") from error


class Mismatch(ValueError):
    """A value in a document is not what belongs there."""


def to_plain(value: Any, where: str) -> Any:
    """A value as JSON holds it; what is not finite becomes a string."""
    if dataclasses.is_dataclass(value):
        return {part.name: to_plain(getattr(value, part.name), f"{where}.{part.name}") for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int | float):
        return value
    raise SecateursError(f"{where} is a {type(value).__name__}; expected text, a number or None")


def _from_plain(value: Any, kind: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``: the annotations of the dataclasses above are the schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # X | None
        return None if value is None else _from_plain(value, arguments[0], where)
    if origin is dict:
        items = _expect(value, dict, "an object", where).items()
        return {key: _from_plain(item, arguments[1], f"{where}[{_shown(key)}]") for key, item in items}
    if origin is tuple:
        items = _expect(value, list, "a list", where)
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else list(arguments)
        if len(items) != len(kinds):
            raise Mismatch(f"{where} has {len(items)} parts, expected {len(kinds)}")
        return tuple(_from_plain(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(items, kinds, strict=True)))
    if dataclasses.is_dataclass(kind):
        return _from_object(_expect(value, dict, "an object", where), kind, where)
    return _from_scalar(value, kind, where)


def _from_object(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints, parts = _hints(kind), dataclasses.fields(kind)
    for key in value:
        if key not in hints:
            raise Mismatch(f"{where} has an unknown part {_shown(key)}, expected only {', '.join(hints)}")
    for part in parts:
        has_default = part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING
        if part.name not in value and not has_default:
            raise Mismatch(f"{where} has no part {part.name!r}")
    content = {key: _from_plain(item, hints[key], f"{where}.{key}") for key, item in value.items()}
    try:
        return kind(**content)
    except SecateursError as error:
        raise Mismatch(f"{where}: {error}") from error


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _from_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        return _expect(value, bool, "true or false", where)
    if kind is str:
        return _expect(value, str, "text", where)
    if kind is float and isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    expected = "a whole number" if kind is int else 'a number (or "NaN", "Infinity", "-Infinity")'
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63):  # bool is an int to Python
        raise Mismatch(f"{where} is {_shown(value)}, expected {expected} below 2**63")
    return kind(_expect(value, int if kind is int else (int, float), expected, where))


def _expect(value: Any, kind: Any, expected: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise Mismatch(f"{where} is {_shown(value)}, expected {expected}")
    return value


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_constant(name: str) -> typing.NoReturn:
    raise Mismatch(f'{name} is not JSON, expected "{name}" in quotes')
