"""A model that is served: its name, tokenizer and decoder, and what a request to it becomes."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2.errors import UserError
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.text import encode_prompt
from gpt2.model import GPTConfig
from gpt2.serve.choices import Choice
from gpt2.serve.decoder import Decoder
from gpt2.serve.errors import ApiError
from gpt2.serve.schema import Settings
from gpt2.tokenizers import Tokenizer


@dataclass
class Served:
    """A served model."""

    name: str
    origin: str
    """Where its weights come from, in words."""
    config: GPTConfig
    tokenizer: Tokenizer
    decoder: Decoder
    run: Path | None = None
    """Folder of the run that it is from, whose earlier steps can be read; None for any other model."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was opened, in Unix seconds."""

    @property
    def vocab_size(self) -> int:
        """Return the number of ids that both the model and its tokenizer know."""
        return min(self.config.vocab_size, self.tokenizer.vocab_size)

    def encode(self, text: str, param: str) -> list[int]:
        """Return the token ids of a prompt, at least one. Raises ApiError for text that cannot be encoded."""
        try:
            return encode_prompt(self.tokenizer, text)
        except UserError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from None

    def require_known(self, token_id: int, param: str) -> None:
        """Raise ApiError for a token id that the model or its tokenizer does not know."""
        if token_id >= self.vocab_size:
            message = f"{param}: there is no token {token_id}; ids end at {self.vocab_size - 1}"
            raise ApiError(400, message, param=param)

    def room(self, ids: Sequence[int], n_new: int | None, default: int | None, param: str) -> int:
        """Return the number of new tokens for a prompt, which is `n_new`, or else at most `default`.

        Raises ApiError where the prompt and the new tokens do not fit into the context, and for unknown ids.
        """
        context = self.config.block_size
        if not ids:
            raise ApiError(400, f"{param} has no tokens; give at least one", param=param)
        self.require_known(max(ids), param)
        left = context - len(ids)
        if n_new is None:
            n_new = max(1, left if default is None else min(default, left))
        if n_new > left:
            raise ApiError(
                400,
                f"the model's context is {context} tokens, and {len(ids)} of the prompt with {n_new} new ones are "
                f"{len(ids) + n_new}; shorten one of them",
                param=param,
                code="context_length_exceeded",
            )
        return n_new

    def choices(
        self,
        settings: Settings,
        prompts: Sequence[tuple[Sequence[int], int]],
        per_prompt: int,
        n_logprobs: int | None,
        *,
        echo: bool = False,
        is_ranked: bool = False,
    ) -> list[Choice]:
        """Return choices for prompts, pairs of token ids and a number of new tokens, `per_prompt` for each.

        n_logprobs: see `Request`. echo: a choice begins with its prompt. is_ranked: the log-probability of a choice
        is wanted, also where n_logprobs is None. Raises ApiError for wrong settings.
        """
        seed = random.getrandbits(62) if settings.seed is None else settings.seed
        sampling = self._sampling(settings)
        counted = 0 if is_ranked and n_logprobs is None else n_logprobs
        ends = frozenset(self.tokenizer.special.ends)
        return [
            Choice(
                Request(ids, max(1, n_new), sampling, seed + number, ends, counted, echo),
                self.tokenizer,
                settings.stops,
                n_new,
                n_logprobs,
            )
            for ids, n_new in prompts
            for number in range(per_prompt)
        ]

    def _sampling(self, settings: Settings) -> Sampling:
        bias = sorted((settings.logit_bias or {}).items())
        if bias:
            self.require_known(bias[-1][0], "logit_bias")
        try:
            return Sampling(
                settings.temperature,
                settings.top_k,
                settings.top_p,
                settings.min_p,
                settings.repetition_penalty,
                settings.presence_penalty,
                settings.frequency_penalty,
                tuple((i, float("-inf") if value <= -100 else value) for i, value in bias),
            )
        except UserError as error:
            raise ApiError(400, str(error), param=str(error).split()[0]) from None
