"""Guesses the next tokens of a text from the text itself (Saxena 2023, "Prompt Lookup Decoding").

Texts repeat names, phrases and lines of code. A step that reads all matrices for one token computes a few more almost
for nothing, so it computes the tokens that followed last time, too. Those that are then drawn need no step of their
own, and the others are dropped: the text is the same, token for token.
"""

from collections.abc import Sequence

LENGTH = 3
"""Number of last tokens that are looked up."""
MOST_SKIPPED = 64
"""Largest number of steps from one guess of a text to the next."""


class Guesses:
    """Finds where the last tokens of a text occurred before, and what came after them."""

    def __init__(self) -> None:
        self.after: dict[tuple[int, ...], int] = {}
        """For tokens that occurred in the text, the index of the token after their last occurrence."""
        self.n_known = 0
        """Number of tokens of the text after which `after` is complete."""
        self.n_right = 0
        """Number of tokens that were right since one was wrong. One more is guessed the next time."""
        self.n_wrong = 0
        """How often the first token of a guess was wrong since one was right."""
        self.n_skipped = 0
        """How often nothing will be guessed. It doubles with every wrong guess, so that they cost almost nothing."""

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow `tokens`, the text until now; none if nothing is known."""
        most = min(most, self.n_right + 1)
        if most < 1:
            return []
        if self.n_skipped:
            self.n_skipped -= 1
            return []
        for end in range(max(LENGTH, self.n_known + 1), len(tokens)):
            self.after[tuple(tokens[end - LENGTH : end])] = end
        self.n_known = len(tokens) - 1
        if (start := self.after.get(tuple(tokens[-LENGTH:]))) is None:
            return []
        period = len(tokens) - start  # past the end of the text, the guess repeats itself
        return [tokens[start + index % period] for index in range(most)]

    def learn(self, n_right: int, n_guessed: int) -> None:
        """Note how many tokens of a guess were right: the first `n_right` of `n_guessed`."""
        if not n_guessed:
            return
        self.n_right = self.n_right + n_right if n_right == n_guessed else n_right
        self.n_wrong = 0 if n_right else self.n_wrong + 1
        self.n_skipped = min(2**self.n_wrong, MOST_SKIPPED) - 1
