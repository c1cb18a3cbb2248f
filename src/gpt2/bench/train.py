"""How fast a configuration trains on this machine."""

import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gpt2 import accounting, device
from gpt2.data.dataset import find_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.files import write_bytes
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.rescue import out_of_memory_advice
from gpt2.training.run import Run
from gpt2.training.setup import set_up
from gpt2.training.step import train_step
from gpt2.training.timing import phase_seconds

Note = Callable[[str], None]
UNTIMED = 3
"""Updates before the clock runs."""
PROFILED = 2
"""Updates in a trace."""
RANDOM_TOKENS = 2**20


@dataclass(frozen=True)
class TrainingSpeed:
    """What so many timed updates gave."""

    tokens_per_second: float
    """The median update's."""
    slowest: float
    fastest: float
    """Of the slowest and fastest update."""
    seconds: dict[str, float]
    """Of the parts of an update, the median of each."""
    until_first_update: float
    """Seconds from the beginning to the end of the first update, compiling included."""
    mfu_measured: float
    """Share of this device's rate of matrix products in the same format, as `device.measured_flops` finds it."""
    mfu_data_sheet: float | None
    """Share of the rate its maker gives, where that is known."""
    peak_memory: int
    """Bytes."""
    parameters: int
    tokens_per_step: int
    dtype: str


def measure(config: TrainConfig, steps: int, note: Note, trace: Path | None = None) -> TrainingSpeed:
    """Train `steps` updates with the clock running. Nothing is kept.

    Without a dataset, and for a corpus that is not prepared, the tokens are random. trace: where to write PyTorch's
    profile of two more updates, for chrome://tracing. Raises UserError, as training does.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not config.dataset or find_dataset(config.dataset, config.data_dir) is None:
            note("measuring on random tokens: there is no prepared dataset")
            size = config.vocab_size or GPTConfig.vocab_size
            config = replace(config, dataset=str(random_dataset(Path(folder), size)), vocab_size=size)
        began = time.perf_counter()
        config = replace(config, out_dir=f"{folder}/run", overwrite=True, init_from=_origin(config))
        with out_of_memory_advice():
            return timed(set_up(config, note), steps, began, trace)


def timed(run: Run, steps: int, began: float, trace: Path | None = None) -> TrainingSpeed:
    """The figures of `steps` further updates of a run that began to be set up at `began`."""
    config, first, seconds, splits = run.config, 0.0, [], []
    for number in range(UNTIMED + steps):
        start = time.perf_counter()
        result = train_step(run)
        result.loss.item()  # waits for the device
        end = time.perf_counter()
        run.state.step += 1
        if number == 0:
            first = end - began
        if number >= UNTIMED:
            seconds.append(end - start)
            splits.append(phase_seconds(result.marks))
    rate, peak_memory = config.tokens_per_step / statistics.median(seconds), device.peak_memory(run.device)
    if trace is not None:
        content = profiled(run)
        write_bytes(trace, gzip.compress(content) if trace.suffix == ".gz" else content)
    sheet = device.data_sheet_flops(run.device, config.dtype)
    return TrainingSpeed(
        tokens_per_second=rate,
        slowest=config.tokens_per_step / max(seconds),
        fastest=config.tokens_per_step / min(seconds),
        seconds={part: statistics.median(split[part] for split in splits) for part in splits[0]},
        until_first_update=first,
        mfu_measured=accounting.mfu(run.model.config, rate, device.measured_flops(run.device, config.dtype)),
        mfu_data_sheet=accounting.mfu(run.model.config, rate, sheet) if sheet else None,
        peak_memory=peak_memory,
        parameters=run.model.get_num_params(non_embedding=False),
        tokens_per_step=config.tokens_per_step,
        dtype=config.dtype,
    )


def profiled(run: Run) -> bytes:
    """PyTorch's profile of PROFILED further updates of a run, as JSON. Raises UserError."""
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=PROFILED, repeat=1)
    with torch.profiler.profile(schedule=schedule) as profile:
        for _ in range(1 + PROFILED):
            train_step(run).loss.item()
            run.state.step += 1
            profile.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        content = path.read_bytes() if path.exists() else b""
    if not content.rstrip().endswith(b"}"):  # a full disk cuts it short, and PyTorch does not say so
        raise UserError(
            f"PyTorch cannot write its profile to {folder}; make room there, or set TMPDIR to another folder"
        )
    return content


def random_dataset(folder: Path, vocab_size: int) -> Path:
    """A prepared dataset of random letters, in `folder`, for a model with so many tokens."""
    kinds = min(vocab_size, 26)
    letters = np.random.default_rng(0).integers(ord("a"), ord("a") + kinds, size=RANDOM_TOKENS, dtype=np.uint8)
    text = folder / "letters.txt"
    text.write_bytes(letters.tobytes())
    return prepare(text, out=folder / "letters", tokenizer="char")


def _origin(config: TrainConfig) -> str:
    """Where the weights come from: a run in `out_dir` is none of ours."""
    return "scratch" if config.init_from in ("resume", "auto") else config.init_from
