"""A short measurement of how fast this machine trains, evaluates and samples with a configuration."""

import contextlib
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2 import accounting, device
from gpt2.bench.sample import measure as measure_decoding
from gpt2.bench.train import random_dataset
from gpt2.bench.workload import Speed
from gpt2.errors import Log, UserError
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.periodic import estimate_losses
from gpt2.training.run import Run
from gpt2.training.setup import set_up
from gpt2.training.step import train_step
from gpt2.training.timing import phase_seconds

WARMUP_STEPS, STEPS, SHORT_SECONDS = 1, 5, 4.0
"""Number of optimizer steps before the timed ones, and of timed ones. Short steps are repeated for some seconds."""
STEP_SECONDS = 4.0
"""Seconds that an optimizer step of the probe should take at most on a CPU, whose micro-batch is made smaller."""
LONGEST_STEP = 30.0
"""Expected seconds of one sequence above which there is no probe."""
SECONDS = 30.0
"""Seconds after which no further optimizer step begins."""
SAMPLED_TOKENS = 9
"""Number of tokens that the probe samples."""
CPU_MFU = (0.4, 0.9)
"""Lowest and highest share of a CPU's matrix rate that training reaches: 44 % and 81 % in docs/speed.md."""
PROBED = (
    "block_size", "bias", "flash", "pad_vocab", "dropout", "optimizer", "muon_iterations", "device", "dtype",
    "compile", "tf32", "activation_checkpointing",
)  # fmt: skip
"""Settings that the probe takes from the run."""


def is_short(config: TrainConfig, shape: GPTConfig) -> bool:
    """Return whether a probe of one sequence is expected to take less than `LONGEST_STEP` seconds per step."""
    return _expected_seconds(config, shape) <= LONGEST_STEP


def probe(config: TrainConfig, shape: GPTConfig, processes: int, log: Log) -> Speed:
    """Train a few optimizer steps on random tokens in one process; return the speed of `processes` processes.

    No step begins after `SECONDS`; compilation is not limited. log: receives lines about the progress. Raises
    UserError as training does.
    """
    batch_size = config.batch_size
    if device.pick_device(config.device).type == "cpu":  # where a larger batch is hardly faster, and takes longer
        batch_size = max(1, min(batch_size, int(STEP_SECONDS / _expected_seconds(config, shape))))
    probed = replace(
        TrainConfig(),
        **{name: getattr(config, name) for name in PROBED},
        **{name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        batch_size=batch_size,
        eval_iters=1,
    )
    log(f"measuring the speed with {batch_size} sequences at a time, for about half a minute; --no-probe omits this")
    with tempfile.TemporaryDirectory() as folder:
        dataset = str(random_dataset(Path(folder), shape.vocab_size))
        with device.out_of_memory_advice():
            run = set_up(replace(probed, dataset=dataset, out_dir=f"{folder}/run"), _about_compilation(log))
            phases = _timed_steps(run, log)
            began = time.perf_counter()
            estimate_losses(run)
            evaluated = 2 * batch_size * config.block_size / (time.perf_counter() - began)
            sampled = evaluated
            if (new := min(SAMPLED_TOKENS, config.block_size - 1)) > 1:
                options: dict[str, Any] = {
                    "prompt_tokens": 1,
                    "new_tokens": new,
                    "rounds": 1,
                }
                with contextlib.suppress(UserError):  # logits that are not finite, after steps on random tokens
                    sampled = measure_decoding(run.model, **options).tokens_per_second
    once = sum(phases[phase] for phase in ("reduce", "optimizer"))
    micro_batches = config.accumulation * config.batch_size / processes / batch_size
    seconds = micro_batches * (sum(phases.values()) - once) + once
    return Speed(config.tokens_per_step / seconds, processes * evaluated, sampled)


def _timed_steps(run: Run, log: Log) -> dict[str, float]:
    """Make optimizer steps and return the median seconds of each phase."""
    phases: list[dict[str, float]] = []
    began = now = time.perf_counter()
    while not phases or now - began < (SECONDS if len(phases) < STEPS else SHORT_SECONDS):
        start = time.perf_counter()
        result = train_step(run)
        result.loss.item()  # waits for the device
        run.state.step += 1
        if run.state.step > WARMUP_STEPS:
            phases.append(phase_seconds(result.marks))
        now = time.perf_counter()
        if now - start > 1:
            log(f"step {run.state.step} of at most {WARMUP_STEPS + STEPS} took {now - start:.1f} s")
    return {phase: statistics.median(each[phase] for each in phases) for phase in phases[0]}


def guessed_speeds(config: TrainConfig, shape: GPTConfig, processes: int) -> tuple[Speed, Speed]:
    """Return the lowest and the highest speed that this CPU may reach, from the rate of its matrix products."""
    where = device.pick_device(config.device)
    rate = processes * device.measured_flops(where, device.pick_dtype(config.dtype, where))
    low, high = (share * rate / accounting.flops_per_token(shape) for share in CPU_MFU)
    return Speed(low, 3 * low, low / processes), Speed(high, 3 * high, 3 * high / processes)


def _expected_seconds(config: TrainConfig, shape: GPTConfig) -> float:
    """Return the seconds that one sequence is expected to take, at a cautious share of the matrix rate."""
    where = device.pick_device(config.device)
    rate = device.measured_flops(where, device.pick_dtype(config.dtype, where))
    return accounting.flops_per_token(shape) * config.block_size / (CPU_MFU[0] * rate)


def _about_compilation(log: Log) -> Log:
    """Return a log that keeps only the lines about torch.compile; the others describe the probe's own run."""
    return lambda line: log(line) if "compil" in line else None
