"""Replayed steps get their inputs where the graph reads them, and each shape has a graph of its own.

A CPU has no CUDA graphs; here a replay computes the step again. `tests/gpu` has the real ones.
"""

import pytest
import torch
from torch import Tensor

from gpt2.errors import MachineWarning
from gpt2.generation.graphs import Graphs


def sums(last: Tensor, positions: Tensor, end: int) -> Tensor:
    """Return "logits" (B, 2) from which the inputs can be told."""
    return torch.stack([last * 100 + positions, torch.full_like(last, end)], dim=1)


def test_a_replay_reads_new_inputs_and_knows_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []

    class Again:
        """A graph whose replay computes its step again, from the same memory into the same memory."""

        def __init__(self, graphs: Graphs, rows: int, end: int) -> None:
            self.inputs = graphs.last[:rows], graphs.positions[:rows], end
            self.logits = graphs.logits[:rows]

        def replay(self) -> None:
            self.logits.copy_(sums(*self.inputs))

    def capture(graphs: Graphs, rows: int, end: int) -> None:
        captured.append((rows, end))
        graphs.graphs[rows, end] = Again(graphs, rows, end)

    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    graphs = Graphs(sums, slots=4, device=torch.device("cpu"))
    for rows, end in [(2, 64), (3, 64), (2, 64), (2, 128), (3, 64), (2, 64), (2, 128)]:
        last, positions = torch.randint(90, (rows,)), torch.randint(90, (rows,))
        assert torch.equal(graphs(last, positions, end), sums(last, positions, end))
    assert captured == [(2, 64), (3, 64), (2, 128)]


def test_a_step_that_cannot_be_captured_is_computed_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning names the reason, no further capture is tried, and the stream is that of before."""
    tried, streams = [], []

    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            tried.append(1)

        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might …")

        def __exit__(self, *_: object) -> None:
            raise AssertionError("nothing was captured")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "the usual one")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    graphs = Graphs(sums, slots=4, device=torch.device("cpu"))
    with pytest.warns(MachineWarning) as warned:
        for rows, end in [(2, 64), (2, 64), (2, 64), (3, 64), (3, 64), (3, 64)]:
            last, positions = torch.randint(90, (rows,)), torch.randint(90, (rows,))
            assert torch.equal(graphs(last, positions, end), sums(last, positions, end))
    assert [str(w.message) for w in warned] == [
        "CUDA graphs cannot work here (operation not permitted when stream is capturing); "
        "decoding without them, which is slower"
    ]
    assert (len(tried), streams) == (1, ["the usual one"])
