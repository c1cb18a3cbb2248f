"""Replays the kernels of a decoding step on a GPU with one launch, where launching each of them takes longer."""

from collections.abc import Callable

import torch
from torch import Tensor

Decode = Callable[[Tensor, Tensor, int], Tensor]
"""Computes logits (B, V) from tokens (B,), positions (B,) and the number of positions to attend to."""


class Graphs:
    """A `Decode` that is captured as a CUDA graph for each number of texts and of positions.

    A graph reads and writes fixed memory. The result is that of the last replay, and is overwritten by the next one,
    which the device begins when what was launched before has read it. (CUDA graphs in PyTorch: "Accelerating PyTorch
    with CUDA Graphs", Nguyen et al. 2021.)
    """

    def __init__(self, decode: Decode, slots: int, device: torch.device) -> None:
        self.decode = decode
        self.last, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.pool = torch.cuda.graph_pool_handle()
        self.known: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}

    def __call__(self, last: Tensor, positions: Tensor, end: int) -> Tensor:
        """Compute a step. Its first time is not captured, because libraries then allocate what they keep."""
        key = len(last), end
        if key not in self.known:
            self.known[key] = None
            return self.decode(last, positions, end)
        self.last[: len(last)].copy_(last)
        self.positions[: len(last)].copy_(positions)
        captured = self.known[key] or self._capture(*key)
        self.known[key] = captured
        graph, logits = captured
        graph.replay()
        return logits

    def _capture(self, rows: int, end: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return the graph of a step, which was not computed yet, and where it writes the logits."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # others may load data
            logits = self.decode(self.last[:rows], self.positions[:rows], end)
        return graph, logits
