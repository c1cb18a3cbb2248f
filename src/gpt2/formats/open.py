"""`MODEL` on a command line: any path or name, recognised by what it holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gpt2.errors import UserError, first_line
from gpt2.formats import huggingface, native
from gpt2.formats.source import Source
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

READERS = (
    (native.is_checkpoint, native.open_checkpoint),
    (native.is_run, native.open_run),
    (huggingface.is_folder, huggingface.open_folder),
)


def open_model(name: str) -> Source:
    """Open a run folder, a checkpoint, a Hugging Face folder or a model of its hub.

    Raises UserError for what is none of these, or is damaged.
    """
    path = Path(name)
    for recognises, read in READERS:
        if recognises(path):
            return read(path)
    if huggingface.is_hub_name(name) and (not path.exists() or name in huggingface.OFFICIAL):
        return huggingface.open_hub(name)
    if path.exists():
        raise UserError(f"{name} is no model: neither a run, a checkpoint nor a Hugging Face folder")
    raise UserError(f"no model {name!r}: no such run folder, checkpoint or Hugging Face folder")


def build(source: Source, **config_changes: Any) -> GPT:
    """The float32 model of an opened file, with fields of its configuration that are no shapes changed.

    Raises UserError where the file's tensors are damaged or not those of its configuration.
    """
    with torch.device("meta"):
        model = GPT(replace(source.config, **config_changes))
    try:
        state = {name: tensor.to(torch.float32) for name, tensor in source.tensors}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights of {source.origin} cannot be read ({first_line(error)}); fetch them again"
        ) from None
    expected = {name: p.shape for name, p in model.named_parameters()}
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(expected[name]) if name in expected else "unknown"
        if found != wanted:
            raise UserError(
                f"the weights of {source.origin} do not fit its configuration: {name} is {found}, not {wanted}"
            )
    model.load_state_dict(state, assign=True)
    return model.requires_grad_()


def load(name: str) -> tuple[GPT, Tokenizer]:
    """Load any model by path or name, ready to evaluate: `model, tokenizer = gpt2.load("out")`."""
    source = open_model(name)
    return build(source).eval(), source.tokenizer
