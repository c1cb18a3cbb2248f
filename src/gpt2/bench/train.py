"""The speed of training a configuration on this machine."""

import gzip
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gpt2 import accounting, device
from gpt2.data.dataset import find_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import Log, UserError
from gpt2.files import check_free, write_bytes
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.run import Run
from gpt2.training.setup import set_up
from gpt2.training.step import train_step
from gpt2.training.timing import phase_seconds

WARMUP_STEPS = 3
"""Number of optimizer steps before the timed ones."""
PROFILED_STEPS = 2
"""Number of optimizer steps in a profile."""
RANDOM_TOKENS = 2**20
"""Number of tokens in a random dataset."""


@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of training over several optimizer steps."""

    tokens_per_second: float
    """Speed of the median optimizer step."""
    slowest: float
    """Tokens per second of the slowest optimizer step."""
    fastest: float
    """Tokens per second of the fastest optimizer step."""
    seconds: dict[str, float]
    """Median time of each phase of an optimizer step."""
    until_first_update: float
    """Seconds from the start to the end of the first optimizer step, including compilation."""
    mfu_measured: float
    """Model FLOP/s as a share of this device's matrix products in the same dtype (see `device.measured_flops`)."""
    mfu_data_sheet: float | None
    """Model FLOP/s as a share of the rate in the device's data sheet, where it is known."""
    peak_memory: int
    """Peak memory in bytes."""
    parameters: int
    """Number of parameters."""
    tokens_per_step: int
    """Number of tokens in an optimizer step."""
    dtype: str
    """Dtype of matrix products."""


def check_trace(path: Path) -> None:
    """Raise UserError where a profile cannot be written to `path`."""
    check_free(path)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}; make it, or name another file")


def measure(config: TrainConfig, steps: int, note: Log, trace: Path | None = None) -> TrainingSpeed:
    """Train `steps` optimizer steps and measure their time. Nothing is kept.

    Without a dataset, and for a corpus that is not prepared, the tokens are random. PyTorch's profile of two further
    optimizer steps is written to `trace`, for chrome://tracing. Raises UserError as training does.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not config.dataset or find_dataset(config.dataset, config.data_dir) is None:
            note("measuring on random tokens: there is no prepared dataset")
            size = config.vocab_size or GPTConfig.vocab_size
            config = replace(config, dataset=str(random_dataset(Path(folder), size)), vocab_size=size)
        began = time.perf_counter()
        init_from = "scratch" if config.init_from in ("resume", "auto") else config.init_from
        unused = {"sample_interval": 0, "hellaswag_interval": 0}  # whose prompts may not be in the random letters
        config = replace(config, out_dir=f"{folder}/run", overwrite=True, init_from=init_from, **unused)
        with device.out_of_memory_advice():
            return timed(set_up(config, note), steps, began, trace)


def timed(run: Run, steps: int, began: float, trace: Path | None = None) -> TrainingSpeed:
    """Measure `steps` optimizer steps of a run, after the warmup. Its set-up began at the time `began`."""
    config, first, seconds, phases = run.config, 0.0, [], []
    for number in range(WARMUP_STEPS + steps):
        start = time.perf_counter()
        result = train_step(run)
        result.loss.item()  # waits for the device
        end = time.perf_counter()
        run.state.step += 1
        if number == 0:
            first = end - began
        if number >= WARMUP_STEPS:
            seconds.append(end - start)
            phases.append(phase_seconds(result.marks))
    rate, peak_memory = config.tokens_per_step / statistics.median(seconds), device.peak_memory(run.device)
    if trace is not None:
        content = profiled(run)
        write_bytes(trace, gzip.compress(content) if trace.suffix == ".gz" else content)
    sheet = device.data_sheet_flops(run.device, config.dtype)
    return TrainingSpeed(
        tokens_per_second=rate,
        slowest=config.tokens_per_step / max(seconds),
        fastest=config.tokens_per_step / min(seconds),
        seconds={phase: statistics.median(each[phase] for each in phases) for phase in phases[0]},
        until_first_update=first,
        mfu_measured=accounting.mfu(run.model.config, rate, device.measured_flops(run.device, config.dtype)),
        mfu_data_sheet=accounting.mfu(run.model.config, rate, sheet) if sheet else None,
        peak_memory=peak_memory,
        parameters=run.model.get_num_params(non_embedding=False),
        tokens_per_step=config.tokens_per_step,
        dtype=config.dtype,
    )


def profiled(run: Run) -> bytes:
    """Return PyTorch's profile of `PROFILED_STEPS` further optimizer steps of a run, as JSON. Raises UserError."""
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=PROFILED_STEPS, repeat=1)
    with torch.profiler.profile(schedule=schedule) as profile:
        for _ in range(1 + PROFILED_STEPS):
            train_step(run).loss.item()
            run.state.step += 1
            profile.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        content = path.read_bytes() if path.exists() else b""
    if not content.rstrip().endswith(b"}"):  # PyTorch does not report that a full disk cut the file short
        raise UserError(
            f"PyTorch cannot write its profile to {folder}; make space there, or set TMPDIR to another folder"
        )
    return content


def random_dataset(folder: Path, vocab_size: int) -> Path:
    """Prepare a dataset of random letters in `folder`, for a model with `vocab_size` tokens, and return its
    folder."""
    kinds = min(vocab_size, 26)
    letters = np.random.default_rng(0).integers(ord("a"), ord("a") + kinds, size=RANDOM_TOKENS, dtype=np.uint8)
    text = folder / "letters.txt"
    text.write_bytes(letters.tobytes())
    return prepare(text, out=folder / "letters", tokenizer="char")
