"""nanoGPT's config files, read as data and never executed.

What such a file leaves out has nanoGPT's default, so that it means here what it means there.
"""

import ast
import operator
import time
from collections.abc import Callable
from typing import Any

from gpt2.errors import UserError
from gpt2.training.config import TrainConfig

# The defaults of nanoGPT's train.py (at 3adf61e1) that differ from ours.
DEFAULTS: dict[str, Any] = {
    "dataset": "openwebtext",
    "gradient_accumulation_steps": 40,
    "bias": False,
    "gelu": "erf",
    "warmup_iters": 2000,
    "lr_decay_iters": 600_000,
    "min_lr": 6e-5,
}

BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def read(text: str, where: str) -> dict[str, Any]:
    """Settings assigned in a nanoGPT config file, over nanoGPT's defaults.

    Admits assignments of literals, of arithmetic on them, of names assigned above, and of
    `str(time.time())`. A name that only serves a later line is left out of the result. Raises UserError
    naming the line of anything else.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(f"{where}, line {line}: not a Python file ({error.args[0]})") from None
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
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(
                f"{where}, line {statement.lineno}: cannot read {ast.unparse(statement)[:60]!r} ({error}); config "
                "files are read as data: use literals, arithmetic and names assigned above"
            ) from None
    helpers = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    settings = TrainConfig.__dataclass_fields__
    defaults = dict(DEFAULTS)
    if names_a_model(values.get("init_from", "scratch")):
        del defaults["gelu"]
    return defaults | {name: value for name, value in values.items() if name in settings or name not in helpers}


def names_a_model(init_from: str) -> bool:
    """Whether the weights are a model's that knows its own GELU: OpenAI's compute tanh, and nanoGPT erf with them."""
    return init_from not in ("scratch", "resume", "auto")


def _evaluate(node: ast.expr, values: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            operands = _evaluate(left, values), _evaluate(right, values)
            if any(isinstance(o, str) for o in operands) and not isinstance(op, ast.Add):
                raise ValueError("text can only be joined")  # repeating it could fill the memory
            return BINARY[type(op)](*operands)
        case ast.UnaryOp(operand=operand, op=op) if type(op) in UNARY:
            return UNARY[type(op)](_evaluate(operand, values))
        case ast.Call(func=ast.Name(id="str"), args=[ast.Call() as call]) if ast.unparse(call) == "time.time()":
            return str(time.time())
        case _:
            raise ValueError(f"{ast.unparse(node)[:40]!r} is not admitted")
