"""What stands next to a setting of `TrainConfig`: its group in `--help` and the numbers that it accepts.

And which settings do not work together.
"""

import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.training.config import TrainConfig

DataOrder = Literal["random", "shuffled", "sequential"]
"""Names of the orders in which `data/batches.py` takes sequences."""

GROUPS = (
    "Run",
    "Data",
    "Model",
    "Optimizer",
    "Evaluation",
    "Records and checkpoints",
    "Machine",
    "Processes",
)
"""Titles of the groups, in the order in which `--help` shows them."""
RUN, DATA, MODEL, OPTIMIZER, EVALUATION, RECORDS, MACHINE, PROCESSES = (
    Parameter(group=Group(title, sort_key=number)) for number, title in enumerate(GROUPS)
)
QUOTED = Parameter(show_default=repr)
"""Shows the default in quotes, for texts with characters that cannot be seen."""


PATH, OUTPUT = "path", "output"
"""Mark a text that can be a path, and a path to be written. A `~` at the start stands for a home folder, and on the
command line `-` for standard input or output."""


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting accepts."""

    accepts: Callable[[float], bool]
    """Returns whether a number is accepted."""
    requirement: str
    """The same in words, as the end of an error line."""

    def check(self, name: str, value: float | str | None) -> None:
        """Raise UserError unless the setting `name` accepts `value`. None, an unset setting, is always accepted."""
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}; it must be a finite number")
        if value is not None and not isinstance(value, str) and not self.accepts(value):
            raise UserError(f"{name} is {value}; it must {self.requirement}")


def at_least(least: int) -> Bounds:
    """Return the bounds of a number from `least` on."""
    return Bounds(lambda value: value >= least, f"be at least {least}")


def within(least: int, most: float) -> Bounds:
    """Return the bounds of a number from `least` to `most`, both included."""
    return Bounds(lambda value: least <= value <= most, f"be at least {least} and at most {most:,}")


FRACTION = Bounds(lambda value: 0 <= value < 1, "be at least 0 and below 1")
"""Bounds of a share that cannot be all, such as dropout or a decay rate."""
PROBABILITY = Bounds(lambda value: 0 < value <= 1, "be above 0 and at most 1")
"""Bounds of a share that cannot be nothing, such as top_p."""
TEMPERATURE = Bounds(lambda value: value == 0 or 1e-3 <= value <= 1e3, "be 0, or at least 0.001 and at most 1,000")
"""Bounds of a sampling temperature."""
STEPS = within(0, 10**15)
"""Bounds of a number of optimizer steps, of which few runs make 10^6."""
TOKENS = within(0, 10**18)
"""Bounds of a number of tokens of a run or a dataset, of which the largest known have 10^13."""
SEQUENCES = within(1, 10**7)
"""Bounds of a number of sequences, whose offsets are in memory. `training/budget.py` checks their activations."""
MICRO_BATCHES = within(1, 10**6)
"""Bounds of a number of micro-batches in an optimizer step."""
CONTEXT = within(1, 10**7)
"""Bounds of a number of tokens in a sequence."""
SAMPLES = within(1, 10**6)
"""Bounds of a number of samples or repetitions."""
RATE = within(0, 1e30)
"""Bounds of a learning rate or a weight decay."""
SEED = Bounds(lambda value: 0 <= value < 1 << 63, "be at least 0 and below 2^63")
"""Bounds of a seed."""
PORT = Bounds(lambda value: 0 <= value <= 65535, "be 0 to 65535")
"""Bounds of a port."""


def expanded(name: str, path: str, default: object) -> str:
    """Return a path with the home folder in place of a `~`. Raises UserError for an empty one that is no default."""
    if not path and default != "":  # pathlib would take it for the current folder
        raise UserError(f"{name} is empty; give a path or a name")
    return os.path.expanduser(path)  # noqa: PTH111


def converted(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint` of the setting `name`.

    A path becomes text, any real number becomes a float where a float is needed, and a list of texts becomes a
    tuple. Raises UserError for any other type (a TOML file can hold several), for a value that is not one of the
    choices, and for numbers and texts that a TOML file cannot hold.
    """
    kinds = get_args(hint) or (hint,)
    if str in kinds and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if float in kinds and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    if get_origin(hint) is Literal:
        if value not in kinds:
            raise UserError(f"{name} is {value!r}; choose from {', '.join(map(str, kinds))}")
    elif tuple[str, ...] in kinds and isinstance(value, list | tuple):
        value = tuple(value)
        if not value or not all(isinstance(text, str) for text in value):
            raise UserError(f"{name} is {value!r}; it must be a text or a list of texts")
    elif type(value) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds if k is not type(None))
        raise UserError(f"{name} is {value!r} ({type(value).__name__}); it must be {expected}")
    _require_storable(name, value)
    return value


