"""Keeps keys and values of prompts, for prompts that begin in the same way."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor


class Prefixes:
    """Holds keys and values of chunks of prompts, at most `max_bytes` in sum; the least recently used leave first.

    A chunk is `chunk` positions that begin at a multiple of it. It is found by all tokens up to its end, on which its
    keys and values depend. They are (n_layer, nh, chunk, hs) each.
    """

    def __init__(self, max_bytes: int, chunk: int) -> None:
        self.max_bytes, self.chunk = max_bytes, chunk
        self.n_bytes = 0
        self.chunks: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def find(self, tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the complete chunks with which tokens begin, as far as they are kept."""
        found: list[tuple[int, ...]] = []
        for end in range(self.chunk, len(tokens) + 1, self.chunk):
            if (key := tuple(tokens[:end])) not in self.chunks:
                break
            found.append(key)
        for key in reversed(found):  # the beginning becomes the most recently used: the rest is useless without it
            self.chunks.move_to_end(key)
        return [self.chunks[key] for key in found]

    def add(self, tokens: Sequence[int], read: Callable[[int, int], tuple[Tensor, Tensor]]) -> None:
        """Keep the complete chunks of a prompt. read: returns the keys and values from one position to another."""
        if not self.max_bytes:
            return
        for end in range(len(tokens) // self.chunk * self.chunk, 0, -self.chunk):
            key = tuple(tokens[:end])
            if key in self.chunks:
                self.chunks.move_to_end(key)
                continue
            k, v = self.chunks[key] = read(end - self.chunk, end)
            self.n_bytes += k.nbytes + v.nbytes
            while self.n_bytes > self.max_bytes:
                _, (k, v) = self.chunks.popitem(last=False)
                self.n_bytes -= k.nbytes + v.nbytes
