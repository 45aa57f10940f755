"""Pickles of plain data, read without unpickling: no class is looked up, nothing is called, nothing is imported.

The standard library's disassembler (``pickletools.genops``) gives the instructions; those that build lists,
dictionaries, tuples, texts, bytes, numbers, truths and None are followed, and a file with any other is refused by that
instruction's name. Protocols 0 to 5, as Python 2 and 3 write them.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError

_MARK = object()
_OLD_TEXTS = ("BINSTRING", "SHORT_BINSTRING")  # of Python 2; the disassembler gives their bytes as latin-1
_VALUES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", *_OLD_TEXTS,
     "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
# How many values from the top; None: all behind the mark.
_APPENDS: dict[str, int | None] = {"APPEND": 1, "APPENDS": None}
_SETS: dict[str, int | None] = {"SETITEM": 2, "SETITEMS": None}
_TUPLES: dict[str, int | None] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_NOTHING = ("PROTO", "FRAME", "STOP")


class _Refused(Exception):
    """The message is the instruction's name."""


def load_plain(path: Path) -> Any:
    """What the pickle holds. Texts of Python 2 are read as UTF-8, or as latin-1 where they are not.

    Raises:
        UserError: the file cannot be read, is no pickle, is cut off, or holds more than plain data.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        # From memory: a length that a file declares is reserved before it is read, and here no more than there is.
        for opcode, argument, _ in pickletools.genops(io.BytesIO(path.read_bytes())):
            _follow(opcode.name, argument, stack, memo)
        (value,) = stack
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except _Refused as refused:
        raise UserError(f"{path}: holds {refused}, more than plain data; it was not unpickled") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: not a whole pickle: {' '.join(str(error).split())[:120]}") from None
    return value


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _VALUES:
        stack.append(_old_text(argument) if name in _OLD_TEXTS else argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
    elif name in _PUTS:
        memo[len(memo) if argument is None else int(argument)] = stack[-1]
    elif name in _GETS:
        stack.append(memo[int(argument)])
    elif name in _TUPLES:
        stack.append(tuple(_take(stack, _TUPLES[name])))
    elif name == "LIST":
        stack.append(_take(stack, None))
    elif name == "DICT":
        stack.append(_pairs(_take(stack, None)))
    elif name in _APPENDS:
        values = _take(stack, _APPENDS[name])
        if type(stack[-1]) is not list:
            raise ValueError("it appends to what is no list")
        stack[-1].extend(values)
    elif name in _SETS:
        values = _take(stack, _SETS[name])
        if type(stack[-1]) is not dict:
            raise ValueError("it sets items of what is no dictionary")
        stack[-1].update(_pairs(values))
    elif name not in _NOTHING:
        raise _Refused(name)


def _take(stack: list[Any], count: int | None) -> list[Any]:
    """Off the stack: ``count`` values, or all behind the last mark, and the mark."""
    start = len(stack) - count if count is not None else len(stack) - 1 - stack[::-1].index(_MARK)
    if start < 0:
        raise IndexError("it takes more than there is")
    values = stack[start:] if count is not None else stack[start + 1 :]
    del stack[start:]
    return values


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _old_text(text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text
