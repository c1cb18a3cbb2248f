"""Pickles read as plain values, by an interpreter that runs nothing of theirs and makes nothing large.

Python's unpickler calls what a pickle names, and PyTorch's restricted one calls functions that can fill the memory.
Here a pickle can only make numbers, text, containers, and what the caller provides. A class that is not known becomes
a `Foreign` object, which holds the arguments and attributes that the pickle gives it. The opcodes are decoded by
`pickletools`, which checks lengths against the data.
"""

import io
import pickletools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gpt2.errors import UserError

MAX_BYTES = 1 << 26
"""Largest pickle that is read. One of a GPT-2 XL with its optimizer has less than 1 MB."""
MAX_OPERATIONS = 2_000_000
MAX_DEPTH = 60
"""Largest number of containers inside one another."""
MAX_VALUES = 4_000_000
"""Largest number of values, where one that is used twice counts twice."""
MAX_COPIES = 16
"""Number of bytes that calls may copy per byte of the pickle."""
MAX_INTEGER = 1 << 512
MAX_KEY = 1 << 60
"""Integers from here on are no keys, because they could all have the same hash."""
BUILTINS = ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple")
MODULES = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid")
"""Modules of the standard library whose objects are harmless values."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


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


class Reader:
    """Reads one pickle after another from `data`.

    `calls` are the functions that a pickle may call, by the names that it has for them, in addition to those for
    plain values. `persistent` returns the object of a persistent id. Raises ValueError and other exceptions for a
    damaged pickle, and `Refused` for one that names a function of Python's library.
    """

    def __init__(
        self,
        data: bytes,
        calls: Mapping[str, Callable[..., Any]] | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        if len(data) > MAX_BYTES:
            raise ValueError(f"a pickle of more than {MAX_BYTES:,} bytes")
        self.file = io.BytesIO(data)
        self.calls = CALLS | dict(calls or {})
        self.persistent = persistent
        self.foreign: set[str] = set()
        """Names of the classes of all `Foreign` objects so far."""
        self._copies_left = MAX_COPIES * len(data) + 1_000_000

    def load(self) -> Any:
        """Return the object of the next pickle."""
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks below each mark
        self._memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.file)):
            if count >= MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS:,} operations")
            if opcode.name == "STOP":
                _require_bounded(value := self._stack.pop())
                return value
            self._step(opcode.name, argument)
        raise ValueError("no end")

    def _step(self, name: str, argument: Any) -> None:
        """Execute one operation."""
        stack = self._stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif step := STEPS.get(name):
            step(self, argument)
        elif argument is not None and name.endswith(("INT", "INT1", "INT2", "LONG", "LONG1", "LONG4", "FLOAT")):
            if isinstance(argument, int) and abs(argument) > MAX_INTEGER:
                raise ValueError("an integer of more than 512 bits")
            stack.append(argument)
        elif name.endswith(("STRING", "UNICODE", "UNICODE8", "BINBYTES", "BINBYTES8")):
            stack.append(argument)
        else:
            raise ValueError(f"operation {name}")

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _items(self) -> list[Any]:
        """Return what is above the last mark, and remove both."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _list(self, _: Any) -> None:
        items = self._items()
        self._stack.append(items)

    def _tuple(self, _: Any) -> None:
        items = self._items()
        self._stack.append(tuple(items))

    def _frozenset(self, _: Any) -> None:
        items = self._items()
        self._stack.append(frozenset(map(_key, items)))

    def _dict(self, _: Any) -> None:
        items = self._items()
        self._stack.append({})
        self._set(items)

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(target := self._stack[-1], list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ValueError("items of what is no list")

    def _add_items(self, _: Any) -> None:
        items = self._items()
        self._stack[-1].update(map(_key, items))

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        values = target.attributes if isinstance(target, Foreign) else target
        if not isinstance(values, dict):
            raise ValueError("entries of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            values[_key(key)] = value

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _global(self, name: str) -> None:
        self._stack.append(_named(*name.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(module, name))

    def _persistent(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("a reference to something outside")
        self._stack.append(self.persistent(self._stack.pop()))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self.call(function, arguments))

    def _new_object(self, _: Any) -> None:
        values, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        made = self.call(kind, arguments)
        self._stack.append(made)
        if isinstance(made, Foreign) and isinstance(values, dict):
            made.attributes.update(values)

    def _instance(self, name: str) -> None:
        arguments = self._items()
        self._stack.append(self.call(_named(*name.split(" ", 1)), tuple(arguments)))

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a function that the pickle names makes; a `Foreign` object for one that is not known."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        self._charge(*arguments)
        if known := self.calls.get(function.name):
            return known(*arguments)
        kind = function.name
        if kind in ("copyreg._reconstructor", "copyreg.__newobj__") and isinstance(arguments[0], Global):
            kind, arguments = arguments[0].name, arguments[1:]
        self.foreign.add(kind)
        return Foreign(kind, arguments)

    def _charge(self, *values: Any) -> None:
        """Raise ValueError where calls have copied more than the pickle's size allows."""
        self._copies_left -= sum(len(v) for v in values if isinstance(v, str | bytes | list | tuple | dict | set))
        if self._copies_left < 0:
            raise ValueError("it makes much more than it has")

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Foreign):
            return  # the _metadata of a state dict, or attributes of a tensor
        target.state = state
        for values in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(values, dict):
                self._charge(values)
                target.attributes.update(values)


STEPS: dict[str, Callable[[Reader, Any], object]] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "MARK": Reader._mark,
    "POP": lambda reader, _: reader._stack.pop(),
    "POP_MARK": lambda reader, _: reader._items(),
    "DUP": lambda reader, _: reader._stack.append(reader._stack[-1]),
    "LIST": Reader._list,
    "TUPLE": Reader._tuple,
    "DICT": Reader._dict,
    "FROZENSET": Reader._frozenset,
    "APPEND": Reader._append,
    "APPENDS": Reader._appends,
    "ADDITEMS": Reader._add_items,
    "SETITEM": Reader._set_item,
    "SETITEMS": Reader._set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Reader._put),
    "MEMOIZE": Reader._memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Reader._get),
    "GLOBAL": Reader._global,
    "STACK_GLOBAL": Reader._stack_global,
    "BINPERSID": Reader._persistent,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Reader._reduce),
    "NEWOBJ_EX": Reader._new_object,
    "INST": Reader._instance,
    "BUILD": Reader._build,
}
"""What each operation does that is more than a value; the second argument is the operand, if it has one."""


