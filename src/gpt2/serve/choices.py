"""Turns the tokens of a request into the text and the log-probabilities of a choice."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.generation.request import LogProbs, Request, Token
from gpt2.generation.text import TextStream
from gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class Entry:
    """An entry describes one token of a text."""

    id: int
    token: str
    """Its text, or `bytes:\\xe2\\x82` where it is a part of a character, as in OpenAI's API."""
    content: bytes
    offset: int
    """The number of characters before it."""
    logprobs: LogProbs | None
    """None for the first token of a text, which nothing predicts."""


@dataclass(frozen=True)
class Addition:
    """An addition is what a token adds to a choice."""

    text: str
    """Complete characters that no stop text can take back; often empty."""
    entries: list[Entry]
    """The tokens that begin in the text so far and were not reported before; only where they are asked for."""
    finish_reason: str | None
    """`stop` after an end token or a stop text, `length` after the last token, or None."""


@dataclass
class Choice:
    """A choice is one text that is generated, with what is known about its tokens."""

    request: Request
    tokenizer: Tokenizer
    stops: Sequence[str]
    n_new: int
    """Number of tokens that are asked for. It can be 0, where only the prompt is echoed."""
    n_logprobs: int | None
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    finish_reason: str | None = None
    n_tokens: int = 0
    """Number of new tokens so far."""
    sum_logprobs: float = 0.0
    """Log-probability of the new tokens, in nats; only where the request reports them."""

    def __post_init__(self) -> None:
        self.stream = TextStream(self.tokenizer, self.stops)
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        prompt = self.tokenizer.decode(self.request.prompt)
        self.start = len(prompt)
        """Offset of the first new character; offsets count from the beginning of the prompt."""
        self.offset = 0 if self.request.echo else self.start
        self.held: list[Entry] = []
        self.prompt = prompt

    @property
    def mean_logprob(self) -> float:
        """Return the mean log-probability of the new tokens, by which `best_of` compares choices."""
        return self.sum_logprobs / max(1, self.n_tokens)

    def push(self, token: Token) -> Addition:
        """Add a token, and return what it adds to the text."""
        text = ""
        if token.index == 0 and self.request.echo:
            text = self.prompt
            if self.n_logprobs is not None and token.prompt_logprobs is not None:
                for i, logprobs in zip(self.request.prompt, token.prompt_logprobs, strict=True):
                    self._hold(i, logprobs)
            self.offset = self.start
        if self.n_new:
            self.n_tokens += 1
            if token.logprobs is not None:
                self.sum_logprobs += token.logprobs.chosen
            if token.ending != "stop":  # a token that ends a text is no part of it
                self._hold(token.id, token.logprobs)
                text += self.stream.push(token.id)
        if token.ending and not self.stream.is_stopped:
            text += self.stream.finish()
        self.finish_reason = "stop" if self.stream.is_stopped else token.ending
        return self._released(text)

    def _hold(self, token_id: int, logprobs: LogProbs | None) -> None:
        """Keep the entry of a token until its text is released."""
        if self.n_logprobs is None:
            return
        content = self.tokenizer.decode_bytes([token_id])
        self.held.append(Entry(token_id, named(content), content, self.offset, logprobs))
        self.offset += len(self.characters.decode(content))

    def _released(self, text: str) -> Addition:
        self.text += text
        end = len(self.text) + (0 if self.request.echo else self.start)
        count = next((i for i, entry in enumerate(self.held) if entry.offset >= end), len(self.held))
        entries, self.held = self.held[:count], self.held[count:]
        self.entries += entries
        return Addition(text, entries, self.finish_reason)

    def legacy_logprobs(self, entries: Sequence[Entry]) -> dict[str, Any] | None:
        """Return entries in the form of /v1/completions, with the ids of all tokens, which OpenAI's lacks."""
        if self.n_logprobs is None:
            return None
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [None if e.logprobs is None else e.logprobs.chosen for e in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
            "token_ids": [entry.id for entry in entries],
            "top_token_ids": [self._top_ids(entry) for entry in entries],
        }

    def _top(self, entry: Entry) -> dict[str, float] | None:
        """Return the most likely tokens instead of an entry, and the entry itself, with their log-probabilities."""
        if entry.logprobs is None:
            return None
        top = {named(self.tokenizer.decode_bytes([i])): value for i, value in reversed(entry.logprobs.top)}
        return dict(reversed(top.items())) | {entry.token: entry.logprobs.chosen}

    def _top_ids(self, entry: Entry) -> dict[str, int] | None:
        """Return the ids of the same tokens."""
        if entry.logprobs is None:
            return None
        top = {named(self.tokenizer.decode_bytes([i])): i for i, _ in reversed(entry.logprobs.top)}
        return dict(reversed(top.items())) | {entry.token: entry.id}

    def chat_logprobs(self, entries: Sequence[Entry]) -> dict[str, Any] | None:
        """Return entries in the form of /v1/chat/completions."""
        if self.n_logprobs is None:
            return None

        def described(content: bytes, logprob: float) -> dict[str, Any]:
            return {"token": named(content), "logprob": logprob, "bytes": list(content)}

        return {
            "content": [
                described(entry.content, entry.logprobs.chosen)
                | {"top_logprobs": [described(self.tokenizer.decode_bytes([i]), p) for i, p in entry.logprobs.top]}
                for entry in entries
                if entry.logprobs is not None
            ]
        }


def named(content: bytes) -> str:
    """Return a token's text, or its bytes in the form `bytes:\\xe2\\x82` where they are not complete characters."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
