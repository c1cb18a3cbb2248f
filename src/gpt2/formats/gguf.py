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
from gpt2.special_tokens import END_OF_TEXT, SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer, CharTokenizer, Tokenizer

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
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's numbers for types of tokens."""
ROLE_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
"""Roles of special tokens, and the keys of the metadata for their ids."""
FURTHER_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Keys of further ids at which llama.cpp ends a text: the end of a turn and of a message."""


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

    return StoredTensor(info.shape, read, is_own=True)


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Return the tokenizer in the metadata if it is byte-level."""
    if metadata["tokenizer.ggml.model"] != b"gpt2" or metadata.get("tokenizer.ggml.pre", b"gpt-2") != b"gpt-2":
        return None
    texts = [t.decode() for t in metadata["tokenizer.ggml.tokens"]]
    types = metadata.get("tokenizer.ggml.token_type", [])
    types = list(types) if len(types) == len(texts) else [NORMAL] * len(texts)
    while types and types[-1] == UNUSED:  # llama.cpp's converter names the padding rows of the embedding
        types.pop()
    roles = {role: metadata.get(key) for role, key in ROLE_KEYS.items()}
    for i in (roles["eos"], roles["bos"]):  # older files have no types
        if i is not None and types[i] == NORMAL and texts[i] == END_OF_TEXT:
            types[i] = CONTROL
    ids = {texts[i]: i for i, type in enumerate(types) if type in (CONTROL, USER_DEFINED)}
    words = frozenset(texts[i] for i, type in enumerate(types) if type == USER_DEFINED)
    ends = [i for key in FURTHER_END_KEYS if (i := metadata.get(key)) is not None and i != roles["eos"]]
    template = metadata.get("tokenizer.chat_template")
    special = SpecialTokens(
        ids,
        **roles,
        further_ends=tuple(dict.fromkeys(ends)),
        words=words,
        chat_template=None if template is None else template.decode(),
    )
    taken = set(ids.values())
    tokens = [bytes(BYTE_OF[c] for c in texts[i]) for i in range(len(types)) if i not in taken]
    return from_tokens(tokens, special)


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
    _note_ends(extras)
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


def _note_ends(extras: Extras) -> None:
    """Report where llama.cpp ends a text otherwise than this program."""
    assert extras.tokenizer is not None
    special = extras.tokenizer.special
    if lost := special.further_ends[len(FURTHER_END_KEYS) :]:
        names = ", ".join(special.named(i) or str(i) for i in lost)
        extras.note(f"GGUF records at most {len(FURTHER_END_KEYS) + 1} tokens that end a text: not {names}")
    if special.ids.get(END_OF_TEXT, special.eos) not in special.ends:
        extras.note(f"llama.cpp ends a text at {END_OF_TEXT} too, which is an ordinary marker of this model")


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
    special = tokenizer.special
    texts = {i: text for text, i in special.ids.items()}
    types = {i: USER_DEFINED if text in special.words else CONTROL for i, text in texts.items()}
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
        "tokenizer.ggml.tokens": [texts.get(i, token) for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": [types.get(i, NORMAL) for i in range(len(tokens))],
        "tokenizer.ggml.merges": [f"{printable(left)} {printable(right)}" for left, right in pairs],
        "tokenizer.ggml.add_bos_token": False,
    }
    values |= {ROLE_KEYS[role]: i for role, i in special.roles.items()}
    values |= dict(zip(FURTHER_END_KEYS, special.further_ends, strict=False))
    if special.chat_template is not None:
        values["tokenizer.chat_template"] = special.chat_template
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
