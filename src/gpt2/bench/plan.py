"""The memory, time and disk space that a run will take, estimated before it starts."""

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

PROBED_STEPS = 2
"""Number of optimizer steps that the probe times."""
PROBED_TOKENS = 4096
"""Maximum number of tokens in a micro-batch of the probe on a CPU."""
PROBED = (
    "block_size", "bias", "flash", "pad_vocab", "dropout", "optimizer", "muon_iterations", "device", "dtype",
    "compile", "tf32", "activation_checkpointing",
)  # fmt: skip
"""Settings that the probe takes from the run."""
SPARE = 0.1
"""Share of the device's memory that stays free, for libraries and for what the estimate does not count."""


@dataclass(frozen=True)
class Plan:
    """A plan says what a run with the configuration `config` will take."""

    config: TrainConfig
    """The configuration, with the batch_size that was chosen for it."""
    parameters: int
    """Number of parameters of the model."""
    memory: Memory
    """Memory of a process, in bytes."""
    available: int
    """Bytes that are free on the device now."""
    tokens: int
    """Number of training tokens of the run."""
    flops: float
    """Floating-point operations of the run, by PaLM's accounting (Chowdhery et al. 2022, appendix B)."""
    checkpoint: int
    """Bytes on disk of one checkpoint."""
    kept: int
    """Maximum number of checkpoints that exist at one time; 0 if all are kept."""
    tokens_per_second: float | None
    """Speed of the probe; None without a probe."""

    @property
    def seconds(self) -> float | None:
        """Time of the training steps at the speed of the probe; None without a probe."""
        return self.tokens / self.tokens_per_second if self.tokens_per_second else None

    @property
    def fits(self) -> bool:
        """Whether the memory is sufficient, with `SPARE` to spare."""
        return self.memory.total <= (1 - SPARE) * self.available


def plan(config: TrainConfig, processes: int, probe: bool, note: Callable[[str], None]) -> Plan:
    """Choose the largest micro-batch that fits the device at the same tokens per optimizer step, and plan the run.

    With `probe`, a few optimizer steps on random tokens measure the speed, in one process. Raises UserError where
    nothing fits.
    """
    config = config.resolved()
    dataset = find_dataset(config.dataset, config.data_dir) if config.dataset else None
    shape = _shape(config, dataset, note)
    epoch = len(dataset.split("train", config.block_size)) if dataset else sys.maxsize
    if config.max_epochs and dataset is None:
        note("the dataset is not prepared yet, so the length of an epoch is unknown: planning with max_iters")
    steps = last_step(config, epoch, TrainState(), note)
    sequences = config.accumulation * config.batch_size
    if sequences % processes:
        raise UserError(
            f"the {sequences} sequences of an optimizer step cannot be divided among {processes} processes"
        )
    each = sequences // processes
    sizes = [size for size in range(each, 0, -1) if each % size == 0]
    plans = [_plan_with(size, config, shape, processes, steps) for size in sizes]
    chosen = next((p for p in plans if p.fits), None)
    if chosen is None:
        least = plans[-1]
        raise UserError(
            f"even a single sequence needs {least.memory.total / 1e9:.1f} GB, and {least.available / 1e9:.1f} GB are "
            "free; add --activation_checkpointing, share the model between more processes with --parallel=fsdp, or "
            "take a smaller --model"
        )
    if not probe:
        return chosen
    return replace(chosen, tokens_per_second=_probed_speed(chosen.config, shape, processes, note))


def _plan_with(batch_size: int, config: TrainConfig, shape: GPTConfig, processes: int, steps: int) -> Plan:
    """Return the plan of a run of `steps` optimizer steps with a micro-batch of `batch_size` sequences."""
    where = device.pick_device(config.device)
    sequences = config.accumulation * config.batch_size
    accumulation = sequences // batch_size
    memory = accounting.memory(
        shape,
        Sharing(processes, config.parallel, config.zero_stage),
        batch_size,
        half=device.pick_dtype(config.dtype, where) != "float32",
        optimizer=config.optimizer,
        compiled=config.compile,
        activation_checkpointing=config.activation_checkpointing,
        device=where.type,
    )
    n = accounting.num_params(shape)
    in_matrices = 12 * shape.n_layer * shape.n_embd**2 if config.optimizer == "muon" else 0
    tokens = steps * config.tokens_per_step
    return Plan(
        config=replace(
            config, batch_size=batch_size, gradient_accumulation_steps=accumulation, total_batch_size=None
        ),
        parameters=n,
        memory=memory,
        available=device.free_memory(where),
        tokens=tokens,
        flops=float(accounting.flops_per_token(shape)) * tokens,
        checkpoint=12 * n - 4 * in_matrices,  # the state has one number per parameter with Muon, two with AdamW
        kept=config.keep_checkpoints + 2 if config.keep_checkpoints else 0,
        tokens_per_second=None,
    )


def _probed_speed(config: TrainConfig, shape: GPTConfig, processes: int, note: Callable[[str], None]) -> float:
    """Return the tokens per second of `processes` processes, from a few optimizer steps of one process."""
    batch_size = config.batch_size
    if device.pick_device(config.device).type == "cpu":  # where a larger batch is hardly faster, and takes longer
        batch_size = min(batch_size, max(1, PROBED_TOKENS // config.block_size))
    probed = replace(
        TrainConfig(),
        **{name: getattr(config, name) for name in PROBED},
        **{name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        batch_size=batch_size,
    )
    speed = measure(probed, PROBED_STEPS, note)
    micro_batches = config.accumulation * config.batch_size / processes / batch_size
    once_per_step = sum(speed.seconds[phase] for phase in ("reduce", "optimizer"))
    seconds = micro_batches * (sum(speed.seconds.values()) - once_per_step) + once_per_step
    return config.tokens_per_step / seconds


def _shape(config: TrainConfig, dataset: Dataset | None, note: Callable[[str], None]) -> GPTConfig:
    """Return the shape of the model that will be trained. Nothing is prepared or trained for it."""
    if config.init_from not in ("scratch", "resume", "auto"):
        return replace(open_model(config.init_from).config, block_size=config.block_size)
    vocab_size = config.vocab_size
    if vocab_size is None and dataset is not None:
        vocab_size = dataset.tokenizer.vocab_size
    if vocab_size is None:
        vocab_size = GPTConfig.vocab_size
        note(
            f"the dataset is not prepared yet: planning with GPT-2's {vocab_size:,} tokens; --vocab_size changes this"
        )
    names = ("block_size", "n_layer", "n_head", "n_embd", "bias")
    return GPTConfig(vocab_size=vocab_size, **{name: getattr(config, name) for name in names})
