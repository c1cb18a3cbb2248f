"""Draws the next token of each of several texts, each in its own way."""

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
    """The ids, whether the logits were finite, and for each text that wants them the results of `log_probs`."""

    def read(self) -> Iterator[tuple[Text, int, LogProbs | None]]:
        """Yield each text with its token. Raises UserError if the logits were not finite."""
        ids, is_finite, *found = self.fetched.wait()
        if not is_finite:
            raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
        for text, token_id in zip(self.texts, ids.tolist(), strict=True):
            wants = text.request.n_logprobs is not None
            yield text, token_id, LogProbs.read(*(found.pop(0) for _ in range(3))) if wants else None


def draw_next(texts: Sequence[Text], logits: Tensor) -> Drawn:
    """Draw a token for each text from its row of logits, float32 (B, V), and count it there."""
    if logits.device.type == "mps":
        logits = logits.cpu()  # MPS has no float64
    noise = [uniform(text.request.seed, text.n_drawn) for text in texts]
    u = send(torch.tensor(noise, dtype=torch.float64), logits.device)
    ids = torch.empty(len(texts), dtype=torch.int64, device=logits.device)
    alike: dict[Sampling, list[int]] = {}
    for row, text in enumerate(texts):
        alike.setdefault(text.request.sampling, []).append(row)
    for sampling, rows in alike.items():
        some = slice(None) if len(alike) == 1 else send(torch.tensor(rows), logits.device)
        ids[some] = choose(_adjusted(logits[some], [texts[row] for row in rows]), sampling, u[some])
    wanted: list[Tensor] = []
    for row, text in enumerate(texts):
        if (n := text.request.n_logprobs) is not None:
            wanted += log_probs(logits[row], ids[row], n)
        text.n_drawn += 1
        text.count(ids[row : row + 1])
    return Drawn(texts, ids, Fetched([ids, logits.amax().isfinite(), *wanted]))


def _adjusted(logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Return logits (B, V) with bias and penalties of texts that are sampled in the same way."""
    sampling = texts[0].request.sampling
    logits = biased(logits, sampling)
    if not sampling.counts_tokens:
        return logits
    rows = [
        penalized(row, sampling, *text.counted(row.size(-1), row.device))
        for row, text in zip(logits, texts, strict=True)
    ]
    return torch.stack(rows)
