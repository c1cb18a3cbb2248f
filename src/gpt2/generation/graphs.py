"""Replays the kernels of a decoding step on a GPU with one launch, where launching each of them takes longer."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.errors import MachineWarning, first_line

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
        self.cannot_capture = False

    def __call__(self, last: Tensor, positions: Tensor, end: int) -> Tensor:
        """Compute a step. Its first time is not captured, because libraries then allocate what they keep.

        Where a step cannot be captured, it and all later ones are computed without a graph, and a warning says so.
        """
        key = len(last), end
        if key not in self.known:
            self.known[key] = None
            return self.decode(last, positions, end)
        if self.known[key] is None and not self.cannot_capture:
            self.known[key] = self._capture(*key)
        captured = self.known[key]
        if captured is None:
            return self.decode(last, positions, end)
        self.last[: len(last)].copy_(last)
        self.positions[: len(last)].copy_(positions)
        graph, logits = captured
        graph.replay()
        return logits

    def _capture(self, rows: int, end: int) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        """Return the graph of a step, which was not computed yet, and where it writes the logits, or None."""
        graph = torch.cuda.CUDAGraph()
        outer = torch.cuda.current_stream(self.last.device)
        try:
            # other threads may load data
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                logits = self.decode(self.last[:rows], self.positions[:rows], end)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(outer)  # PyTorch stays on the stream of a capture that failed
            self.cannot_capture = True
            text = f"CUDA graphs cannot work here ({first_line(error)}); decoding without them, which is slower"
            warnings.warn(text, MachineWarning, stacklevel=1)
            return None
        return graph, logits
