"""`gpt2 explain`."""

import json
from pathlib import Path

import pytest

from gpt2.cli.explain import REMARKS
from gpt2.formats import huggingface
from gpt2.training.loop import train


def no_download(name: str) -> None:
    raise AssertionError(f"{name} was downloaded")


def test_a_size_needs_no_weights(gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "open_hub", no_download)
    status, out, err = gpt2_command("explain")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "gpt2: 124,439,808 parameters, 85,056,000 without the embeddings"
    assert "292 GFLOPs forward, 876 GFLOPs forward and backward" in out
    assert ["total", "124,439,808", "498", "MB", "292", "G"] in [line.split() for line in lines]
    assert gpt2_command("explain", "gpt2-medium", "--block_size=1")[1].startswith("gpt2-medium: 354,823,168 ")


def test_every_remark_is_used_in_its_order(gpt2_command) -> None:
    _, out, _ = gpt2_command("explain", "d6")
    at = 0
    for remark in ("token ids", *(REMARKS["attn.transpose"]), *(REMARKS["h.add"]), "one number"):
        at = out.index(remark, at + 1)
    assert [remark for remarks in REMARKS.values() for remark in remarks if remark not in out] == []
    tensors = [line for line in out.split("module  ")[-1].splitlines()[1:] if "the same again" not in line]
    assert [line for line in tensors if line.split("  ")[-1].strip().endswith("B")] == []  # each has a remark


def test_a_run_is_explained_with_its_sizes(tiny, gpt2_command) -> None:
    run = train(tiny(max_iters=1, n_layer=3)).out_dir
    status, out, _ = gpt2_command("explain", run, "--batch_size=7", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["config"]["n_layer"] == 3 and (found["batch_size"], found["block_size"]) == (7, 16)
    assert found["parts"][0] == {
        "name": "transformer.wte",
        "weights": {"weight": [found["config"]["vocab_size"], 16]},
        "parameters": 16 * found["config"]["vocab_size"],
        "weight_bytes": 64 * found["config"]["vocab_size"],
        "flops": 0,
        "output": [7, 16, 16],
        "output_bytes": 4 * 7 * 16 * 16,
    }
    assert found["training_flops"] == 3 * sum(part["flops"] for part in found["parts"])
    assert gpt2_command("explain", run)[1].count("h.1 … h.2") == 2


def test_a_folder_with_the_name_of_a_size(
    tiny, gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny(max_iters=1)).out_dir
    monkeypatch.chdir(tmp_path)
    Path("gpt2").symlink_to(run)
    assert gpt2_command("explain", "./gpt2", "--json")[1].startswith(
        '{"model": "./gpt2", "config": {"block_size": 16'
    )
    assert gpt2_command("explain", "gpt2")[1].startswith("gpt2: 124,439,808")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain gpt5", "no model 'gpt5'"),
        ("explain gpt2 --block_size=1025", "block_size is 1025; this model takes 1 to 1,024 tokens"),
        ("explain gpt2 --batch_size=0", "batch_size is 0"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, gpt2_command) -> None:
    status, out, err = gpt2_command(*line.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
