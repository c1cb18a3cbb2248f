"""Answers /v1/completions and /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.generation.request import Token
from gpt2.serve.chat import rendered
from gpt2.serve.choices import Addition, Choice, Entry
from gpt2.serve.decoder import Stream
from gpt2.serve.errors import ApiError
from gpt2.serve.schema import ChatBody, CompletionBody, Settings
from gpt2.serve.served import Served

CHAT_LIMIT = "max_completion_tokens"


@dataclass
class Completion:
    """A completion is what a request asks for: some choices that are generated together."""

    model: Served
    settings: Settings
    is_chat: bool
    choices: list[Choice]
    prompts: Sequence[Sequence[int]]
    per_prompt: int
    """Number of choices that are returned for each prompt; more may be generated."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    first_token_at: float | None = None
    """When the first token arrived, by `time.monotonic`."""

    def start(self) -> Stream:
        """Submit the requests. Raises ApiError where the queue is full."""
        return self.model.decoder.submit([choice.request for choice in self.choices])

    async def additions(self, stream: Stream) -> AsyncIterator[tuple[int, Addition]]:
        """Yield what is added to which choice, until all are complete. Raises ApiError."""
        numbers = {choice.request: number for number, choice in enumerate(self.choices)}
        try:
            async for token in stream:
                self.first_token_at = self.first_token_at or time.monotonic()
                number = numbers[token.request]
                if not self.choices[number].finish_reason:
                    yield number, self._pushed(number, token)
        finally:
            stream.close()

    def _pushed(self, number: int, token: Token) -> Addition:
        addition = self.choices[number].push(token)
        if addition.finish_reason and not token.ending:  # a stop text was found
            self.model.decoder.end(token.request)
        return addition

    async def collect(self, stream: Stream) -> dict[str, Any]:
        """Return the complete response. Raises ApiError."""
        async for _ in self.additions(stream):
            pass
        return self._frame("") | {"choices": self._returned(), "usage": self.usage()}

    async def events(self, stream: Stream) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed response. Raises ApiError."""
        if self.is_chat:
            for number in range(len(self.choices)):
                yield self._event([_chat_choice(number, {"role": "assistant", "content": ""}, None, None)])
        async for number, addition in self.additions(stream):
            if addition.text or addition.entries or addition.finish_reason:
                yield self._event([self._streamed(number, addition)])
        if self._reports_usage:
            yield self._event([]) | {"usage": self.usage()}

    @property
    def _reports_usage(self) -> bool:
        return self.settings.stream_options is not None and self.settings.stream_options.include_usage

    def _frame(self, chunk: str) -> dict[str, Any]:
        """Return the fields of a response or an event. chunk: what an event's object is called besides."""
        kind = f"chat.completion{chunk}" if self.is_chat else "text_completion"
        name = ("chatcmpl-" if self.is_chat else "cmpl-") + self.id
        return {"id": name, "object": kind, "created": self.created, "model": self.model.name}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._frame(".chunk") | {"choices": choices} | ({"usage": None} if self._reports_usage else {})

    def _streamed(self, number: int, addition: Addition) -> dict[str, Any]:
        logprobs = self._logprobs(number, addition.entries)
        if self.is_chat:
            delta = {"content": addition.text} if addition.text else {}
            return _chat_choice(number, delta, logprobs, addition.finish_reason)
        return _text_choice(number, addition.text, logprobs, addition.finish_reason)

    def _returned(self) -> list[dict[str, Any]]:
        """Return the choices of a complete response: of each prompt's, the most likely ones come first."""
        generated = len(self.choices) // len(self.prompts)
        found: list[dict[str, Any]] = []
        for first in range(0, len(self.choices), generated):
            numbers = list(range(first, first + generated))
            if generated > self.per_prompt:
                numbers.sort(key=lambda number: -self.choices[number].mean_logprob)
            for number in numbers[: self.per_prompt]:
                choice, logprobs = self.choices[number], self._logprobs(number, self.choices[number].entries)
                if self.is_chat:
                    message = {"role": "assistant", "content": choice.text, "refusal": None}
                    one = _chat_choice(len(found), message, logprobs, choice.finish_reason, "message")
                else:
                    one = _text_choice(len(found), choice.text, logprobs, choice.finish_reason)
                found.append(one)
        return found

    def _logprobs(self, number: int, entries: Sequence[Entry]) -> dict[str, Any] | None:
        choice = self.choices[number]
        return choice.chat_logprobs(entries) if self.is_chat else choice.legacy_logprobs(entries)

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens; a prompt counts once, however many choices it has."""
        prompt, new = sum(map(len, self.prompts)), sum(choice.n_tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _text_choice(index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _chat_choice(
    index: int, message: dict[str, Any], logprobs: Any, finish_reason: str | None, name: str = "delta"
) -> dict[str, Any]:
    return {"index": index, name: message, "logprobs": logprobs, "finish_reason": finish_reason}


def completion(model: Served, body: CompletionBody) -> Completion:
    """Return what a body of /v1/completions asks for. Raises ApiError, status 400, for what is not possible."""
    if body.suffix:  # some clients send an empty one
        raise ApiError(400, "suffix: GPT-2 cannot insert text before a suffix; remove the field", param="suffix")
    best_of = body.n if body.best_of is None else body.best_of
    if best_of < body.n:
        raise ApiError(400, f"best_of is {best_of}; it must be at least n, which is {body.n}", param="best_of")
    if best_of > body.n and body.stream:
        raise ApiError(
            400, "best_of cannot be streamed, because the best choice is known at the end", param="best_of"
        )
    _check_stream_options(body)
    prompts = _prompts(model, body.prompt)
    sized = [(ids, model.room(ids, body.max_tokens, 16, "prompt")) for ids in prompts]
    choices = model.choices(body, sized, best_of, body.logprobs, echo=body.echo, is_ranked=best_of > body.n)
    return Completion(model, body, False, choices, prompts, body.n)


def _prompts(model: Served, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Return the token ids of all prompts of a body."""
    if isinstance(prompt, str):
        return [model.encode(prompt, "prompt")]
    if not prompt:
        raise ApiError(400, "prompt is an empty list; give at least one prompt", param="prompt")
    if isinstance(prompt[0], int):
        return [prompt]  # type: ignore[list-item]
    return [model.encode(one, "prompt") if isinstance(one, str) else one for one in prompt]  # type: ignore[misc]


def chat_completion(model: Served, body: ChatBody) -> Completion:
    """Return what a body of /v1/chat/completions asks for. Raises ApiError, status 400, for what is not possible."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, f"max_tokens and {CHAT_LIMIT} are the same; give one of them", param=CHAT_LIMIT)
    _check_stream_options(body)
    ids = model.encode(rendered(model.tokenizer, body.messages), "messages")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    n_new = model.room(ids, limit, None, "messages")
    n_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Completion(model, body, True, model.choices(body, [(ids, n_new)], body.n, n_logprobs), [ids], body.n)


def _check_stream_options(settings: Settings) -> None:
    if settings.stream_options is not None and not settings.stream:
        raise ApiError(400, "stream_options needs stream=true", param="stream_options")


Ask = Callable[[Served, Any], Completion]
"""`completion` or `chat_completion`."""
