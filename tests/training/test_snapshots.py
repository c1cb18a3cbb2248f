"""Snapshots hold the weights of their step, are the same after a resume, and are models."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gpt2
from gpt2.errors import UserError
from gpt2.formats.run_folder import folder_of, snapshot_file, snapshot_metadata, snapshot_steps
from gpt2.model import GPT, GPTConfig
from gpt2.runlog.records import read_log
from gpt2.tensor_file import write_tensors
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.loop import train
from gpt2.training.prune import carry_out, choose


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "snapshots").iterdir()}


def test_a_snapshot_is_the_checkpoint_rounded_to_bfloat16(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=6, snapshot_interval=3, checkpoint_interval=3, keep_checkpoints=0))
    run = tmp_path / "run"
    assert snapshot_steps(run) == [0, 3, 6]
    for step in (3, 6):
        whole = load_file(folder_of(run, step) / "model.safetensors")
        kept = load_file(snapshot_file(run, step))
        assert kept.keys() == whole.keys()
        for name, weights in whole.items():
            # rounding to nearest, ties to even, of the upper 16 bits of a float32
            bits = weights.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            assert kept[name].dtype == torch.bfloat16
            assert torch.equal(kept[name].view(torch.int16).to(torch.int64) & 0xFFFF, rounded)
    log = read_log(run)
    records = [r for r in log if r["event"] == "snapshot"]
    assert [r["path"] for r in records] == [f"step_000000{step}.safetensors" for step in (0, 3, 6)]
    end = [r for r in log if r["event"] == "end"][-1]
    assert end["seconds"]["snapshots"] >= sum(r["seconds"] for r in records) > 0


def test_the_end_of_a_run_is_kept_too(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=5, snapshot_interval=3, eval_interval=0))
    assert snapshot_steps(tmp_path / "run") == [0, 3, 5]


@pytest.mark.parametrize(("last", "steps"), [(0, [0]), (1, [0, 1]), (11, [0, 1, 2, 4, 8, 11]), (8, [0, 1, 2, 4, 8])])
def test_geometric_steps(tiny, tmp_path: Path, last: int, steps: list[int]) -> None:
    train(tiny(max_iters=last, snapshot_interval="geometric", eval_interval=0))
    assert snapshot_steps(tmp_path / "run") == steps


def test_a_resumed_run_keeps_the_same_snapshots(tiny, tmp_path: Path) -> None:
    settings = {"snapshot_interval": "geometric", "dropout": 0.2, "max_iters": 9}
    train(tiny(**settings))
    run, whole = tmp_path / "run", tmp_path / "whole"
    run.rename(whole)

    def stop(event: str, step: int, values: dict) -> None:
        if event == "train" and step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(**settings), callback=stop)
    assert snapshot_steps(run) == [0, 1, 2, 4]
    train(tiny(**settings, init_from="resume"))
    assert contents(run) == contents(whole)
    shutil.rmtree(folder_of(run, 9))  # steps 6 to 9 are made again
    train(tiny(**settings, init_from="resume"))
    assert contents(run) == contents(whole)
    assert [r["step"] for r in read_log(run) if r["event"] == "snapshot"] == [0, 1, 2, 4, 8, 9]


def test_pruning_leaves_snapshots_and_show_counts_them(tiny, tmp_path: Path, gpt2_command) -> None:
    train(tiny(max_iters=8, snapshot_interval="geometric", checkpoint_interval=1, keep_checkpoints=0))
    run = tmp_path / "run"
    before = contents(run)
    carry_out(choose(run))
    assert contents(run) == before
    assert len(before) == 5
    status, out, _ = gpt2_command("show", run)
    assert status == 0
    assert "snapshots: 5, of steps 0 to 8" in out


def test_a_snapshot_is_a_model_with_its_tokenizer(tiny, tmp_path: Path, gpt2_command) -> None:
    train(tiny(max_iters=2, snapshot_interval=2, bias=False))
    path = snapshot_file(tmp_path / "run", 2)
    status, out, _ = gpt2_command("sample", path, "--start=the", "--max_new_tokens=4", "--device=cpu")
    assert status == 0
    assert out.startswith("the")
    model, tokenizer = gpt2.load(path)
    whole, same = gpt2.load(tmp_path / "run")
    assert tokenizer.encode("the cat") == same.encode("the cat")
    assert model.config == whole.config
    assert torch.equal(model.transformer.wte.weight, whole.transformer.wte.weight.bfloat16().float())


def test_wrong_words_are_refused(tiny) -> None:
    with pytest.raises(UserError, match="snapshot_interval is 'often'; it must be a whole number, or geometric"):
        tiny(snapshot_interval="often")


def test_a_disk_that_refuses_a_snapshot_does_not_end_the_run(tiny, tmp_path: Path, capfd) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "snapshots").write_text("a file in the way")
    assert train(tiny(max_iters=2, snapshot_interval=1)).step == 2
    assert "no snapshot at step 1" in capfd.readouterr().err


def test_a_snapshot_of_other_layers_is_refused(tmp_path: Path) -> None:
    config = GPTConfig(block_size=8, vocab_size=257, n_layer=1, n_head=1, n_embd=8)
    path = snapshot_file(tmp_path, 3)
    path.parent.mkdir()
    for own_layers in (False, True):
        metadata = snapshot_metadata(config, ByteTokenizer(), 3, own_layers)
        write_tensors(path, dict(GPT(config).named_parameters()), metadata)
        if not own_layers:
            assert gpt2.load(path)[0].config == config
    with pytest.raises(UserError, match="layers of its own"):
        gpt2.load(path)
