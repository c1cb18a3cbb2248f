"""The optimizer steps that benchmarks/training.py compares: those of gpt2, nanoGPT, build-nanogpt and llm.c."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from other_projects import definitions
from torch import Tensor

from gpt2.bench.train import random_dataset
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

Update = Callable[[], None]
"""A function that makes one optimizer step."""


def toolkit(options: argparse.Namespace, dtype: str) -> Update:
    """Return the optimizer step of this project's trainer."""
    from gpt2.device import keep_freed_memory

    keep_freed_memory()  # as `gpt2 train` does
    folder = tempfile.mkdtemp()
    config = TrainConfig(
        dataset=str(random_dataset(Path(folder), GPTConfig.vocab_size)),
        vocab_size=GPTConfig.vocab_size,
        out_dir=f"{folder}/run",
        model=options.model,
        batch_size=options.batch_size,
        block_size=options.block_size,
        gradient_accumulation_steps=options.accumulation,
        device=options.device,
        dtype=dtype,  # pyrefly: ignore[bad-argument-type]
        compile=options.compile,
    )
    run = set_up(config, lambda line: print(line, file=sys.stderr))

    def update() -> None:
        train_step(run).loss.item()
        run.state.step += 1

    return update


def plain_step(options: argparse.Namespace, model: Any, optimizer: torch.optim.Optimizer, context: Any) -> Update:
    """Return an optimizer step as nanoGPT, build-nanogpt and llm.c make it; the model returns logits and loss."""
    batches = random_batches(options)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update() -> None:
        for _ in range(options.accumulation):
            x, y = next(batches)
            with context:
                loss = model(x, y)[1] / options.accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return update


def random_batches(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of random micro-batches."""
    shape = (options.batch_size, options.block_size + 1)
    while True:
        tokens = torch.randint(GPTConfig.vocab_size, shape)
        if torch.device(options.device).type == "cuda":
            tokens = tokens.pin_memory().to(options.device, non_blocking=True)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def autocast(options: argparse.Namespace) -> Any:
    """Return the context of autocast to bfloat16."""
    return torch.autocast(torch.device(options.device).type, torch.bfloat16)


def shape_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the shape of the model by the names that nanoGPT, build-nanogpt and llm.c use."""
    preset = GPTConfig.preset(options.model, block_size=options.block_size)
    return {name: getattr(preset, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}


def nanogpt(options: argparse.Namespace, by_hand: bool) -> Update:
    """Return the optimizer step of nanoGPT; by_hand: on a CPU, with autocast, compile and the fused optimizer."""
    module = definitions(Path(options.nanogpt) / "model.py")
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50304, dropout=0.0, bias=True))
    model.to(options.device)
    kind = torch.device(options.device).type
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
    if by_hand and kind == "cpu":
        kept = ("params", "weight_decay", "lr", "betas")
        groups = [{name: group[name] for name in kept} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, fused=True)
    context = (
        autocast(options) if kind == "cuda" or (by_hand and options.by_hand_dtype == "bfloat16") else nullcontext()
    )
    compiled = by_hand or kind == "cuda"  # the default of nanoGPT; its README turns it off on a CPU
    return plain_step(options, torch.compile(model) if compiled else model, optimizer, context)


def build_nanogpt(options: argparse.Namespace) -> Update:
    """Return the optimizer step of build-nanogpt, under bfloat16 autocast as in its script."""
    module = definitions(Path(options.build_nanogpt) / "train_gpt2.py", master_process=True)
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50304)).to(options.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, torch.device(options.device).type)
    return plain_step(options, model, optimizer, autocast(options))


def llmc(options: argparse.Namespace) -> Update:
    """Return the optimizer step of llm.c's train_gpt2.py.

    It runs unchanged in float32 on a CPU, and in bfloat16 with flash attention and compile on a GPU.
    """
    cuda = torch.device(options.device).type == "cuda"
    module = definitions(
        Path(options.llmc) / "train_gpt2.py",
        FLASH=int(cuda),
        ZeroRedundancyOptimizer=None,
    )
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50257)).to(options.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), torch.device(options.device).type, zero_stage=0)
    model = torch.compile(model) if cuda else model
    return plain_step(
        options,
        lambda x, y: model(x, y, return_logits=False),
        optimizer,
        autocast(options) if cuda else nullcontext(),
    )
