"""Several processes write the snapshots of a sharded model together."""

from pathlib import Path

import pytest
import torch
from faults import settings, start
from safetensors.torch import load_file

from gpt2.formats.run_folder import folder_of, snapshot_file


@pytest.mark.parametrize("sharing", [{"parallel": "fsdp"}, {"zero_stage": 1}])
def test_a_snapshot_of_shards_is_the_complete_checkpoint(dataset: Path, tmp_path: Path, sharing: dict) -> None:
    changes = {"max_iters": 2, "snapshot_interval": 2, "deterministic": False, "n_embd": 24, "n_head": 3}
    process = start(settings(dataset, tmp_path / "run", **changes, **sharing), "gpt2", "train", "--nproc=2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    whole = load_file(folder_of(tmp_path / "run", 2) / "model.safetensors")
    kept = load_file(snapshot_file(tmp_path / "run", 2))
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], weights.bfloat16()) for name, weights in whole.items())
    assert [path.name for path in (tmp_path / "run" / "snapshots").iterdir() if path.name.startswith(".")] == []
