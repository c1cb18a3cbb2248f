"""Files written in shards are read by safetensors' own reader."""

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gpt2 import tensor_file
from gpt2.tensor_file import DTYPES, Layout, TensorShard, specs_of


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (0,), (1,), (7,), (5, 3), (4, 2, 2), (0, 3)]
    return {
        f"{dtype}{shape}": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for dtype in DTYPES
        for shape in shapes
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("piece", [3, 1 << 26])
def test_shards_make_one_file(processes: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "PIECE", piece)
    tensors, path = some_tensors(), tmp_path / "x.safetensors"
    by_process: list[dict[str, TensorShard]] = [{} for _ in range(processes)]
    for name, tensor in tensors.items():
        first = 0
        for shards, rows in zip(by_process, tensor.chunk(processes) if tensor.dim() else [tensor], strict=False):
            shards[name] = TensorShard(rows, tuple(tensor.shape), first)
            first += len(rows) if tensor.dim() else 0
    layout = Layout(
        {name: spec for shards in by_process for name, spec in specs_of(shards).items()}, {"about": 'ü"\n'}
    )
    layout.create(path)
    random.Random(0).shuffle(by_process)
    for shards in by_process:
        layout.write(path, shards)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"about": 'ü"\n'}
    assert path.stat().st_size == layout.size
