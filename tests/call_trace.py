"""Which of our files a reader passes through: the functions that are entered, in their order.

    python tests/call_trace.py          # traces one optimizer step, the start of gpt2 train, and opening a model

A switch is a function entered in another file than the function entered before it. Imports are made before, so that
only calls count.
"""

import inspect
import io
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import gpt2
from gpt2.cli import main
from gpt2.data.prepare import prepare
from gpt2.formats import huggingface
from gpt2.formats.open import load
from gpt2.formats.source import Extras
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer
from gpt2.training import loop
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

PACKAGE = f"{Path(gpt2.__file__).parent}{os.sep}"


class FirstStep(Exception):
    """Ends a training run at its first step."""


def trace(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return (file, function) of every function of this package that `work` enters, in order."""
    entered: list[tuple[str, str]] = []
    generators: list[FrameType] = []  # a generator is entered once, and then resumed

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
            return
        if code.co_flags & inspect.CO_GENERATOR:
            if any(frame is known for known in generators):
                return
            generators.append(frame)
        entered.append((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered


def files(entered: list[tuple[str, str]]) -> list[str]:
    """Return the files of a trace in the order of their first call."""
    return list(dict.fromkeys(file for file, _ in entered))


def switches(entered: list[tuple[str, str]]) -> int:
    """Return how often a trace goes on in another file."""
    return sum(a[0] != b[0] for a, b in itertools.pairwise(entered))


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a tiny run on a dataset that is prepared in `folder`."""
    (folder / "text.txt").write_text("some text to train on\n" * 500)
    dataset = prepare(folder / "text.txt", out=folder / "dataset", tokenizer="char")
    return {
        "dataset": str(dataset), "out_dir": str(folder / "run"), "max_iters": 1, "batch_size": 4, "block_size": 16,
        "n_layer": 2, "n_head": 2, "n_embd": 16, "eval_interval": 0, "eval_iters": 1, "device": "cpu",
        "dtype": "float32", "compile": False,
    }  # fmt: skip


def trace_step(folder: Path) -> list[tuple[str, str]]:
    """Trace one optimizer step of one micro-batch in one process, after a first one that is not traced."""
    run = set_up(TrainConfig(**tiny_settings(folder)), lambda line: None)
    train_step(run)
    run.state.step += 1
    return trace(lambda: train_step(run))


def trace_start(folder: Path) -> list[tuple[str, str]]:
    """Trace `gpt2 train` up to its first optimizer step."""
    flags = [f"--{name}={value}" for name, value in tiny_settings(folder).items()]
    original = loop.train_step

    def first_step(run: object) -> None:
        sys.setprofile(None)
        raise FirstStep

    def work() -> None:
        with suppress(SystemExit), redirect_stderr(io.StringIO()):  # it says that training failed
            main(["train", *flags])

    loop.train_step = first_step
    try:
        trace(work)  # the first time modules are imported on the way
        shutil.rmtree(folder / "run")
        return trace(work)
    finally:
        loop.train_step = original


def trace_model(folder: Path) -> list[tuple[str, str]]:
    """Trace opening a Hugging Face folder as a model with its tokenizer."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=257, n_layer=2, n_head=1, n_embd=8))
    (folder / "model").mkdir()
    huggingface.write(model, Extras(ByteTokenizer(), "model", "float32", lambda line: None), folder / "model")
    load(str(folder / "model"))  # the first time modules are imported on the way
    return trace(lambda: load(str(folder / "model")))


TRACES = {
    "one optimizer step": trace_step,
    "gpt2 train to its first step": trace_start,
    "a Hugging Face folder to a model": trace_model,
}


if __name__ == "__main__":
    for what, traced in TRACES.items():
        with tempfile.TemporaryDirectory() as temporary:
            calls = traced(Path(temporary))
        print(f"{what}: {len(calls)} calls, {len(files(calls))} files, {switches(calls)} switches")
        print("  " + ", ".join(files(calls)))
