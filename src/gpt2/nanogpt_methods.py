"""The methods of nanoGPT's model that its users know, each a thin call of the code that does the work here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gpt2.errors import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from gpt2.model import GPT, GPTConfig, Transformer


class NanoGPTMethods(nn.Module):
    """The base class of `GPT`. It imports inside the methods, because the network must not depend on what uses it."""

    config: GPTConfig
    transformer: Transformer

    @classmethod
    def from_pretrained(cls, model_type: str, override_args: dict[str, Any] | None = None) -> GPT:
        """Return a model with pretrained weights: of `gpt2` to `gpt2-xl`, any other hub name, or a model file.

        override_args: `dropout`, `gelu` or `flash` of GPTConfig; the weights determine all else. Raises UserError.
        """
        from gpt2.errors import require
        from gpt2.formats.open import build, open_model

        others = ", ".join(sorted({*(override_args or {})} - {"dropout", "gelu", "flash"}))
        require(not others, f"override_args cannot change {others}, only dropout, gelu and flash")
        return build(open_model(model_type), **(override_args or {}))

    @torch.no_grad()
    def generate(
        self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Return idx, int64 (B, T), with max_new_tokens sampled tokens after it, int64 (B, T + max_new_tokens).

        The global random generator of the model's device draws, as in nanoGPT. `gpt2.generate` works on text.
        """
        from gpt2.generation.complete import complete
        from gpt2.generation.sampling import Sampling

        seeds = torch.randint(1 << 62, (len(idx),), device=idx.device).tolist()
        sampling = Sampling(temperature=temperature, top_k=top_k)
        new = complete(cast("GPT", self), idx.tolist(), max_new_tokens, sampling, seeds)
        return torch.cat([idx, torch.tensor(new, dtype=idx.dtype, device=idx.device)], dim=1)

    def configure_optimizers(
        self, weight_decay: float, learning_rate: float, betas: tuple[float, float], device_type: str = ""
    ) -> Optimizer:
        """Return the fused AdamW in which matrices and embeddings decay, and biases and LayerNorms do not.

        device_type is accepted for nanoGPT's sake; the parameters know where they are.
        """
        from gpt2.optim.optimizers import make_optimizers

        return make_optimizers(self, learning_rate, betas, weight_decay)[0]

    def estimate_mfu(self, fwdbwd_per_iter: int, dt: float, peak_flops: float = 312e12) -> float:
        """Return the model FLOPs utilization, as a share of `peak_flops`.

        fwdbwd_per_iter: number of sequences of block_size tokens in an optimizer step. dt: seconds of the step.
        peak_flops: in FLOP/s; by default the bfloat16 rate of an A100.
        """
        from gpt2.accounting import flops_per_token

        return flops_per_token(self.config) * self.config.block_size * fwdbwd_per_iter / dt / peak_flops

    def get_num_params(self, non_embedding: bool = True) -> int:
        """Return the number of parameters; the tied head counts once.

        non_embedding: leave out the position embeddings, as nanoGPT does, but not the token embeddings.
        """
        total = sum(p.numel() for p in self.parameters())
        return total - self.transformer.wpe.weight.numel() if non_embedding else total

    def crop_block_size(self, block_size: int) -> None:
        """Keep the first `block_size` positions only, in place. Raises UserError where the model has fewer."""
        if block_size > self.config.block_size:
            raise UserError(
                f"block_size={block_size} is more than the model's {self.config.block_size} positions; "
                f"use --block_size={self.config.block_size} or less"
            )
        self.config = replace(self.config, block_size=block_size)
        self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())
        self.transformer.wpe.num_embeddings = block_size
