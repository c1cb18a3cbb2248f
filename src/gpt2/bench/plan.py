"""The memory, time and disk space that a run will take, estimated before it starts."""

import sys
from dataclasses import dataclass, replace
from typing import Any

from gpt2 import accounting, device
from gpt2.accounting import Memory
from gpt2.bench.probe import guessed_speeds, is_short, probe
from gpt2.bench.published import ASSUMED_MFU
from gpt2.bench.workload import Speed, Time, Workload, workload
from gpt2.checkpoint import TrainState
from gpt2.data.corpora import CORPORA
from gpt2.data.dataset import Dataset, find_dataset
from gpt2.errors import Log, UserError
from gpt2.formats.huggingface import OFFICIAL
from gpt2.formats.open import open_model
from gpt2.gpus import GPU
from gpt2.model import GPTConfig
from gpt2.training.budget import SPARE, last_step, sharing_of, training_memory
from gpt2.training.config import TrainConfig

CHINCHILLA = 20
"""Training tokens per parameter that use a given number of FLOPs best (Hoffmann et al. 2022, "Chinchilla")."""
GPUS_OF_A_MACHINE = 8
"""Number of GPUs over which hsdp shards a model, unless a setting says otherwise."""
LAYER_LATENCY = 2e-4
"""Seconds that a GPU takes for a layer when it decodes one token: the starts of about 20 kernels."""


@dataclass(frozen=True)
class Hardware:
    """Hardware is what a run is planned for: this machine, or GPUs that it does not have."""

    name: str
    device: str
    """Kind of device: cpu, cuda or mps."""
    dtype: str
    """Dtype of matrix products."""
    available: int
    """Bytes that a process can allocate on its device."""
    processes: int = 1
    gpu: GPU | None = None
    """The GPU; None for this machine."""


@dataclass(frozen=True)
class Data:
    """Holds what is known about the tokens of a run before it starts."""

    name: str
    splits: dict[str, int]
    """Number of tokens of `train` and `val`, as far as they are known."""
    is_prepared: bool
    download: int
    """Bytes of the files that will be read to prepare it; 0 where nothing is prepared or the size is unknown."""
    is_local: bool
    """Whether these files are on this machine already."""


@dataclass(frozen=True)
class Plan:
    """A plan says what a run with the configuration `config` will take."""

    config: TrainConfig
    """The configuration, with the batch_size that was chosen for it."""
    shape: GPTConfig
    hardware: Hardware
    data: Data
    parameters: int
    """Number of parameters of the model."""
    memory: Memory
    """Memory of a process, in bytes."""
    work: Workload
    flops: float
    """Floating-point operations of the run, by PaLM's accounting (Chowdhery et al. 2022, appendix B)."""

    @property
    def fits(self) -> bool:
        """Whether the memory is sufficient, with `SPARE` to spare."""
        return self.memory.total <= (1 - SPARE) * self.hardware.available

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens for each parameter of the model."""
        return self.work.tokens / self.parameters

    @property
    def epochs(self) -> float | None:
        """Number of passes over the training tokens; None where their number is unknown."""
        train = self.data.splits.get("train")
        return self.work.tokens / train if train else None


@dataclass(frozen=True)
class Estimate:
    """An estimate is a range of speeds, and what a run takes at them. Both ends are the same after a probe."""

    origin: str
    """Where the speeds come from: `probe`, `matrix products` or `published`."""
    slow: Speed
    fast: Speed
    longest: Time
    shortest: Time


def this_machine(config: TrainConfig, processes: int) -> Hardware:
    """Return the device of this machine that the configuration names. Raises UserError where it is missing."""
    where = device.pick_device(config.device)
    dtype = device.pick_dtype(config.dtype, where)
    return Hardware(device.describe(where), where.type, dtype, device.free_memory(where), processes)


def for_gpus(config: TrainConfig, gpu: GPU, processes: int) -> Hardware:
    """Return `processes` GPUs of a kind, with the dtype of the configuration or the GPU's own."""
    dtype = gpu.dtype if config.dtype == "auto" else config.dtype
    name = f"{processes} × {gpu.name}" if processes > 1 else gpu.name
    return Hardware(name, "cuda", dtype, int(gpu.memory * 1e9), processes, gpu)


