"""What a run will take before it starts: memory, time, disk."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpt2 import accounting, device
from gpt2.accounting import Memory, Sharing
from gpt2.bench.train import measure
from gpt2.checkpoint import TrainState
from gpt2.data.dataset import Dataset, find_dataset
from gpt2.errors import UserError
from gpt2.formats.open import open_model
from gpt2.model import GPTConfig
from gpt2.training.budget import last_step
from gpt2.training.config import TrainConfig

PROBED_UPDATES, PROBED_TOKENS = 2, 4096
PROBED = (
    "block_size", "bias", "flash", "pad_vocab", "dropout", "optimizer", "muon_iterations", "device", "dtype",
    "compile", "tf32", "activation_checkpointing",
)  # fmt: skip
"""Settings that the probe shares with the run."""
SPARE = 0.1
"""Share of the device's memory that is left alone: what libraries take, and what the arithmetic does not count."""


@dataclass(frozen=True)
class Plan:
    """What `config` will take."""

    config: TrainConfig
    """With the batch_size that was chosen for it."""
    parameters: int
    memory: Memory
    """Of a process, in bytes."""
    available: int
    """Bytes free on the device now."""
    tokens: int
    """To train on."""
    flops: float
    """To compute, by PaLM's accounting."""
    checkpoint: int
    """Bytes on disk of one checkpoint."""
    kept: int
    """Checkpoints there are at most at a time; 0 where all are kept."""
    tokens_per_second: float | None
    """Of the probe; None without one."""

    @property
    def seconds(self) -> float | None:
        """Of training alone, at the probe's speed."""
        return self.tokens / self.tokens_per_second if self.tokens_per_second else None

    @property
    def fits(self) -> bool:
        """Whether the memory will do, with some to spare."""
        return self.memory.total <= (1 - SPARE) * self.available


def plan(config: TrainConfig, processes: int, probe: bool, note: Callable[[str], None]) -> Plan:
    """The largest micro-batch that fits the device at the same tokens per step, and what the run then takes.

    probe: also train a few updates with it on random tokens, in one process. Raises UserError where nothing fits.
    """
    config, where = config.resolved(), device.pick_device(config.device)
    dtype = device.pick_dtype(config.dtype, where)
    dataset = find_dataset(config.dataset, config.data_dir) if config.dataset else None
    shape = _shape(config, dataset, note)
    epoch = len(dataset.split("train", config.block_size)) if dataset else sys.maxsize
    if config.max_epochs and dataset is None:
        note("the dataset is not prepared yet, and nothing says how long an epoch is: counting on max_iters")
    updates = last_step(config, epoch, TrainState(), note)
    sharing = Sharing(processes, config.parallel, config.zero_stage)
    rows = config.accumulation * config.batch_size
    if rows % processes:
        raise UserError(f"the {rows} rows of an update cannot be shared by {processes} processes")

    def with_rows(batch_size: int) -> Plan:
        fitted = replace(
            config,
            batch_size=batch_size,
            gradient_accumulation_steps=rows // batch_size,
            total_batch_size=None,
        )
        memory = accounting.memory(
            shape,
            sharing,
            batch_size,
            half=dtype != "float32",
            optimizer=config.optimizer,
            compiled=config.compile,
            activation_checkpointing=config.activation_checkpointing,
            device=where.type,
        )
        n = accounting.num_params(shape)
        in_matrices = 12 * shape.n_layer * shape.n_embd**2 if config.optimizer == "muon" else 0
        tokens = updates * config.tokens_per_step
        return Plan(
            config=fitted,
            parameters=n,
            memory=memory,
            available=device.free_memory(where),
            tokens=tokens,
            flops=float(accounting.flops_per_token(shape)) * tokens,
            checkpoint=12 * n - 4 * in_matrices,  # Muon has one number for each of its own, AdamW two
            kept=config.keep_checkpoints + 2 if config.keep_checkpoints else 0,
            tokens_per_second=None,
        )

    each = rows // processes
    plans = [with_rows(batch_size) for batch_size in range(each, 0, -1) if each % batch_size == 0]
    chosen = next((p for p in plans if p.fits), None)
    if chosen is None:
        least = plans[-1]
        raise UserError(
            f"even a single row needs {least.memory.total / 1e9:.1f} GB, and {least.available / 1e9:.1f} GB are "
            "free; add --activation_checkpointing, share the model between more processes with --parallel=fsdp, or "
            "take a smaller --model"
        )
    if not probe:
        return chosen
    batch_size = chosen.config.batch_size
    if where.type == "cpu":  # where a larger one is hardly faster, and takes its time
        batch_size = min(batch_size, max(1, PROBED_TOKENS // config.block_size))
    probed = replace(
        TrainConfig(),
        **{name: getattr(config, name) for name in PROBED},
        **{name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        batch_size=batch_size,
    )
    speed = measure(probed, PROBED_UPDATES, note)
    micro_batches = rows / processes / batch_size
    once = sum(speed.seconds[part] for part in ("reduce", "optimizer"))
    seconds = micro_batches * (sum(speed.seconds.values()) - once) + once
    return replace(chosen, tokens_per_second=config.tokens_per_step / seconds)


def _shape(config: TrainConfig, dataset: Dataset | None, note: Callable[[str], None]) -> GPTConfig:
    """Of the model that will be trained. Nothing is prepared or trained for it."""
    if config.init_from not in ("scratch", "resume", "auto"):
        return replace(open_model(config.init_from).config, block_size=config.block_size)
    vocab_size = config.vocab_size
    if vocab_size is None and dataset is not None:
        vocab_size = dataset.tokenizer.vocab_size
    if vocab_size is None:
        vocab_size = GPTConfig.vocab_size
        note(
            f"the dataset is not prepared yet: counting on GPT-2's {vocab_size:,} tokens; --vocab_size says otherwise"
        )
    names = ("block_size", "n_layer", "n_head", "n_embd", "bias")
    return GPTConfig(vocab_size=vocab_size, **{name: getattr(config, name) for name in names})
