"""Generates tokens and text: computes the prompt at once, and then one token at a time."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gpt2.device import DTYPES, autocast
from gpt2.distributed.sharding import compute_device
from gpt2.errors import UserError
from gpt2.generation.kv_cache import KVCache
from gpt2.generation.sampling import next_token
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

LARGEST_PROMPT = 2**26
"""Maximum number of bytes in the file of a prompt."""


@torch.no_grad()
def stream_tokens(
    model: GPT,
    prompt: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    use_cache: bool = True,
    dtype: str = "float32",
) -> Iterator[Tensor]:
    """Yield the tokens that follow `prompt`, int64 (B, T) with T ≥ 1, one position at a time, int64 (B, 1).

    The iterator never ends. Only ids below `vocab_size` are drawn, because a model can have more ids than its
    tokenizer. `dtype` is that of matrix products. Raises UserError if the model gives no finite numbers.

    The model sees the last block_size tokens. Once there are more, the window moves by one for each token. GPT-2's
    positions are absolute, so the cache is useless then, and each window is computed completely.
    """
    block_size = model.config.block_size
    cache = None
    idx = prompt
    while True:
        window = idx[:, -block_size:]
        with autocast(idx.device, dtype):
            if not use_cache or idx.size(1) > block_size:
                logits, _ = model(window)
            elif cache is None:
                # autocast gives the keys its own dtype; without it they have that of the weights
                weights = next(model.parameters())
                kv_dtype = weights.dtype if dtype == "float32" else DTYPES[dtype]
                cache = KVCache(model.config, len(idx), idx.device, kv_dtype)
                logits, _ = model(window, cache=cache)
            else:
                logits, _ = model(idx[:, -1:], cache=cache)
        if not torch.isfinite(logits).all():
            raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
        token = next_token(
            logits[:, -1, :vocab_size], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        yield token
        idx = torch.cat([idx, token], dim=1)


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = 200,
    top_p: float | None = None,
    seed: int = 1337,
    dtype: str = "float32",
) -> Iterator[str]:
    """Yield the text that continues `prompt` in pieces of complete characters.

    The text ends before end-of-text or another token that ends a text (`SpecialTokens.ends`), or after
    `max_new_tokens` tokens. An empty prompt starts from end-of-text, or from a newline if the tokenizer has no
    end-of-text. The same seed gives the same text. Raises UserError for invalid settings and for a
    prompt that the tokenizer cannot encode.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p, seed)
    device = compute_device(next(model.parameters()))
    prompt_ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    tokens = stream_tokens(model, prompt_ids, **choice, vocab_size=tokenizer.vocab_size, dtype=dtype)
    was_training = model.training
    model.eval()
    try:
        for _, token in zip(range(max_new_tokens), tokens, strict=False):
            token_id = int(token.item())
            if token_id in tokenizer.special.ends:
                break
            if piece := decoder.decode(tokenizer.decode_bytes([token_id])):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest
    finally:
        model.train(was_training)


@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", **settings: Any) -> str: ...
@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: list[str], **settings: Any) -> list[str]: ...
def generate(model: GPT, tokenizer: Tokenizer, prompt: str | list[str] = "", **settings: Any) -> str | list[str]:
    """Return the text that continues a prompt, or a list of texts for a list of prompts.

    Settings and errors are those of `stream_text`; every prompt gets the text that it would get alone. Example:
    `gpt2.generate(model, tokenizer, "def main", max_new_tokens=100, temperature=0)`.
    """
    if isinstance(prompt, list):
        return ["".join(stream_text(model, tokenizer, one, **settings)) for one in prompt]
    return "".join(stream_text(model, tokenizer, prompt, **settings))


def read_prompt(start: str) -> str:
    """Return the prompt itself, or the text of the file for `FILE:path`. Raises UserError if it cannot be read.

    The text keeps its line ends, as the text of a dataset does, but not a byte order mark.
    """
    if not start.startswith("FILE:"):
        return start
    path = Path(os.path.expanduser(start.removeprefix("FILE:")))  # noqa: PTH111
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_PROMPT + 1)  # a device can be endless
        if len(content) > LARGEST_PROMPT:
            raise UserError(f"the prompt in {path} is larger than {LARGEST_PROMPT:,} bytes; give a shorter text")
        return content.decode("utf-8").removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt from {path} ({error}); give a UTF-8 text file") from None


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the token ids of a prompt, in which `<|endoftext|>` is the special token; at least one id.

    An empty prompt becomes end-of-text, or else a newline, or else the id 0. Raises UserError for text that the
    tokenizer cannot encode.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"the prompt {prompt!r} is not valid text; give it in UTF-8") from None
    ids = tokenizer.encode(prompt, specials=True)
    if ids:
        return ids
    if tokenizer.eot is not None:
        return [tokenizer.eot]
    try:
        return tokenizer.encode("\n")
    except UserError:
        return [0]


def check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    """Raise UserError for invalid settings of `stream_text`."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise UserError(f"temperature is {temperature}; it must be 0 (the likeliest token) or lie in 0.001 … 1000")
    if top_k is not None and top_k < 0:
        raise UserError(f"top_k is {top_k}; it must be at least 1, or 0 for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must lie in (0, 1]")
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2^63")
