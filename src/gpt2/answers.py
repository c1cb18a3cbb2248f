"""Which tokens have a loss when a model learns to answer: those of answers, and not those of questions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.special_tokens import SpecialTokens

IGNORED = -1
"""Target of a position that has no loss."""


@dataclass(frozen=True)
class Answers:
    """An answer is what follows a special token such as <|assistant|>, up to and including the next special token."""

    begin: int
    """Id of the special token that begins an answer."""
    specials: tuple[int, ...]
    """Ids of all special tokens, with end-of-text."""

    @classmethod
    def after(cls, marker: str, special: SpecialTokens) -> "Answers":
        """Return the answers that begin after a special token of a vocabulary. Raises UserError if it has none."""
        if marker not in special.ids:
            found = ", ".join(special.ids) or "none"
            raise UserError(
                f"loss_after is {marker!r}, which is no special token of the dataset's tokenizer (it has: {found}); "
                "prepare conversations with --chat, or text with a tokenizer that has it"
            )
        begin = special.ids[marker]
        return cls(begin, (begin, *(special.ids[text] for text in special.markers if text != marker)))

    def only(self, x: Tensor, y: Tensor) -> Tensor:
        """Return targets y, int64 (B, T), with IGNORED outside of answers, for inputs x, int64 (B, T).

        The first positions of a sequence are outside until its first special token, because what came before them is
        not known.
        """
        positions = torch.arange(x.size(1), device=x.device)
        is_special = torch.isin(x, torch.tensor(self.specials, device=x.device))
        last = torch.where(is_special, positions, 0).cummax(dim=1).values  # the last special token up to here
        return torch.where(x.gather(1, last) == self.begin, y, IGNORED)
