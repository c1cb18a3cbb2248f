"""Keeps keys and values of texts that ended, for prompts that begin in the same way."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """A prefix is the beginning of a text, with the keys and values of its tokens, (n_layer, nh, length, hs) each."""

    length: int
    k: Tensor
    v: Tensor

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the first `length` positions."""
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class Prefixes:
    """Holds the keys and values of texts, at most `max_bytes` in sum; the least recently used leave first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.texts: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def find(self, tokens: Sequence[int]) -> Prefix | None:
        """Return the longest beginning that `tokens` shares with a text; None if it shares no token."""
        wanted = tuple(tokens)
        best = max(self.texts, key=lambda text: common_length(text, wanted), default=None)
        if best is None or not (length := common_length(best, wanted)):
            return None
        self.texts.move_to_end(best)
        return Prefix(length, self.texts[best].k, self.texts[best].v)

    def add(self, tokens: Sequence[int], read: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Keep a text; `read` returns copies of its keys and values. It replaces texts that it begins with."""
        if not self.max_bytes or not tokens:
            return
        text = tuple(tokens)
        k, v = read()
        for other in [other for other in self.texts if text[: len(other)] == other]:
            self._remove(other)
        self.texts[text] = Prefix(len(text), k, v)
        self.n_bytes += k.nbytes + v.nbytes
        while self.n_bytes > self.max_bytes:
            self._remove(next(iter(self.texts)))

    def _remove(self, text: tuple[int, ...]) -> None:
        prefix = self.texts.pop(text)
        self.n_bytes -= prefix.k.nbytes + prefix.v.nbytes


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of equal tokens at the beginning of two texts of the same sequence type."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
