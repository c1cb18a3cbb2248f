"""Draws the next token of each of several texts, each in its own way."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.generation.request import LogProbs
from gpt2.generation.sampling import Sampling, biased, choose, log_probs, penalized, uniform
from gpt2.generation.slots import Text
from gpt2.generation.transfer import Fetched, send


@dataclass(frozen=True)
class Drawn:
    """Tokens of one step, which the host has not read yet."""

    texts: Sequence[Text]
    ids: Tensor
    """int64 (B,), on the device on which they were drawn"""
    fetched: Fetched
    """The ids, the largest logit of all, and for each text that wants them the results of `log_probs`."""

    def read(self) -> Iterator[tuple[Text, int, LogProbs | None]]:
        """Yield each text with its token. Raises UserError if the logits were not finite."""
        ids, largest, *found = self.fetched.wait()
        if not math.isfinite(largest.item()):
            raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
        for text, token_id in zip(self.texts, ids.tolist(), strict=True):
            wants = text.request.n_logprobs is not None
            yield text, token_id, LogProbs.read(*(found.pop(0) for _ in range(3))) if wants else None


def draw_next(texts: Sequence[Text], logits: Tensor) -> Drawn:
    """Draw a token for each text from its row of logits, float32 (B, V), and count it there."""
    if logits.device.type == "mps":
        logits = logits.cpu()  # MPS has no float64
    alike: dict[Sampling, list[int]] = {}
    for row, text in enumerate(texts):
        alike.setdefault(text.request.sampling, []).append(row)
    if len(alike) == 1:
        ids = _choose(texts, logits)
    else:
        ids = torch.empty(len(texts), dtype=torch.int64, device=logits.device)
        for rows in alike.values():
            some = send(torch.tensor(rows), logits.device)
            ids[some] = _choose([texts[row] for row in rows], logits[some])
    wanted: list[Tensor] = []
    for row, text in enumerate(texts):
        if (n := text.request.n_logprobs) is not None:
            wanted += log_probs(logits[row], ids[row], n)
        text.n_drawn += 1
        text.count(ids, row)
    return Drawn(texts, ids, Fetched([ids, logits.amax(), *wanted]))


def _choose(texts: Sequence[Text], logits: Tensor) -> Tensor:
    """Return the next tokens, int64 (B,), of texts that are sampled in the same way, from their logits (B, V)."""
    sampling = texts[0].request.sampling
    logits = biased(logits, sampling)
    if sampling.counts_tokens:
        rows = zip(logits, texts, strict=True)
        logits = torch.stack([penalized(row, sampling, *text.counted(len(row), row.device)) for row, text in rows])
    return choose(logits, sampling, [uniform(text.request.seed, text.n_drawn) for text in texts])
