"""Fields of JSON and CSV records, with an error that names file and field where they are not what the format says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.frame import needs

NUMBER = (int, float)


def elements(path: Path, name: str, fmt: str) -> Iterator[dict[str, Any]]:
    """The objects in the list ``name`` of the JSON object in ``path``, one at a time, without reading it whole.

    Raises:
        UserError: the file cannot be read, is not such JSON, or the list is missing or empty.
    """
    needs("ijson", f"the JSON of {fmt}")
    import ijson

    count = 0
    try:
        with open(path, "rb") as file:
            for item in ijson.items(file, f"{name}.item", use_float=True):
                if not isinstance(item, dict):
                    raise UserError(f"{path}: {name}[{count}] is not an object, as {fmt} has it")
                count += 1
                yield item
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {' '.join(str(error).split())[:200]}") from error
    if not count:
        raise UserError(f"{path}: no list `{name}`, or nothing in it; {fmt} has one")


def member(item: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """``item[name]``, of one of ``kinds``; true and false are no numbers.

    Raises:
        UserError: it is missing or of another kind. ``where`` is how the message begins.
    """
    value = item.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (int, float, NUMBER, (int, str))):
        raise UserError(f"{where}.{name} is {'missing' if name not in item else repr(value)[:60]}; {_expected(kinds)}")
    return value


def numbers(item: Mapping[str, Any], name: str, count: int | None, where: str) -> list[float]:
    """A list of ``count`` numbers (of any, for None).

    Raises:
        UserError: it is something else.
    """
    value = item.get(name)
    if not isinstance(value, list) or (count is not None and len(value) != count):
        value = None
    if value is None or not all(isinstance(each, NUMBER) and not isinstance(each, bool) for each in value):
        shown = "missing" if name not in item else repr(item[name])[:60]
        raise UserError(f"{where}.{name} is {shown}; expected {'' if count is None else f'{count} '}numbers")
    return value


def matrix(item: Mapping[str, Any], name: str, rows: int, columns: int, where: str) -> list[list[float]]:
    """Raises UserError where it is not ``rows`` lists of ``columns`` numbers."""
    value = member(item, name, list, where)
    lines = {f"{name}[{i}]": line for i, line in enumerate(value)}
    if len(lines) != rows:
        raise UserError(f"{where}.{name} has {len(lines)} rows; expected {rows}")
    return [numbers(lines, line, columns, where) for line in lines]


def _expected(kinds: type | tuple[type, ...]) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object", bool: "true"}
    chosen = kinds if isinstance(kinds, tuple) else (kinds,)
    return f"expected {'a number' if set(chosen) == set(NUMBER) else ' or '.join(names[kind] for kind in chosen)}"
