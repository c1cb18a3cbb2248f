"""Generates text: prompts as text, tokens to complete characters, and the strings that end a text."""

import codecs
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

from gpt2.errors import UserError
from gpt2.generation.arguments import require_model_and_tokenizer, shown, stop_strings
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request, Token
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT
from gpt2.spelling import nearest
from gpt2.tokenizers import Tokenizer

LARGEST_PROMPT = 2**26
"""Maximum number of bytes in the file of a prompt."""
MAX_SLOTS = 32
"""Number of texts that `generate` decodes at the same time."""


@dataclass(frozen=True)
class Piece:
    """A piece is what a token adds to one of several texts."""

    number: int
    """Which text it belongs to, counted from 0."""
    text: str
    """Complete characters that no stop string can take back; often empty."""
    token: Token
    ending: str | None
    """`stop` after an end token or a stop string, `length` after max_new_tokens, or None."""


class TextStream:
    """Turns the tokens of a text into pieces of complete characters, and ends before any of some stop strings."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """stops: an empty one, as some tasks of lm-eval have it, is ignored."""
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""
        """Text that may be the beginning of a stop string."""
        self.is_stopped = False
        """Whether a stop string was found."""

    def push(self, token_id: int) -> str:
        """Return the text that a token completes. It may be empty."""
        return self._release(self.decoder.decode(self.tokenizer.decode_bytes([token_id])))

    def finish(self) -> str:
        """Return the rest of the text, in which bytes that form no character are replaced (U+FFFD)."""
        rest = self._release(self.decoder.decode(b"", final=True))
        held, self.held = self.held, ""
        return rest + held

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self.held + text
        found = [start for stop in self.stops if (start := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self.held = True, ""
            return text[: min(found)]
        n_held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def decode(
    engine: Engine, tokenizer: Tokenizer, requests: Sequence[Request], stops: Sequence[str] = ()
) -> Iterator[Piece]:
    """Decode requests on an idle engine, and yield a piece for each token as it is decoded.

    Raises UserError if the model gives no finite numbers.
    """
    streams = {id(request): (number, TextStream(tokenizer, stops)) for number, request in enumerate(requests)}
    for request in requests:
        engine.submit(request)
    for token in engine.run():
        number, stream = streams[id(token.request)]
        if stream.is_stopped:
            continue  # it was decoded in the same step
        text = "" if token.ending == "stop" else stream.push(token.id)
        if stream.is_stopped:
            engine.cancel(token.request)
        elif token.ending:
            text += stream.finish()
        yield Piece(number, text, token, "stop" if stream.is_stopped else token.ending)


def engine_for(model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], **changes: Any) -> Engine:
    """Return an engine with memory for these requests. changes: settings of `Engine`."""
    longest = max((len(request.prompt) + request.max_new_tokens for request in requests), default=1)
    settings: dict[str, Any] = {"slots": max(1, min(len(requests), MAX_SLOTS)), "capacity": longest} | changes
    return Engine(model, vocab_size=min(tokenizer.vocab_size, model.config.vocab_size), **settings)


def decode_with(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], stops: Sequence[str] = (), **changes: Any
) -> Iterator[Piece]:
    """Decode requests with a model in evaluation mode, whose mode is as before at the end; see `decode`.

    changes: settings of `Engine`. Raises UserError if the model gives no finite numbers.
    """
    was_training = model.training
    model.eval()
    try:
        yield from decode(engine_for(model, tokenizer, requests, **changes), tokenizer, requests, stops)
    finally:
        model.train(was_training)


def stream_text(
    model: GPT, tokenizer: Tokenizer, prompt: str = "", *, stop: str | Sequence[str] = (), **settings: Any
) -> Iterator[str]:
    """Yield the text that continues `prompt` in pieces of complete characters.

    The text ends before end-of-text or another token that ends a text (`SpecialTokens.ends`), before the string or
    one of the strings `stop`, or after max_new_tokens. settings: those of `request_for`. Raises UserError for invalid
    arguments and for a prompt that the tokenizer cannot encode.
    """
    require_model_and_tokenizer(model, tokenizer)
    for piece in decode_with(model, tokenizer, [request_for(tokenizer, prompt, **settings)], stop_strings(stop)):
        if piece.text:
            yield piece.text


@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", **settings: Any) -> str: ...
@overload
def generate(model: GPT, tokenizer: Tokenizer, prompt: list[str], **settings: Any) -> list[str]: ...
def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | list[str] = "",
    *,
    stop: str | Sequence[str] = (),
    **settings: Any,
) -> str | list[str]:
    """Return the text that continues a prompt, or a list of texts for a list of prompts.

    Prompts of a list are decoded together, and every one gets the text that it would get alone. Settings and errors
    are those of `stream_text`. Example: `gpt2.generate(model, tokenizer, "def main", temperature=0)`.
    """
    require_model_and_tokenizer(model, tokenizer)
    prompts = prompt if isinstance(prompt, list) else [prompt]
    requests = [request_for(tokenizer, one, **settings) for one in prompts]
    texts = [""] * len(requests)
    for piece in decode_with(model, tokenizer, requests, stop_strings(stop)):
        texts[piece.number] += piece.text
    return texts if isinstance(prompt, list) else texts[0]


def request_for(
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = 200,
    seed: int = 1337,
    n_logprobs: int | None = None,
    echo: bool = False,
    reanchor: bool = False,
    **sampling: Any,
) -> Request:
    """Return the request that continues a text. The same seed gives the same text.

    An empty prompt starts from end-of-text, or from a newline if the tokenizer has no end-of-text. The arguments are
    fields of `Request` and, with `sampling`, of `Sampling`. Raises UserError for invalid ones and for a prompt that
    the tokenizer cannot encode.
    """
    named = ("max_new_tokens", "seed", "n_logprobs", "echo", "reanchor")
    known = [*named, *(field.name for field in fields(Sampling))]
    for name in sorted(sampling.keys() - known):
        close = nearest(name, known)
        hint = f"did you mean {close}?" if close else f"the settings are {', '.join(known)}"
        raise UserError(f"there is no setting {name!r}; {hint}")
    return Request(
        encode_prompt(tokenizer, prompt),
        max_new_tokens,
        Sampling(temperature=temperature, top_k=top_k, **sampling),
        seed,
        frozenset(tokenizer.special.ends),
        n_logprobs,
        echo,
        reanchor,
    )


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
    if not isinstance(prompt, str):
        raise UserError(f"the prompt {shown(prompt)} is no text; `tokenizer.decode` makes text of token ids")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"the prompt {prompt!r} is not valid text; give it in UTF-8") from None
    try:
        ids = tokenizer.encode(prompt, specials=True)
    except UserError as error:
        raise UserError(f"the prompt {prompt!r} cannot be encoded: {error}") from None
    if ids:
        return ids
    if tokenizer.eot is not None:
        return [tokenizer.eot]
    try:
        return tokenizer.encode("\n")
    except UserError:
        return [0]