def _require_storable(name: str, value: Any) -> None:
    """Raise UserError for a number that is not finite, and for text with surrogates, which UTF-8 cannot encode."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    texts = value if isinstance(value, tuple) else (value,)
    if any(0xD800 <= ord(c) < 0xE000 for text in texts if isinstance(text, str) for c in text):
        raise UserError(f"{name} is {value!r}, which is not valid text; give it in UTF-8")


def check_combinations(config: "TrainConfig") -> None:
    """Raise UserError for two settings that do not work together."""
    if config.align_documents and config.data_order != "random":
        raise UserError(
            f"align_documents moves windows, but data_order={config.data_order} shows every token once an epoch; "
            "use --data_order=random or --align_documents=False"
        )
    if config.early_stopping_patience and config.eval_interval == 0:
        raise UserError(
            f"early_stopping_patience={config.early_stopping_patience} counts evaluations, and eval_interval=0 "
            "makes none before the end; give --eval_interval or leave --early_stopping_patience at 0"
        )
    if isinstance(config.snapshot_interval, str) and config.snapshot_interval != "geometric":
        raise UserError(f"snapshot_interval is {config.snapshot_interval!r}; it must be a whole number, or geometric")
    if config.optimizer == "muon" and config.cpu_offload:
        raise UserError("optimizer=muon computes on the device; leave --cpu_offload out, or use --optimizer=adamw")


def check_batch(config: "TrainConfig") -> None:
    """Raise UserError where total_batch_size is no multiple of a micro-batch, or contradicts the accumulation."""
    if config.total_batch_size is None:
        return
    micro = config.batch_size * config.block_size
    if config.total_batch_size % micro:
        below = config.total_batch_size // micro * micro
        nearest = f"{below} or {below + micro}" if below else f"{micro}"
        raise UserError(
            f"total_batch_size={config.total_batch_size} is no multiple of batch_size·block_size = "
            f"{config.batch_size}·{config.block_size} = {micro}; the nearest that are: {nearest}"
        )
    implied = config.total_batch_size // micro
    if config.gradient_accumulation_steps not in (None, implied):
        raise UserError(
            f"total_batch_size={config.total_batch_size} means {implied} micro-batches of {micro} tokens, but "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}; give only one of the two"
        )


def check_step(config: "TrainConfig") -> None:
    """Raise UserError for an optimizer step of more sequences than there can be offsets of in memory."""
    MICRO_BATCHES.check("the number of micro-batches in an optimizer step", config.accumulation)
    SEQUENCES.check("the number of sequences in an optimizer step", config.accumulation * config.batch_size)


def check_schedule(config: "TrainConfig") -> None:
    """Raise UserError where the end of the decay is no step, or the warmup is longer than the schedule."""
    if isinstance(config.lr_decay_iters, str) and config.lr_decay_iters != "auto":
        raise UserError(f"lr_decay_iters is {config.lr_decay_iters!r}; it must be a whole number, or auto")
    if config.decay_lr and config.lr_schedule != "constant" and (config.warmup_iters or 0) > config.decay_end:
        raise UserError(
            f"warmup_iters={config.warmup_iters} is more than the {config.decay_end} steps until the learning rate "
            "has decayed (lr_decay_iters, by default the end of the run); give "
            f"--warmup_iters={config.decay_end // 20}, or train longer"
        )
