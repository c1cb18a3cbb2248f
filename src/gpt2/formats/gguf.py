"""llama.cpp's GGUF files of a GPT-2, read and written."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats import gguf_file
from gpt2.formats.gguf_file import TensorInfo, TensorToWrite
from gpt2.formats.source import Extras, Source, StoredTensor, checked_config, to_our_names
from gpt2.formats.tokenizer_files import BYTE_OF, from_tokens
from gpt2.formats.tokenizer_writer import all_tokens, merges, printable
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import END_OF_TEXT, GPT2_PATTERN, BPETokenizer, CharTokenizer, Tokenizer

TENSOR_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "h.{}.ln_1": "blk.{}.attn_norm",
    "h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "h.{}.attn.c_proj": "blk.{}.attn_output",
    "h.{}.ln_2": "blk.{}.ffn_norm",
    "h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "h.{}.mlp.c_proj": "blk.{}.ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}
"""Our names of modules, and llama.cpp's; {} is the number of the layer."""
OUR_NAMES = {gguf: ours for ours, gguf in TENSOR_NAMES.items()}
METADATA_KEYS = {
    "block_size": "gpt2.context_length",
    "n_layer": "gpt2.block_count",
    "n_head": "gpt2.attention.head_count",
    "n_embd": "gpt2.embedding_length",
}
"""Fields of GPTConfig, and the keys of the metadata for them. The vocabulary's size is the shape of the embedding."""
EPSILON = "gpt2.attention.layer_norm_epsilon"
KINDS = {"float32": 0, "float16": 1, "bfloat16": 30, "q8_0": 8}
"""Dtypes that a tensor may have, and ggml's numbers for them."""
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}
"""llama.cpp's numbers for files whose matrices have that dtype."""
Q8_BLOCK = 32
"""Number of values that share a scale in q8_0; a block takes 34 bytes."""
NORMAL, CONTROL = 1, 3
"""llama.cpp's numbers for types of tokens."""


def open_file(path: Path) -> Source:
    """Open a GPT-2 in float32, float16, bfloat16 or q8_0. Raises UserError."""
    try:
        metadata, infos = gguf_file.read_header(path)
    except ValueError as error:  # UnicodeDecodeError among them
        raise UserError(f"{path} is damaged ({first_line(error)}); fetch it again") from None
    if (kind := metadata.get("general.architecture")) != b"gpt2":
        kind = kind.decode(errors="replace")[:40] if isinstance(kind, bytes) else "model of no kind"
        raise UserError(f"{path} holds a {kind}, not a gpt2")
    epsilon = metadata.get(EPSILON, 1e-5)
    if not isinstance(epsilon, float) or abs(epsilon - 1e-5) > 1e-9:  # stored as float32
        raise UserError(f"{path} says {EPSILON}={str(epsilon)[:40]}, which is not GPT-2 as built here (1e-05)")
    size = path.stat().st_size
    tensors, notes = to_our_names(((_our_name(info.name, path), _stored(info, path, size)) for info in infos), path)
    wte = tensors.get("transformer.wte.weight")
    values = {field: metadata.get(key) for field, key in METADATA_KEYS.items()}
    config = checked_config({**values, "vocab_size": wte.shape[0] if wte and wte.shape else None}, path)

    def find_tokenizer() -> Tokenizer | None:
        try:
            return _tokenizer(metadata)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, UserError):
            return None

    return Source(config, tensors, find_tokenizer, f"{path} (GGUF)", notes)


def _our_name(name: str, path: Path) -> str:
    module, _, kind = name.rpartition(".")
    words = module.split(".")
    layer = words[1] if words[0] == "blk" and len(words) == 3 and words[1].isdecimal() else ""
    ours = OUR_NAMES.get(f"blk.{{}}.{words[2]}" if layer else module)
    if ours is None or kind not in ("weight", "bias"):
        raise UserError(f"{path} holds a tensor {name[:80]!r}, which GPT-2 does not have")
    return f"{ours.format(layer)}.{kind}"


