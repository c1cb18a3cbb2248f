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

    All graphs read and write the same memory. The result is that of the last replay, and is overwritten by the next
    one, which the device begins when what was launched before has read it. (CUDA graphs in PyTorch: "Accelerating
    PyTorch with CUDA Graphs", Nguyen et al. 2021.)
    """

    def __init__(self, decode: Decode, slots: int, device: torch.device) -> None:
        self.decode = decode
        self.last, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.logits = torch.empty(0)  # after the first step (slots, V), of its dtype
        self.pool = torch.cuda.graph_pool_handle()
        self.computed: set[tuple[int, int]] = set()
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.cannot_capture = False

    def __call__(self, last: Tensor, positions: Tensor, end: int) -> Tensor:
        """Compute a step. Its first time is not captured, because libraries then allocate what they keep.

        Where a step cannot be captured, it and all later ones are computed without a graph, and a warning says so.
        """
        rows, key = len(last), (len(last), end)
        if key in self.computed and key not in self.graphs and not self.cannot_capture:
            self._capture(rows, end)
        if key not in self.graphs:
            logits = self.decode(last, positions, end)
            self.computed.add(key)
            if not self.logits.numel():
                self.logits = logits.new_empty(len(self.last), logits.size(1))
            return logits
        self.last[:rows].copy_(last)
        self.positions[:rows].copy_(positions)
        self.graphs[key].replay()
        return self.logits[:rows]

    def _capture(self, rows: int, end: int) -> None:
        """Add the graph of a step of this many texts and positions. A capture computes nothing."""
        graph = torch.cuda.CUDAGraph()
        outer = torch.cuda.current_stream(self.last.device)
        try:
            # other threads may load data
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                # if each graph kept its own logits, those of 1 to 64 texts of GPT-2 would take 1.7 GB
                self.logits[:rows].copy_(self.decode(self.last[:rows], self.positions[:rows], end))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(outer)  # PyTorch stays on the stream of a capture that failed
            self.cannot_capture = True
            text = f"CUDA graphs cannot work here ({first_line(error)}); decoding without them, which is slower"
            warnings.warn(text, MachineWarning, stacklevel=1)
        else:
            self.graphs[rows, end] = graph
