"""What is asked of the engine, and what it answers: token ids on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2.errors import require
from gpt2.generation.arguments import require_whole_number
from gpt2.generation.sampling import Sampling

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Request:
    """A request asks for the continuation of a prompt, of at least one token. Raises UserError for wrong values."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 1337
    """The text is a function of the request: it does not depend on what else is decoded."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the text."""
    n_logprobs: int | None = None
    """Number of likeliest tokens whose log-probabilities are reported with each token; None reports nothing."""
    echo: bool = False
    """Whether the log-probabilities of the prompt are reported, too."""
    reanchor: bool = False
    """Past the context, keep the newer half of the window and compute it once for half a window of new tokens. By
    default the window moves by one token, which computes all of it for every token."""

    def __post_init__(self) -> None:
        assert len(self.prompt) > 0, "a prompt has at least one token"
        require_whole_number("max_new_tokens", self.max_new_tokens, least=1)
        require_whole_number("seed", self.seed)
        require(self.seed < 1 << 63, f"seed is {self.seed}; it must be below 2^63")
        if self.n_logprobs is not None:
            require_whole_number("n_logprobs", self.n_logprobs)

    def check_ids(self, n_ids: int, n_drawable: int) -> None:
        """Raise UserError for a token id that does not exist, and where no token is left to draw.

        n_ids: the prompt may have the ids below this. n_drawable: only the ids below this are drawn, so that a bias
        or a choice of others is a mistake.
        """
        biased = (token_id for token_id, _ in self.sampling.logit_bias)
        for name, ids, count in (
            ("the prompt", self.prompt, n_ids),
            ("logit_bias", biased, n_drawable),
            ("allowed", self.sampling.allowed or (), n_drawable),
        ):
            wrong = next((i for i in ids if not 0 <= i < count), None)
            require(wrong is None, f"{name} has the token id {wrong}; the model's ids are 0 … {count - 1}")
        banned = {token_id for token_id, bias in self.sampling.logit_bias if bias < -LARGEST_FLOAT32}
        choices = range(n_drawable) if self.sampling.allowed is None else self.sampling.allowed
        require(
            not banned or not banned.issuperset(choices),
            "logit_bias bans all tokens that could be drawn; leave one of them",
        )


@dataclass(frozen=True)
class LogProbs:
    """Holds log-probabilities in nats, of the model's distribution before temperature and limits."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """The likeliest ids with theirs, the likeliest first."""

    @classmethod
    def read(cls, chosen: Tensor, top: Tensor, top_ids: Tensor) -> "LogProbs":
        """Read the results of `log_probs` for one token from the device."""
        return cls(float(chosen), tuple(zip(top_ids.tolist(), top.tolist(), strict=True)))


@dataclass(frozen=True)
class Token:
    """A token is what a step adds to a text."""

    request: Request
    index: int
    """Its number in the text, counted from 0."""
    id: int
    ending: str | None
    """`stop` for a token of the request's ends, `length` for the last of max_new_tokens, or None."""
    logprobs: LogProbs | None = None
    prompt_logprobs: tuple[LogProbs | None, ...] | None = None
    """Those of the prompt's tokens, with the first token of a request that echoes; None for the first one of them."""
