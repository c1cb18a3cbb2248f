"""Pickles read as plain values, by an interpreter that runs nothing of theirs and makes nothing large.

Python's unpickler calls what a pickle names, and PyTorch's restricted one calls functions that can fill the memory.
Here a pickle can only make numbers, text, containers, and what the caller provides. A class that is not known becomes
a `Foreign` object, which holds the arguments and attributes that the pickle gives it. The opcodes are decoded by
`pickletools`, which checks lengths against the data.
"""

import io
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt2.formats.pickled_values import CALLS, Foreign, Global, key_of, named

MAX_BYTES = 1 << 26
"""Largest pickle that is read. One of a GPT-2 XL with its optimizer has less than 1 MB."""
MAX_OPERATIONS = 600_000
MAX_DEPTH = 60
"""Largest number of containers inside one another."""
MAX_VALUES = 2_000_000
"""Largest number of values, where one that is used twice counts twice."""
MAX_COPIES = 2
"""Number of bytes that calls may copy per byte of the pickle."""
MAX_INTEGER = 1 << 512
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


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
        self._copies_left = MAX_COPIES * len(data) + 100_000

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
        self._stack.append(frozenset(map(key_of, items)))

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
        self._stack[-1].update(map(key_of, items))

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
            values[key_of(key)] = value

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _global(self, name: str) -> None:
        self._stack.append(named(*name.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(named(module, name))

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
        self._stack.append(self.call(named(*name.split(" ", 1)), tuple(arguments)))

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
