"""A model in one `.safetensors` file; ours carry configuration and tokenizer in their metadata."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpt2.errors import UserError, first_line
from gpt2.formats.source import Extras, Source, Stored
from gpt2.formats.state_dict import described_config, guess_config, our_names
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.model import GPT, GPTConfig
from gpt2.tensor_file import write_tensors
from gpt2.tokenizers import Tokenizer, from_json

FLOATS = ("F32", "F16", "BF16", "F64")
MASKS = ("BOOL", "U8")


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `start` is one."""
    return len(start) >= 9 and int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{"


def stored_tensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file, and its metadata. Raises UserError for a damaged one."""
    try:
        file = safe_open(path, framework="pt")
        tensors = {}
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            view = file.get_slice(key)
            if view.get_dtype() not in FLOATS + MASKS:
                raise UserError(
                    f"{path} holds {key[:80]!r} as {view.get_dtype()}; weights are floating-point numbers"
                )
            tensors[key] = Stored(tuple(view.get_shape()), lambda key=key: file.get_tensor(key))
        return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); fetch it again") from None


def open_file(path: Path) -> Source:
    """A bare `.safetensors`. Raises UserError."""
    tensors, metadata = stored_tensors(path)
    tensors = our_names(tensors.items(), path)
    if "gpt2" not in metadata:
        config, assumed = guess_config(tensors, path)
        return Source(config, tensors, find_tokenizer(path, config.vocab_size), str(path), (assumed,))
    try:
        described = json.loads(metadata["gpt2"])
        config, tokenizer = described_config(described["config"], path), described.get("tokenizer")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has metadata that cannot be read ({first_line(error)})") from None
    find = (lambda: from_json(tokenizer)) if tokenizer else find_tokenizer(path, config.vocab_size)
    return Source(config, tensors, find, str(path))


def metadata(config: GPTConfig, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """What tells a bare file's readers its configuration, and with a tokenizer makes it complete.

    One entry, because safetensors writes several in no fixed order.
    """
    values = {"config": asdict(config)} | ({"tokenizer": tokenizer.to_json()} if tokenizer else {})
    return {"gpt2": json.dumps(values)}


def write(model: GPT, extras: Extras, path: Path) -> None:
    """Write a file that is complete in itself."""
    dtype = getattr(torch, extras.dtype)
    tensors = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    write_tensors(path, tensors, metadata(model.config, extras.tokenizer))
