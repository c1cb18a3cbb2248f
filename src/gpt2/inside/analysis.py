"""Everything about one text as one JSON object, for `gpt2 lens` and its page."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2.data.shards import Tokens
from gpt2.errors import UserError, require
from gpt2.inside.attention import traced_weights
from gpt2.inside.attribution import attribute
from gpt2.inside.forward import Trace, require_text, trace
from gpt2.inside.memorised import longest_matches
from gpt2.inside.patching import patch
from gpt2.inside.predictions import Predictions, logit_lens, losses
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

Report = Callable[[str, int, int], None]
"""A function called with the name of a part of the work, the amount of it that is done, and all of it."""
MOST_WEIGHTS = 1 << 22
"""Attention weights of all heads that are kept; of a longer text, only the first tokens have theirs."""
CONTEXT = 24
"""Number of training tokens that are shown before and after a passage."""
MOST_PASSAGES = 10
"""Number of passages of the training tokens that are shown."""


class Analysis:
    """An analysis of one text collects JSON values, with NumPy arrays for what may be large.

    Raises UserError for a text of fewer than 2 tokens or longer than the context, and for a model in which more than
    the MLPs is replaced.
    """

    def __init__(
        self, name: str, model: GPT, tokenizer: Tokenizer, ids: Sequence[int], report: Report, top: int = 5
    ) -> None:
        """name: that of the model. ids: the text. top: number of tokens that are listed for each prediction."""
        self.model, self.tokenizer, self.report, self.top = model, tokenizer, report, top
        self.idx = self._tensor(ids)
        require_text(model, self.idx, least=2)
        config = model.config
        self.values: dict[str, Any] = {
            "model": name,
            "config": {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
            "ids": list(ids),
        }

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.model.transformer.wte.weight.device)

    def add_losses(self) -> None:
        """Add the loss, rank and entropy of each token, their totals, and the likeliest tokens."""
        self._add_predictions(losses(self.model, self.idx, self.top))

    def add_text(self) -> None:
        """Add losses, attention weights, the logit lens and attributions, all from one forward pass."""
        run = trace(self.model, self.idx)
        lens = logit_lens(self.model, self.idx, self.top, partial(self.report, "positions of the lens"), run)
        self._add_predictions(lens.last)
        shown = self.attention_tokens()
        self.values["attention"] = {"tokens": shown, "weights": _array(traced_weights(self.model, run, shown))}
        log_prob, kl = _array(lens.layers.log_prob), _array(lens.kl)
        self.values["lens"] = {"log_prob": log_prob, "kl": kl, **_listed(lens.layers)}
        self._add_attribution(lens.last, run)

    def attention_tokens(self) -> int:
        """Return the number of first tokens of which the attention weights of all heads are kept."""
        heads = self.model.config.n_layer * self.model.config.n_head
        return min(len(self.idx), max(2, math.isqrt(2 * MOST_WEIGHTS // heads)))

    def _add_predictions(self, found: Predictions) -> None:
        """Add predictions, the mean loss, and bits per byte, for which end-of-text has no bytes."""
        self.values["losses"] = {"loss": _array(found.loss), "entropy": _array(found.entropy), **_listed(found)}
        total = math.fsum(found.loss.tolist())
        predicted = [i for i in self.idx[1:].tolist() if i != self.tokenizer.eot]
        size = len(self.tokenizer.decode_bytes(predicted))
        bits = total / math.log(2) / size if size else None
        self.values |= {"mean_loss": total / len(found.loss), "bits_per_byte": bits, "bytes": size}

    def _add_attribution(self, found: Predictions, run: Trace) -> None:
        """Add what divides the next token's logit minus that of the likeliest other token, at every position."""
        targets, rivals = found.top_ids[:, 0].clone(), found.top_ids[:, min(1, found.top_ids.size(1) - 1)].clone()
        targets[:-1] = self.idx[1:]  # after the last token, the likeliest is compared with the second
        is_other = targets != found.top_ids[:, 0]
        rivals[is_other] = found.top_ids[is_other, 0]
        positions = torch.arange(len(self.idx), device=self.idx.device)
        shares = attribute(self.model, self.idx, positions, targets, rivals, run)
        self.values["attribution"] = {
            "targets": _array(targets),
            "against": _array(rivals),
            **{name: _array(value) for name, value in vars(shares).items()},
        }

    def add_patching(self, text: Sequence[int], answer: int | None = None, other: int | None = None) -> None:
        """Add activation patching from the text into `text`, tokens of the same number.

        answer and other: ids whose logits are compared after the last token. By default they are the likeliest token
        of each text, or the two likeliest of this text where both are the same. Raises UserError for texts that
        cannot be compared, and for a token that is compared with itself.
        """
        clean, corrupted = self.idx, self._tensor(text)
        require_text(self.model, corrupted, least=2)
        own, others = (losses(self.model, idx, 2).top_ids[-1].tolist() for idx in (clean, corrupted))
        answer = own[0] if answer is None else answer
        other = next((i for i in (others[0], *own) if i != answer), answer) if other is None else other
        if answer == other:
            name = self.text_of(answer)
            raise UserError(f"{name!r} is compared with itself; name two tokens with --answer and --other")
        report = partial(self.report, "batches of patching")
        found = patch(self.model, clean, corrupted, answer, other, report)
        self.values["patching"] = {
            "ids": list(text),
            "answer": answer,
            "other": other,
            "clean": found.clean,
            "corrupted": found.corrupted,
            "streams": _array(found.streams),
            "heads": _array(found.heads),
        }

    def add_memorised(self, tokens: Tokens, shortest: int) -> None:
        """Add the longest n-grams of the text, of at least `shortest` tokens, that are in the training tokens."""
        report = partial(self.report, "training tokens")
        found = longest_matches(self.idx.cpu().numpy(), tokens, shortest, progress=report)
        passages = []
        for position, length, offset in found.passages(MOST_PASSAGES):
            before = tokens[max(0, offset - CONTEXT) : offset].tolist()
            after = tokens[offset + length : offset + length + CONTEXT].tolist()
            passages.append(
                {
                    "position": position,
                    "length": length,
                    "offset": offset,
                    "before": self.tokenizer.decode(before),
                    "text": self.tokenizer.decode(self.idx[position : position + length].tolist()),
                    "after": self.tokenizer.decode(after),
                }
            )
        self.values["memorised"] = {
            "tokens": len(tokens),
            "shortest": shortest,
            "lengths": found.lengths,
            "offsets": found.offsets,
            "passages": passages,
        }

    def finished(self) -> dict[str, Any]:
        """Return all values, with the text of every token that occurs among them under `vocabulary`, by its id."""
        ids = set(self.values["ids"])
        for name, keys in {"losses": ["top_ids"], "lens": ["top_ids"], "attribution": ["targets", "against"]}.items():
            for key in keys:
                ids |= set(np.unique(self.values.get(name, {}).get(key, [])).astype(int).tolist())
        patching = self.values.get("patching", {"ids": ()})
        ids |= {*patching["ids"], *(patching[key] for key in ("answer", "other") if key in patching)}
        return self.values | {"vocabulary": {str(i): self.text_of(i) for i in sorted(ids)}}

    def text_of(self, token: int) -> str:
        """Return the text of a token; bytes of an incomplete character are written as `\\xe2`."""
        if token >= self.tokenizer.vocab_size:
            return f"<{token}>"  # a row of the embedding that no token has
        content = self.tokenizer.decode_bytes([token])
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in content)


