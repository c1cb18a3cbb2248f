"""A model in one `.safetensors` file. The files that this program writes also hold configuration and tokenizer."""

import ctypes
import json
import mmap
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats.source import MASKS as CONSTANTS
from gpt2.formats.source import (
    Extras,
    Source,
    StoredTensor,
    bare_name,
    checked_config,
    infer_config,
    to_our_names,
)
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.model import GPT, GPTConfig
from gpt2.tensor_file import write_tensors
from gpt2.tokenizers import Tokenizer, from_json

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Dtypes of parameters, by safetensors' names."""
MASKS = ("BOOL", "U8")
"""Dtypes of causal masks, which some files hold in addition."""
MAX_HEADER = 1 << 23
"""Largest header in bytes that is read. One of a GPT-2 with a tokenizer has less than 2 MB."""
MAX_TENSORS = 20_000
COPIED = 1 << 22
"""Number of elements of a tensor that are copied at a time."""
UNENCODABLE = re.compile("[\ud800-\udfff]")
"""Surrogates stand for the bytes of a name that is not UTF-8, see PEP 383."""
ENTRY = "gpt2"
"""Key of the metadata under which this program stores configuration and tokenizer as JSON."""


def read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata. Raises UserError for a damaged file."""
    try:
        _check_header(path)
        file = _open(path)
        if (count := len(file.keys())) > MAX_TENSORS:
            raise UserError(f"{path} holds {count:,} tensors, more than any GPT-2")
        tensors = {}
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            view = file.get_slice(key)
            dtype = view.get_dtype()
            if dtype not in (*FLOATS, *MASKS) and not bare_name(key).endswith(CONSTANTS):
                raise UserError(
                    f"{path} holds {key[:80]!r} as {dtype}; weights are floating-point numbers ({', '.join(FLOATS)})"
                )
            shape = tuple(view.get_shape())
            read = partial(_read, file, key)
            tensors[key] = StoredTensor(shape, read, FLOATS.get(dtype), is_own=True)
        return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); fetch it again") from None


def _read(file: Any, key: str) -> Tensor:
    """Return a copy of a tensor of a file, which the library maps. What is copied takes memory only once."""
    mapped = file.get_tensor(key)
    own = torch.empty_like(mapped)
    for part, mapped_part in zip(own.flatten().split(COPIED), mapped.flatten().split(COPIED), strict=True):
        part.copy_(mapped_part)
        _release_pages(mapped_part)
    return own


def _release_pages(mapped: Tensor) -> None:
    """Give back the pages of an unchanged tensor that is mapped from a file, until it is read again.

    Only Linux does; elsewhere the system takes them when it needs memory.
    """
    address, page = mapped.data_ptr(), mmap.PAGESIZE
    first, end = -(-address // page) * page, (address + mapped.nbytes) // page * page
    if sys.platform == "linux" and first < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


def _check_header(path: Path) -> None:
    """Raise UserError where the header is larger than that of any model; reading it takes many times its size."""
    with path.open("rb") as file:
        if (size := int.from_bytes(file.read(8), "little")) > MAX_HEADER:
            raise UserError(f"{path} has a header of {size:,} bytes, more than any model's; it is damaged")


def _open(path: Path) -> Any:
    """Open a file; one with a name that is not UTF-8, which the library refuses, by its descriptor (on Linux)."""
    if not UNENCODABLE.search(str(path)):
        return safe_open(path, framework="pt")
    with path.open("rb") as file:
        return safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt")


def open_file(path: Path) -> Source:
    """Open a `.safetensors` file of its own, without a folder that describes it. Raises UserError."""
    tensors, metadata = read_tensors(path)
    tensors, notes = to_our_names(tensors.items(), path)
    if ENTRY not in metadata:
        config, assumed = infer_config(tensors, path)
        return Source(config, tensors, find_tokenizer(path, config.vocab_size), str(path), (*notes, assumed))
    try:
        described = json.loads(metadata[ENTRY])
        config, tokenizer = checked_config(described["config"], path), described.get("tokenizer")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has metadata that cannot be read ({first_line(error)})") from None
    find = (lambda: from_json(tokenizer)) if tokenizer else find_tokenizer(path, config.vocab_size)
    return Source(config, tensors, find, str(path), notes)


def metadata(config: GPTConfig, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """Return the metadata from which `open_file` restores the configuration and, if given, the tokenizer.

    There is a single entry, because safetensors writes several in no fixed order.
    """
    values = {"config": asdict(config)} | ({"tokenizer": tokenizer.to_json()} if tokenizer else {})
    return {ENTRY: json.dumps(values)}


def write(model: GPT, extras: Extras, path: Path) -> None:
    """Write a file from which `open_file` restores model, configuration and tokenizer."""
    dtype = getattr(torch, extras.dtype)
    tensors = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    write_tensors(path, tensors, metadata(model.config, extras.tokenizer))
