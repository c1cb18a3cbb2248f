"""A model beside Hugging Face's implementation with the same weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.errors import Log, UserError
from gpt2.formats.export import fit, logits_of, probe
from gpt2.formats.huggingface import config_values, huggingface_tensors
from gpt2.generation.engine import stream_tokens
from gpt2.model import GPT

GREEDY_TOKENS = 50
PROMPT_TOKENS = 8
TOLERANCE = 2e-5
"""Largest difference of a logit, as a share of the largest logit, that float32 arithmetic explains."""


@dataclass(frozen=True)
class Comparison:
    """What the two implementations gave."""

    logit_difference: float
    """Largest absolute difference of a logit."""
    logit_scale: float
    """Largest absolute logit."""
    loss: float
    their_loss: float
    """Mean cross-entropy of the same random tokens, in nats."""
    greedy: list[int]
    their_greedy: list[int]
    """The likeliest continuation of the same prompt."""

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but rounding."""
        return self.logit_difference <= TOLERANCE * self.logit_scale and self.greedy == self.their_greedy


@torch.no_grad()
def compare(model: GPT, note: Log) -> Comparison:
    """Compute logits, loss and greedy tokens with both, in float32 on the CPU.

    `note` receives what the model lacks and theirs has. Raises UserError where transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        raise UserError("comparing with Hugging Face needs transformers; pip install transformers") from None
    logging.set_verbosity_error()
    model = fit(model, None, "hf", note)
    values = {k: v for k, v in config_values(model.config).items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        theirs: Any = GPT2LMHeadModel(GPT2Config(**values, bos_token_id=None, eos_token_id=None))
    theirs.load_state_dict(dict(huggingface_tensors(model)), strict=False, assign=True)
    theirs.tie_weights()
    theirs.eval()

    ids = probe(model.config, None)
    logits, their_logits = logits_of(model, ids), theirs(ids).logits
    length = max(1, min(PROMPT_TOKENS, model.config.block_size // 2))
    prompt = ids[:1, :length]
    count = min(GREEDY_TOKENS, model.config.block_size - length)
    tokens = stream_tokens(model, prompt, temperature=0)
    return Comparison(
        logit_difference=(logits - their_logits).abs().max().item(),
        logit_scale=their_logits.abs().max().item(),
        loss=_loss(logits, ids),
        their_loss=_loss(their_logits, ids),
        greedy=[int(token) for token, _ in zip(tokens, range(count), strict=False)],
        their_greedy=_their_greedy(theirs, prompt, count),
    )


def _their_greedy(network: Any, prompt: Tensor, count: int) -> list[int]:
    if not count:
        return []
    settings = {"max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
    return network.generate(prompt, do_sample=False, **settings)[0, prompt.size(1) :].tolist()


def _loss(logits: Tensor, ids: Tensor) -> float:
    """Mean cross-entropy of each next token; NaN where there is only one."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
