"""A table of what each model size takes, on GPUs or on this machine."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from gpt2 import accounting
from gpt2.bench.plan import CHINCHILLA, SPARE, Hardware, memory_of, published_speeds
from gpt2.bench.plan_text import gb, short, span
from gpt2.bench.probe import guessed_speeds
from gpt2.model import PRESETS, GPTConfig
from gpt2.training.config import TrainConfig

NAMES = ("d6", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
"""The sizes in the table. d12, d24, d36 and d48 are other names of GPT-2's."""
LARGEST_BATCH = 512
"""Largest micro-batch that is tried."""


@dataclass(frozen=True)
class Preset:
    """Holds what a model size takes."""

    name: str
    parameters: int
    flops_per_token: int
    tokens: int
    """Number of training tokens: `CHINCHILLA` for each parameter."""
    memory: int
    """Bytes with one sequence in a micro-batch."""
    batch_size: int
    """Largest power of two that fits; 0 where a single sequence does not fit."""
    seconds: tuple[float, float]
    """Shortest and longest time of the training."""
    cost: tuple[float, float] | None
    """The price of that time; None where no price was given."""


def presets(config: TrainConfig, hardware: Hardware, price: float | None) -> list[Preset]:
    """Return what each model size takes with the settings of `config`. price: of a GPU for an hour."""
    return [_preset(name, config, hardware, price) for name in NAMES]


def _preset(name: str, config: TrainConfig, hardware: Hardware, price: float | None) -> Preset:
    shape = GPTConfig.preset(name, block_size=config.block_size, bias=config.bias)
    parameters = accounting.num_params(shape)
    tokens = CHINCHILLA * parameters
    if hardware.gpu is not None:
        speeds = published_speeds(shape, hardware.gpu, hardware.processes)
    else:
        speeds = guessed_speeds(replace(config, **PRESETS[name]), shape, hardware.processes)
    low, high = (tokens / speed.tokens_per_second for speed in reversed(speeds))
    seconds = (low, high)
    cost = None
    if price is not None:
        low, high = (value / 3600 * hardware.processes * price for value in seconds)
        cost = (low, high)
    batch_size = 0
    size = 1
    while size <= LARGEST_BATCH:
        if memory_of(config, shape, hardware, size).total > (1 - SPARE) * hardware.available:
            break
        batch_size, size = size, 2 * size
    memory = memory_of(config, shape, hardware, 1).total
    flops = accounting.flops_per_token(shape)
    return Preset(name, parameters, flops, tokens, memory, batch_size, seconds, cost)


def preset_figures(found: list[Preset]) -> list[dict[str, Any]]:
    """Return the table as JSON values: bytes and seconds."""
    return [asdict(preset) for preset in found]


def preset_table(found: list[Preset], hardware: Hardware, price: float | None) -> str:
    """Return the table as lines of text."""
    heads = ["--model", "parameters", "GFLOP/token", "tokens", "memory", "largest batch", "time"]
    rows = [heads + (["price"] if price is not None else [])]
    for p in found:
        row = [
            p.name,
            short(p.parameters),
            f"{p.flops_per_token / 1e9:.3g}",
            short(p.tokens),
            gb(p.memory),
            str(p.batch_size) if p.batch_size else "does not fit",
            span(*p.seconds),
        ]
        if p.cost is not None:
            row.append(" to ".join(f"{float(f'{value:.2g}'):,g}" for value in p.cost))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    where = f"{hardware.name}, {gb(hardware.available)}" + ("" if hardware.gpu is None else " each")
    return "\n".join([f"On {where}, in {hardware.dtype}:", "", *lines])