def single_token(tokenizer: Tokenizer, text: str, option: str) -> int:
    """Return the id of a text that is one token. Raises UserError, which names the option, for any other."""
    ids = tokenizer.encode(text, specials=True)
    count = f"{option} is {text!r}, which is {len(ids)} tokens"
    require(len(ids) == 1, f"{count}; give one token, often with a space in front")
    return ids[0]


def as_lists(value: object) -> object:
    """Return an array as nested lists, with numbers of six digits, for `json.dumps(…, default=as_lists)`."""
    assert isinstance(value, np.ndarray)
    if value.dtype.kind != "f":
        return value.tolist()
    return [as_lists(row) for row in value] if value.ndim > 1 else [float(f"{x:.6g}") for x in value.tolist()]


def _listed(found: Predictions) -> dict[str, np.ndarray]:
    """Return the likeliest tokens and the rank of the next one."""
    values = {"top_ids": found.top_ids, "top_log_probs": found.top_log_probs, "rank": found.rank}
    return {name: _array(value) for name, value in values.items()}


def _array(values: Tensor) -> np.ndarray:
    """Return a tensor as an array of float32 or int32, which a page can hold in few bytes."""
    kind = torch.float32 if values.is_floating_point() else torch.int32
    return values.to(kind).cpu().numpy()