def plan(config: TrainConfig, hardware: Hardware, log: Log) -> Plan:
    """Choose the largest micro-batch that fits the device at the same tokens per optimizer step, and plan the run.

    Nothing is computed on the device. log: receives lines about what is not known yet. Raises UserError where nothing
    fits, with the flags that help.
    """
    dataset = find_dataset(config.dataset, config.data_dir) if config.dataset else None
    data = _data(config, dataset)
    epoch = len(dataset.split("train", config.block_size)) if dataset else sys.maxsize
    if config.max_epochs and dataset is None:
        log("the dataset is not prepared yet, so the length of an epoch is unknown: planning with max_iters")
    steps = last_step(config, epoch, TrainState(), log)
    config = config.resolved(steps)
    shape = _shape(config, dataset, log)
    sizes = _batch_sizes(config, hardware.processes)
    chosen = next((p for size in sizes if (p := _plan_with(size, config, shape, hardware, data, steps)).fits), None)
    if chosen is not None:
        return chosen
    least = _plan_with(1, config, shape, hardware, data, steps)
    raise UserError(
        f"even a single sequence needs {least.memory.total / 1e9:.1f} GB, and {hardware.available / 1e9:.1f} GB are "
        f"free; {_remedies(config, shape, hardware)}"
    )


def memory_of(config: TrainConfig, shape: GPTConfig, hardware: Hardware, batch_size: int) -> Memory:
    """Return the memory of a process that trains with micro-batches of `batch_size` sequences."""
    is_single = config.accumulation * config.batch_size == batch_size
    accumulation = 1 if is_single else 2  # memory depends only on whether there are several micro-batches
    changes: dict[str, Any] = {
        "batch_size": batch_size, "gradient_accumulation_steps": accumulation, "total_batch_size": None,
        "dtype": hardware.dtype,
    }  # fmt: skip
    config = replace(config, **changes)
    sharing = sharing_of(config, hardware.processes, GPUS_OF_A_MACHINE)
    return training_memory(config, shape, sharing, hardware.device, hardware.available)[0]


def estimate(found: Plan, log: Log) -> Estimate:
    """Return the time of a plan: by a probe of this machine, or for other GPUs by published speeds.

    A model too large for a probe is estimated from the rate of this machine's matrix products. log: receives lines
    about the progress of the probe. Raises UserError as training does.
    """
    config, shape, hardware = found.config, found.shape, found.hardware
    if hardware.gpu is not None:
        origin, speeds = "published", published_speeds(shape, hardware.gpu, hardware.processes)
    elif hardware.device == "cpu" and not is_short(config, shape):
        origin, speeds = "matrix products", guessed_speeds(config, shape, hardware.processes)
    else:
        origin, speeds = "probe", (probe(config, shape, hardware.processes, log),) * 2
    slow, fast = speeds
    return Estimate(origin, slow, fast, slow.time(found.work), fast.time(found.work))


def published_speeds(shape: GPTConfig, gpu: GPU, processes: int) -> tuple[Speed, Speed]:
    """Return the lowest and the highest speed of training in PyTorch on GPUs, at `ASSUMED_MFU` of their rate.

    An evaluation does a third of the arithmetic of training. For a sampled token, all weights are read once.
    """
    low, high = (processes * share * gpu.tflops * 1e12 / accounting.flops_per_token(shape) for share in ASSUMED_MFU)
    sampled = 1 / (4 * accounting.num_params(shape) / (gpu.bandwidth * 1e9) + shape.n_layer * LAYER_LATENCY)
    return Speed(low, 3 * low, sampled), Speed(high, 3 * high, sampled)


def _batch_sizes(config: TrainConfig, processes: int) -> list[int]:
    """Return the possible numbers of sequences in a micro-batch, largest first, for the same optimizer step."""
    sequences = config.accumulation * config.batch_size
    if sequences % processes:
        raise UserError(
            f"the {sequences} sequences of an optimizer step cannot be divided among {processes} processes"
        )
    each = sequences // processes
    return [size for size in range(each, 0, -1) if each % size == 0]


