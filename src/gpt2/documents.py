"""Attention that stays inside a document: as a dense mask, and as blocks that are skipped on a GPU.

A document begins with the end-of-text token, from which its first token is predicted. A sequence can begin and end in
the middle of one.
"""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def document_numbers(x: Tensor, eot_token: int) -> Tensor:
    """Return the number of each position's document in its sequence: int64 (B, T) for inputs x, int64 (B, T)."""
    return (x == eot_token).cumsum(dim=1)


def document_mask(x: Tensor, eot_token: int | None) -> Tensor | None:
    """Return the mask with which attention stays inside a document: bool (B, 1, T, T) for inputs x, int64 (B, T).

    A document begins with the end-of-text token, from which its first token is predicted. None without such a token.
    """
    if eot_token is None:
        return None
    documents = document_numbers(x, eot_token)
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()


def document_blocks(x: Tensor, eot_token: int) -> "BlockMask":
    """Return the same as `document_mask` for FlexAttention, which skips blocks of positions without attention.

    It takes 2 bytes for each pair of blocks of 128 positions, where the mask takes one for each pair of positions. It
    is for compiled attention on a GPU (Dong et al. 2024, "Flex Attention"): uncompiled, FlexAttention computes all
    scores, and on a CPU it has no backward pass.
    """
    from torch.nn.attention.flex_attention import create_block_mask  # takes a second in PyTorch 2.14

    (B, T), documents = x.shape, document_numbers(x, eot_token)

    def attends(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (documents[b, i] == documents[b, j])

    return create_block_mask(attends, B, None, T, T, device=x.device)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: "BlockMask") -> Tensor:
    """Return attention under a mask of blocks, (B, nh, T, hs), for queries, keys and values of that shape."""
    from torch.nn.attention.flex_attention import flex_attention

    y = flex_attention(q, k, v, block_mask=blocks)
    assert isinstance(y, Tensor)  # and not a pair, which it returns only when asked for more
    return y
