"""Opens the models that a server is started with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gpt2.errors import Log, UserError
from gpt2.formats.lora import with_adapter
from gpt2.formats.open import is_run, open_model
from gpt2.generation.engine import Engine
from gpt2.generation.native import why_not_native
from gpt2.generation.weights import Quantize, read_for_decoding
from gpt2.serve.decoder import Decoder
from gpt2.serve.served import Served

STEP_SECONDS = 0.09
"""Aim for the time of a step that computes prompts. Longer steps would delay all texts, and cancelling one."""


def named_models(given: Sequence[str]) -> dict[str, str]:
    """Return the models of a command line, each `NAME=MODEL` or `MODEL`, by name; a path's name is its last part.

    Raises UserError where two have the same name.
    """
    models: dict[str, str] = {}
    for one in given:
        name, equals, model = one.partition("=")
        if not equals or Path(one).exists():
            name, model = Path(one).resolve().name if Path(one).exists() else one, one
        if not name or not model:
            raise UserError(f"{one!r} names no model; write MODEL, or NAME=MODEL")
        if name in models:
            raise UserError(f"two models have the name {name!r}; name one of them differently: NAME={model}")
        models[name] = model
    return models


def named_adapters(given: Sequence[str], models: dict[str, str]) -> dict[str, Path]:
    """Return the adapters of a command line, each `NAME=FOLDER` or `FOLDER`, by name.

    Raises UserError where there are several models, and where two names are the same.
    """
    if given and len(models) != 1:
        raise UserError(
            f"--lora needs one MODEL, to which adapters are added, not {len(models)}; serve the others apart"
        )
    adapters = named_models(given)
    if same := adapters.keys() & models.keys():
        name = same.pop()
        raise UserError(f"a model and an adapter have the name {name!r}; name it differently: --lora NAME=FOLDER")
    return {name: Path(folder) for name, folder in adapters.items()}


def open_served(
    name: str,
    model: str,
    *,
    tokenizer: str | None,
    device: torch.device,
    dtype: str,
    quantize: Quantize,
    slots: int,
    queue: int,
    prefix_bytes: int,
    log: Log,
    adapter: Path | None = None,
) -> Served:
    """Open a model to be served, with a LoRA adapter if given. The settings are the command's. Raises UserError."""
    source = open_model(model, tokenizer)
    found = source.tokenizer
    for line in (f"{name}: {source.origin}", *source.notes):
        log(line)
    if adapter is not None:
        source = with_adapter(source, adapter)
        log(f"{name}: with the LoRA adapter {adapter}")
    network = read_for_decoding(source, device, dtype, quantize)
    if reason := why_not_native(network):
        log(f"{name}: {reason}")
    engine = Engine(
        network,
        slots=slots,
        vocab_size=min(network.config.vocab_size, found.vocab_size),
        prefix_bytes=prefix_bytes,
        step_seconds=STEP_SECONDS,
    )
    run = Path(model) if adapter is None and is_run(Path(model)) else None
    return Served(name, source.origin, network.config, found, Decoder(engine, slots, queue, log), run)