def _plan_with(
    batch_size: int, config: TrainConfig, shape: GPTConfig, hardware: Hardware, data: Data, steps: int
) -> Plan:
    """Return the plan of a run of `steps` optimizer steps with a micro-batch of `batch_size` sequences."""
    accumulation = config.accumulation * config.batch_size // batch_size
    work = workload(config, shape, steps, data.splits)
    return Plan(
        config=replace(
            config, batch_size=batch_size, gradient_accumulation_steps=accumulation, total_batch_size=None
        ),
        shape=shape,
        hardware=hardware,
        data=data,
        parameters=accounting.num_params(shape),
        memory=memory_of(config, shape, hardware, batch_size),
        work=work,
        flops=float(accounting.flops_per_token(shape)) * work.tokens,
    )


def _remedies(config: TrainConfig, shape: GPTConfig, hardware: Hardware) -> str:
    """Return the flags with which a single sequence fits, or what else helps, in words."""
    flags: dict[str, dict[str, Any]] = {
        "--activation_checkpointing": {"activation_checkpointing": True},
        "--zero_stage=1": {"zero_stage": 1, "parallel": "ddp"},
        "--parallel=fsdp": {"parallel": "fsdp", "zero_stage": 0},
        "--parallel=fsdp --activation_checkpointing": {
            "parallel": "fsdp", "zero_stage": 0, "activation_checkpointing": True,
        },
    }  # fmt: skip
    fitting = []
    for name, changes in flags.items():
        if hardware.processes == 1 and ("fsdp" in name or "zero" in name):
            continue
        needed = memory_of(replace(config, **changes), shape, hardware, 1).total
        if needed <= (1 - SPARE) * hardware.available:
            fitting.append(f"{name} ({needed / 1e9:.1f} GB)")
    if fitting:
        return f"it fits with {' or '.join(fitting)}"
    more = "add more GPUs" if hardware.processes > 1 else "share the model between processes"
    return (
        f"it does not fit with --activation_checkpointing either; {more} with --parallel=fsdp, or take a smaller "
        "--model or --block_size"
    )


def _data(config: TrainConfig, dataset: Dataset | None) -> Data:
    """Return what is known about the dataset of a run."""
    if dataset is not None:
        splits = {name: len(tokens) for name, tokens in dataset.splits.items()}
        return Data(str(dataset.path), splits, is_prepared=True, download=0, is_local=True)
    if not config.dataset:
        return Data("", {}, is_prepared=False, download=0, is_local=False)
    corpus = CORPORA[config.dataset]
    splits = {"train": corpus.tokens} if corpus.tokens else {}
    is_local = config.dataset == "pystdlib"
    return Data(config.dataset, splits, is_prepared=False, download=corpus.size, is_local=is_local)


def _shape(config: TrainConfig, dataset: Dataset | None, log: Log) -> GPTConfig:
    """Return the shape of the model that will be trained. Nothing is prepared or trained for it."""
    if config.init_from in OFFICIAL:  # whose shapes are known without their files
        return GPTConfig.preset(config.init_from, block_size=config.block_size)
    if config.init_from not in ("scratch", "resume", "auto"):
        return replace(open_model(config.init_from).config, block_size=config.block_size)
    vocab_size = config.vocab_size
    if vocab_size is None and dataset is not None:
        vocab_size = dataset.tokenizer.vocab_size
    if vocab_size is None and config.dataset:
        vocab_size = CORPORA[config.dataset].vocab_size
    if vocab_size is None:
        vocab_size = GPTConfig.vocab_size
        is_known = bool(config.dataset) and CORPORA[config.dataset].tokenizer == "gpt2"
        if not is_known:
            log(
                f"no dataset is prepared: planning with GPT-2's {vocab_size:,} tokens; --vocab_size sets their number"
            )
    names = ("block_size", "n_layer", "n_head", "n_embd", "bias")
    return GPTConfig(vocab_size=vocab_size, **{name: getattr(config, name) for name in names})