def _stored(info: TensorInfo, path: Path, size: int) -> StoredTensor:
    count = 1
    for n in info.shape:
        count *= n
    if info.kind not in KINDS.values():
        raise UserError(f"{path} holds {info.name[:80]} in ggml's type {info.kind}; only {', '.join(KINDS)} are read")
    quantised = info.kind == KINDS["q8_0"]
    if quantised and (not info.shape or info.shape[-1] % Q8_BLOCK):
        raise UserError(f"{path} is damaged: {info.name[:80]} has rows that are no multiple of {Q8_BLOCK}")
    length = count // Q8_BLOCK * (Q8_BLOCK + 2) if quantised else count * (4 if info.kind == 0 else 2)
    if info.offset + length > size:
        raise UserError(f"{path} is damaged: it ends before {info.name[:80]} does")

    def read() -> Tensor:
        data = torch.from_numpy(np.fromfile(path, dtype=np.uint8, count=length, offset=info.offset))
        if quantised:
            return _from_q8(data).view(info.shape)
        dtype = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}[info.kind]
        return data.view(dtype).view(info.shape)

    return StoredTensor(info.shape, read)


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Return the tokenizer in the metadata if it is byte-level. Control tokens at the end of the list are special."""
    if metadata["tokenizer.ggml.model"] != b"gpt2" or metadata.get("tokenizer.ggml.pre", b"gpt-2") != b"gpt-2":
        return None
    eot = metadata.get("tokenizer.ggml.eos_token_id")
    texts = [t.decode() for t in metadata["tokenizer.ggml.tokens"]]
    types, end = metadata.get("tokenizer.ggml.token_type", []), len(texts)
    while len(types) == len(texts) and end > 0 and types[end - 1] == CONTROL and end - 1 != eot:
        end -= 1
    tokens = [t.encode() if i == eot else bytes(BYTE_OF[c] for c in t) for i, t in enumerate(texts[:end])]
    return from_tokens(tokens, eot, specials=texts[end:])


def write(model: GPT, extras: Extras, path: Path) -> None:
    """Write a model that has biases and computes the tanh GELU, with its tokenizer.

    Vectors and position embeddings stay float32, as llama.cpp requires. Raises UserError where n_embd is not a
    multiple of the block size of q8_0.
    """
    config, dtype = model.config, extras.dtype
    assert extras.tokenizer is not None
    if extras.tokenizer.eot is None:
        ending = extras.tokenizer.decode_bytes([min(11, config.vocab_size - 1)]).decode(errors="replace")
        extras.note(
            f"llama.cpp takes id 11 ({ending!r}) for the end of a text, because there is no end-of-text: use "
            "--ignore-eos"
        )
    if isinstance(extras.tokenizer, BPETokenizer) and extras.tokenizer.pattern != GPT2_PATTERN:
        extras.note(
            "llama.cpp splits text by GPT-2's pattern and this tokenizer by another, so that tokens may differ"
        )
    if dtype == "q8_0" and config.n_embd % Q8_BLOCK:
        raise UserError(f"n_embd={config.n_embd} is no multiple of {Q8_BLOCK}, as q8_0 needs; use --dtype=float16")
    tensors = []
    for name, parameter in model.named_parameters():
        is_float32 = parameter.dim() < 2 or name == "transformer.wpe.weight"
        tensors.append(_to_write(_gguf_name(name), parameter.detach(), "float32" if is_float32 else dtype))
    gguf_file.write(path, _metadata(config, extras.tokenizer, dtype, extras.name), tensors)


def _gguf_name(name: str) -> str:
    module, _, kind = name.removeprefix("transformer.").rpartition(".")
    words = module.split(".")
    layer = words[1] if words[0] == "h" else ""
    if layer:
        words[1] = "{}"
    return f"{TENSOR_NAMES['.'.join(words)].format(layer)}.{kind}"


def _to_write(name: str, tensor: Tensor, dtype: str) -> TensorToWrite:
    def write(file: BinaryIO) -> None:
        for rows in tensor.split(1024):  # bounds the memory of the converted copy
            converted = _to_q8(rows) if dtype == "q8_0" else rows.to(getattr(torch, dtype)).contiguous()
            file.write(converted.view(-1).view(torch.uint8).numpy().data)

    bytes_of = {"float32": 4, "float16": 2, "bfloat16": 2, "q8_0": 1 + 2 / Q8_BLOCK}
    return TensorToWrite(name, tuple(tensor.shape), KINDS[dtype], int(tensor.numel() * bytes_of[dtype]), write)


def _to_q8(rows: Tensor) -> Tensor:
    """Return blocks of 32 numbers as a float16 scale and 32 int8 each, rounded as in ggml: uint8 (blocks, 34)."""
    blocks = rows.reshape(-1, Q8_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    rounded = torch.trunc(scaled + torch.copysign(torch.tensor(0.5), scaled)).to(torch.int8)  # halves away from zero
    return torch.cat([scale.to(torch.float16).view(torch.uint8), rounded.view(torch.uint8)], dim=1)


def _from_q8(data: Tensor) -> Tensor:
    blocks = data.view(-1, Q8_BLOCK + 2)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    return blocks[:, 2:].view(torch.int8).float().mul_(scale).view(-1)


def _metadata(config: GPTConfig, tokenizer: Tokenizer, dtype: str, name: str) -> dict[str, Any]:
    tokens, pairs = [printable(t) for t in all_tokens(tokenizer)], _merges(tokenizer)
    specials = tokenizer.specials if isinstance(tokenizer, BPETokenizer) else ()
    control = dict(zip(range(len(tokens) - len(specials), len(tokens)), specials, strict=True))
    if tokenizer.eot is not None:
        control[tokenizer.eot] = END_OF_TEXT
    values: dict[str, Any] = {
        "general.architecture": "gpt2",
        "general.name": name,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{key: getattr(config, field) for field, key in METADATA_KEYS.items()},
        "gpt2.feed_forward_length": 4 * config.n_embd,
        EPSILON: 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [control.get(i, token) for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": [CONTROL if i in control else NORMAL for i in range(len(tokens))],
        "tokenizer.ggml.merges": [f"{printable(left)} {printable(right)}" for left, right in pairs],
        "tokenizer.ggml.add_bos_token": False,
    }
    if tokenizer.eot is not None:
        values |= {"tokenizer.ggml.bos_token_id": tokenizer.eot, "tokenizer.ggml.eos_token_id": tokenizer.eot}
    return values


def _merges(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    """Return the pairs that llama.cpp merges. A character of several bytes is merged byte by byte, front to back."""
    match tokenizer:
        case BPETokenizer():
            return merges(tokenizer)
        case CharTokenizer():
            fronts = [
                (c.encode()[:i], c.encode()[i : i + 1])
                for c in tokenizer.characters
                for i in range(1, len(c.encode()))
            ]
            return sorted(set(fronts), key=lambda pair: len(pair[0]))
    return []
