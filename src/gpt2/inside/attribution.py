"""How much each part of a model adds to a logit (Elhage et al. 2021, "A Mathematical Framework for Transformers")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.inside.forward import Trace, blocks_of, reading, trace
from gpt2.model import GPT


@dataclass(frozen=True)
class Attribution:
    """An attribution divides a logit, or the difference of two, among the parts of a model, at each of P positions.

    The parts are what is added to the residual stream, with the scale of the final LayerNorm frozen at its value.
    """

    token: Tensor
    """Share of the token embedding, (P,)."""
    position: Tensor
    """Share of the position embedding, (P,)."""
    heads: Tensor
    """Share of every head, (P, n_layer, nh). The bias of its values is part of it."""
    attention_biases: Tensor
    """Share of the bias of each attention layer's c_proj, which belongs to no head, (P, n_layer)."""
    mlps: Tensor
    """Share of every MLP with its biases, (P, n_layer)."""
    final_bias: Tensor
    """Share of the bias of the final LayerNorm, (P,)."""
    logit: Tensor
    """The logit or the difference that is divided, (P,), as the model computes it."""

    @property
    def total(self) -> Tensor:
        """Return the sum of all shares, (P,), which is the logit but for rounding."""
        by_layer = self.heads.sum(dim=2) + self.attention_biases + self.mlps
        return self.token + self.position + by_layer.sum(dim=1) + self.final_bias


def attribute(
    model: GPT,
    idx: Tensor,
    positions: Tensor,
    targets: Tensor,
    against: Tensor | None = None,
    run: Trace | None = None,
) -> Attribution:
    """Return what the parts of a model add to a logit at some positions of a text.

    idx: int64 (T,). positions: int64 (P,), at which the next token is predicted. targets: int64 (P,), the tokens
    whose logits are divided. against: int64 (P,), tokens whose logits are subtracted; a difference is often more
    telling, because probabilities do not depend on what is added to all logits. run: the trace of the text, if there
    is one. Dropout is off. Raises UserError for a model with replaced parts, and for a text that is empty or longer
    than the context.
    """
    found = trace(model, idx) if run is None else run
    net = model.transformer
    with reading(model):
        unembedding = net.wte.weight[targets] - (0 if against is None else net.wte.weight[against])  # (P, C)
        x = found.streams[-1][positions]
        scale = (x.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        weighted = unembedding * net.ln_f.weight
        direction = (weighted - weighted.mean(dim=1, keepdim=True)) / scale  # LayerNorm subtracts the mean

        def share(added: Tensor) -> Tensor:
            return (added * direction).sum(dim=1)  # of (P, C)

        heads, biases = [], []
        for block, y in zip(blocks_of(model), found.heads, strict=True):
            c_proj = block.attn.c_proj
            by_channel = y[positions] * (direction @ c_proj.weight)  # (P, C), with the channels of each head together
            heads.append(by_channel.unflatten(1, (block.attn.n_head, -1)).sum(dim=2))
            biases.append(torch.zeros_like(scale[:, 0]) if c_proj.bias is None else direction @ c_proj.bias)
        final_bias = torch.zeros_like(scale[:, 0]) if net.ln_f.bias is None else unembedding @ net.ln_f.bias
        return Attribution(
            token=share(net.wte(idx[positions])),
            position=share(net.wpe(positions)),
            heads=torch.stack(heads, dim=1),
            attention_biases=torch.stack(biases, dim=1),
            mlps=torch.stack([share(mlp[positions]) for mlp in found.mlps], dim=1),
            final_bias=final_bias,
            logit=(net.ln_f(x) * unembedding).sum(dim=1),
        )