def _named(module: Any, name: Any) -> Global:
    """Return the class or function. Raises Refused for functions of Python's library other than plain values."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    root = module.split(".")[0]
    harmless = name in BUILTINS if module == "builtins" else root in MODULES or full in CALLS or module == "copyreg"
    if not harmless and root in (*sys.stdlib_module_names, "nt"):
        raise Refused(full)
    return Global(full)


def _key(value: Any) -> Any:
    """Return a key of a dictionary or element of a set. Raises ValueError for one that is slow to hash."""
    parts = value if isinstance(value, tuple) and len(value) <= 16 else (value,)
    for part in parts:
        if not isinstance(part, str | bytes | float | int | Global | None) or (
            isinstance(part, int) and abs(part) >= MAX_KEY
        ):
            raise ValueError(f"a key of type {type(part).__name__}")
    return value


def _require_bounded(value: Any) -> None:
    """Raise ValueError for an object that is deep, contains itself, or repeats its parts without end."""
    sizes: dict[int, int] = {}

    def size(value: Any, depth: int) -> int:
        if id(value) in sizes:
            return sizes[id(value)]
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} containers inside one another")
        total = 1 + sum(size(child, depth + 1) for child in _children(value))
        if total > MAX_VALUES:
            raise ValueError("it repeats its values too often")
        if isinstance(value, dict | list | tuple | Foreign):
            sizes[id(value)] = total
        return total

    size(value, 0)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Foreign):
        yield from (value.arguments, value.attributes, value.state)


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
    return {_key(k): v for k, v in (pairs.items() if isinstance(pairs, dict) else pairs)}


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
    "builtins.complex": complex,
    "builtins.set": lambda items=(): set(map(_key, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(_key, items)),
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
