"""Reads nanoGPT's config files as data, without executing them.

A setting that such a file omits gets nanoGPT's default, so that the file means the same as in nanoGPT.
"""

import ast
import operator
import time
import warnings
from collections.abc import Callable
from typing import Any

from gpt2.errors import UserError
from gpt2.training.config import TrainConfig

DEFAULTS: dict[str, Any] = {
    "dataset": "openwebtext",
    "gradient_accumulation_steps": 40,
    "bias": False,
    "gelu": "erf",
    "warmup_iters": 2000,
    "lr_decay_iters": 600_000,
    "min_lr": 6e-5,
    "eval_interval": 2000,
    "eval_iters": 200,
}
"""The defaults of nanoGPT's train.py (commit 3adf61e1) that differ from those of `TrainConfig`."""

MAX_CHARACTERS = 100_000
"""Largest length of a config file. Those of nanoGPT have less than 2,000 characters."""
MAX_TEXT = 10_000
MAX_INTEGER = 1 << 63
"""Bounds of the values that an expression can have."""
BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
"""Binary operators that a config file can use."""
UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
"""Unary operators that a config file can use."""


def read(text: str, where: str) -> dict[str, Any]:
    """Return the settings that a nanoGPT config file assigns, on top of nanoGPT's defaults.

    The file can assign literals, arithmetic on them, names assigned above, and `str(time.time())`. The result omits
    names that are no settings and that a later line uses. Raises UserError with the line number for anything else.
    """
    tree = _parse(text, where)
    values: dict[str, Any] = {}
    for statement in tree.body:
        try:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = _evaluate(value, values)
                case ast.Import(names=[ast.alias(name="time", asname=None)]):
                    pass
                case ast.Expr(value=ast.Constant()):
                    pass  # a docstring
                case _:
                    raise ValueError("only assignments are read")
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            line = text.split("\n")[statement.lineno - 1].strip()
            raise UserError(
                f"{where}, line {statement.lineno}: cannot read {line[:60]!r} ({error}); config files are "
                "read as data: use literals, arithmetic and names assigned above"
            ) from None
    helpers = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    settings = TrainConfig.__dataclass_fields__
    defaults = dict(DEFAULTS)
    if names_a_model(values.get("init_from", "scratch")):
        del defaults["gelu"]
    return defaults | {name: value for name, value in values.items() if name in settings or name not in helpers}


def _parse(text: str, where: str) -> ast.Module:
    """Return the syntax tree. Raises UserError for text that is no Python, and for more than a config file has."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has more than {MAX_CHARACTERS:,} characters, which no config file has")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in texts
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(f"{where}, line {line}: not a Python file ({error.args[0]})") from None
    except (RecursionError, MemoryError):  # Python's parser gives up on deep nesting
        raise UserError(f"{where}, line 1: an expression in it is nested too deeply") from None


def names_a_model(init_from: str) -> bool:
    """Return whether `init_from` names a model. Such a model has its own GELU variant, which nanoGPT ignores."""
    return init_from not in ("scratch", "resume", "auto")


def _evaluate(node: ast.expr, values: dict[str, Any]) -> Any:
    """Return the value of an expression that can use the names in `values`.

    Raises ValueError, TypeError, ArithmeticError or RecursionError for an expression that is not allowed, has no
    value, or a value that no setting has: a large one could be doubled by every line.
    """
    value = _computed(node, values)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"a text of more than {MAX_TEXT:,} characters")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    return value


def _computed(node: ast.expr, values: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            operands = _evaluate(left, values), _evaluate(right, values)
            if any(isinstance(o, str) for o in operands) and not isinstance(op, ast.Add):
                raise ValueError("text can only be joined")
            return BINARY[type(op)](*operands)
        case ast.UnaryOp(operand=operand, op=op) if type(op) in UNARY:
            return UNARY[type(op)](_evaluate(operand, values))
        case ast.Call(
            func=ast.Name(id="str"),
            args=[ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="time"), args=[], keywords=[])],
            keywords=[],
        ):
            return str(time.time())
        case ast.Name(id=name):
            raise ValueError(f"{name[:40]} is not assigned above")
        case _:
            raise ValueError(f"{type(node).__name__} is not allowed")
