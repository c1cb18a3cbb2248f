"""What pickles are read as: plain values, names of classes, and objects whose classes are not known."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gpt2.errors import UserError

MAX_KEY = 1 << 60
"""Integers from here on are no keys, because they could all have the same hash."""
BUILTINS = (
    *(
        "bool",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
    ),
    *("tuple", "type", "long", "unicode", "xrange"),  # the last three are Python 2's
)
MODULES = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid")
"""Modules of the standard library whose objects are harmless values."""


class Refused(UserError):
    """A pickle names something that no model needs; the message is its name."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names, under its full name."""

    name: str


@dataclass(eq=False)
class Foreign:
    """An object of a class that is not known here, as the pickle describes it."""

    kind: str
    """Full name of the class."""
    arguments: tuple[Any, ...] = ()
    """Arguments with which the pickle makes it."""
    attributes: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    """State that is not a dictionary of attributes."""


def named(module: Any, name: Any) -> Global:
    """Return the class or function. Raises Refused for functions of Python's library other than plain values."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    root = module.split(".")[0]
    if module == "builtins":
        harmless = name in BUILTINS
    else:  # a dot in the name is a method of a class
        harmless = full in CALLS or module == "copyreg" or (root in MODULES and "." not in name)
    if not harmless and root in (*sys.stdlib_module_names, "nt"):
        raise Refused(full)
    return Global(full)


def key_of(value: Any) -> Any:
    """Return a key of a dictionary or element of a set. Raises ValueError for one that is slow to hash."""
    parts = value if isinstance(value, tuple) and len(value) <= 16 else (value,)
    for part in parts:
        if not isinstance(part, str | bytes | float | int | Global | Foreign | None) or (
            isinstance(part, int) and abs(part) >= MAX_KEY
        ):
            raise ValueError(f"a key of type {type(part).__name__}")
    return value


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 pickles as text for protocol 2."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode with {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """Return the content of a dictionary of some class."""
    pairs = arguments[-1] if arguments else {}
    if isinstance(pairs, Global | None):  # what a defaultdict makes missing values with
        return {}
    return {key_of(k): v for k, v in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _dtype_of(kind: Foreign) -> np.dtype:
    """Return the dtype of numbers that a pickled `numpy.dtype` describes."""
    code, order = kind.arguments[0], kind.state[1] if isinstance(kind.state, tuple) else "<"
    if kind.kind != "numpy.dtype" or not re.fullmatch(r"[biuf][1248]", code) or order not in ("<", ">", "|", "="):
        raise ValueError("an array that does not hold numbers")
    return np.dtype(order + code)


def _scalar(kind: Foreign, data: Any = b"") -> Any:
    """Return NumPy's number as Python's."""
    return np.frombuffer(data, _dtype_of(kind))[0].item()


def number(value: Any) -> float | None:
    """Return the only number in a value: one of Python's, or an array or tensor with one element; else None."""
    if isinstance(value, Foreign) and value.kind.endswith("multiarray._reconstruct"):
        try:
            _, _, kind, _, data = value.state
            found = np.frombuffer(data, _dtype_of(kind))
        except (TypeError, ValueError, AttributeError, IndexError):
            return None
        return float(found[0]) if len(found) == 1 else None
    if hasattr(value, "numel"):
        return float(value.item()) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) and abs(value) < MAX_KEY else None


CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",  # how Python 3 pickles empty bytes for protocol 2
    "builtins.complex": complex,
    "builtins.set": lambda items=(): set(map(key_of, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(key_of, items)),
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _dictionary,
    **{
        f"pathlib.{name}": lambda *pieces: str(PurePosixPath(*pieces))
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{f"pathlib._local.{name}": lambda *pieces: str(PurePosixPath(*pieces)) for name in ("Path", "PosixPath")},
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
"""Functions for plain values, by the names that pickles have for them."""


def attributes(value: Any) -> dict[str, Any]:
    """Return the entries of a dictionary, or the attributes of an object; an empty dict for anything else."""
    values = value.attributes if isinstance(value, Foreign) else value
    return values if isinstance(values, dict) else {}
