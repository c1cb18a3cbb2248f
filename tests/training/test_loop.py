"""Whole runs: what they do, record and refuse."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import curve
from torch._functorch import config as partitioner

import gpt2
from gpt2.data.batches import evaluation_starts, gather
from gpt2.data.dataset import open_dataset
from gpt2.distributed.world import World
from gpt2.errors import TrainingFailed, UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.loop import train
from gpt2.training.periodic import estimate_losses
from gpt2.training.setup import set_up


def test_a_run_learns_and_records_everything(tiny, tmp_path: Path) -> None:
    result = train(tiny(max_iters=60, sample_interval=30, sample_tokens=20, sample_start="the"))
    run = tmp_path / "run"
    records = read_log(run)
    assert [r["step"] for r in records if r["event"] == "train"] == list(range(1, 61))
    evaluations = [r for r in records if r["event"] == "eval"]
    assert [r["step"] for r in evaluations] == list(range(0, 61, 10))
    assert result.val_loss == evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 0.5
    assert result.step == 60
    assert not result.stopped
    assert records[0]["event"] == "start"
    assert records[0]["device"].startswith("cpu (")
    assert (records[0]["torch"], records[0]["processes"]) == (torch.__version__, 1)
    assert records[0]["data"].keys() == {"train", "val", "train_content", "val_content"}
    assert records[-1]["event"] == "end"
    assert records[-1]["tokens"] == 60 * 4 * 16
    for r in records:
        assert r["time"] > 1.7e9
        if r["event"] == "train":
            assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu"} <= set(r)
            assert r["tokens"] == r["step"] * 64
    assert sorted(p.name for p in (run / "samples").iterdir()) == [f"step_{s:07d}.txt" for s in (0, 30, 60)]
    assert (run / "samples" / "step_0000060.txt").read_text().startswith("the")
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock", "checkpoints", "config.toml", "log.jsonl", "samples",
    ]  # fmt: skip


def test_a_quiet_run_prints_nothing_and_records_the_same(tiny, tmp_path: Path, capfd) -> None:
    settings = {"max_iters": 4, "sample_interval": 2, "sample_tokens": 3, "sample_start": "the"}
    events: list[str] = []
    train(tiny(**settings, out_dir=str(tmp_path / "loud")))
    assert "step 4/4" in capfd.readouterr().err
    config = tiny(**settings, out_dir=str(tmp_path / "quiet"))
    train(config, quiet=True, callback=lambda event, step, values: events.append(event))
    assert capfd.readouterr() == ("", "")
    assert events == [r["event"] for r in read_log(tmp_path / "quiet")]
    assert curve(tmp_path / "quiet") == curve(tmp_path / "loud")


def test_evaluation_is_the_mean_over_fixed_blocks(tiny, tmp_path: Path, dataset: Path) -> None:
    result = train(tiny(max_iters=3, eval_iters=3))
    model, _ = gpt2.load(str(tmp_path / "run" / "checkpoints" / "step_0000003"))
    tokens = open_dataset(str(dataset)).splits["val"]
    losses = []
    for start in evaluation_starts(tokens, 16, 12):
        x, y = gather(tokens, [start], 16, torch.device("cpu"))
        with torch.no_grad():
            losses.append(model(x, y)[1].item())
    assert result.val_loss == pytest.approx(sum(losses) / 12, abs=1e-5)


def test_a_run_that_heeds_documents_learns(tiny, heeding: dict, tmp_path: Path) -> None:
    train(tiny(**heeding, max_iters=60))
    evaluations = [r["val_loss"] for r in read_log(tmp_path / "run") if r["event"] == "eval"]
    assert evaluations[-1] < evaluations[0] - 1.5
    settings = (tmp_path / "run" / "config.toml").read_text()
    assert "document_mask = true\nalign_documents = true\n" in settings


@torch.no_grad()
def test_evaluation_heeds_documents_where_training_does(tiny, heeding: dict) -> None:
    run = set_up(tiny(**heeding | {"align_documents": False}, eval_iters=0, eval_only=True), lambda line: None)
    for p in run.model.parameters():
        p.mul_(5)  # as initialised, hardly anything depends on attention
    tokens = run.val_tokens
    masked, whole = [], []
    for start in evaluation_starts(tokens, 16, 0):
        x, y = gather(tokens, [start], 16, torch.device("cpu"))
        numbers = torch.tensor([[x[0, : t + 1].tolist().count(256) for t in range(16)]])
        mask = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()
        masked.append(run.model(x, y, mask=mask)[1].item())
        whole.append(run.model(x, y)[1].item())
    masked, whole = sum(masked) / len(masked), sum(whole) / len(whole)
    assert abs(masked - whole) > 1e-2
    assert estimate_losses(run)["val_loss"] == pytest.approx(masked, abs=1e-5)
    run.config = replace(run.config, document_mask=False)
    assert estimate_losses(run)["val_loss"] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("settings", [["document_mask"], ["align_documents"], ["document_mask", "align_documents"]])
def test_documents_without_an_end_of_text_are_refused(tiny, settings: list[str]) -> None:
    with pytest.raises(UserError, match=f"^{' and '.join(settings)}: the char tokenizer of .* --tokenizer=byte"):
        train(tiny(**dict.fromkeys(settings, True)))


def test_the_logged_loss_is_the_mean_over_all_micro_batches(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2, batch_size=6))
    (tmp_path / "run").rename(tmp_path / "whole")
    train(tiny(max_iters=2, batch_size=2, gradient_accumulation_steps=3))
    a, b = ([r["loss"] for r in read_log(tmp_path / name) if r["event"] == "train"] for name in ("whole", "run"))
    assert a == pytest.approx(b, rel=1e-5)


def test_log_interval_changes_no_record(tiny, tmp_path: Path) -> None:
    train(tiny())
    (tmp_path / "run").rename(tmp_path / "every")
    train(tiny(log_interval=7))
    assert curve(tmp_path / "run") == curve(tmp_path / "every")


def test_best_and_newest_checkpoints_are_kept(tiny, tmp_path: Path) -> None:
    """With a learning rate that wrecks the model after step 10 the best checkpoint is an old one."""
    config = tiny(max_iters=20, eval_interval=5, keep_checkpoints=1, checkpoint_interval=1)
    train(tiny(max_iters=10, eval_interval=5, keep_checkpoints=1))
    train(config.__class__(**config.as_dict() | {"init_from": "resume", "learning_rate": 10.0, "min_lr": 10.0}))
    steps = saved_steps(tmp_path / "run")
    best = min((r["val_loss"], r["step"]) for r in read_log(tmp_path / "run") if r["event"] == "eval")[1]
    assert steps == [20, best]
    assert best <= 10


def test_only_improvements_are_saved_where_asked(tiny, tmp_path: Path) -> None:
    train(tiny(learning_rate=0.0, min_lr=0.0, always_save_checkpoint=False, keep_checkpoints=0))
    assert saved_steps(tmp_path / "run") == [20]  # nothing improves; the end is saved all the same


def test_a_run_is_not_overwritten_unasked(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(UserError, match="--overwrite"):
        train(tiny(max_iters=2))
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(tiny(max_iters=3, overwrite=True))
    assert saved_steps(tmp_path / "run") == [3]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_eval_only_of_a_new_model_says_how_to_evaluate_the_run_that_is_there(tiny, tmp_path: Path, capfd) -> None:
    trained = train(tiny()).val_loss
    capfd.readouterr()
    fresh = train(tiny(eval_only=True)).val_loss
    told = f"random weights; --init_from=resume evaluates the run in {tmp_path / 'run'}"
    assert told in capfd.readouterr().err
    assert train(tiny(eval_only=True, init_from="resume")).val_loss == trained != fresh
    assert told not in capfd.readouterr().err


def test_eval_only_writes_nothing(tiny, tmp_path: Path) -> None:
    result = train(tiny(eval_only=True, eval_iters=0))
    assert result.val_loss == pytest.approx(torch.log(torch.tensor(22.0)).item(), abs=0.7)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_starts_from_the_model_and_crops_it(tiny, tmp_path: Path) -> None:
    train(tiny())
    (tmp_path / "run").rename(tmp_path / "base")
    shape = {"n_layer": None, "n_head": None, "n_embd": None}
    result = train(tiny(**shape, init_from=str(tmp_path / "base"), block_size=8, max_iters=0))
    assert "n_layer = 2\n" in (tmp_path / "run" / "config.toml").read_text()
    assert result.val_loss < 2.6
    model, _ = gpt2.load(str(tmp_path / "base"))
    assert model.config.block_size == 16
    with pytest.raises(UserError, match="has n_embd=16, not 32"):
        train(tiny(init_from=str(tmp_path / "base"), n_embd=32, overwrite=True))
    with pytest.raises(UserError, match="more than the model's 16"):
        train(tiny(init_from=str(tmp_path / "base"), block_size=32, overwrite=True))


def test_fine_tuning_with_another_tokenizer_is_refused(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=1))
    (tmp_path / "other.txt").write_text("entirely different letters: xyz! " * 50)
    other = gpt2.data.prepare.prepare(tmp_path / "other.txt", out=tmp_path / "other", tokenizer="char")
    with pytest.raises(UserError, match="another char tokenizer"):
        train(tiny(init_from=str(tmp_path / "run"), dataset=str(other), out_dir=str(tmp_path / "new")))


def test_time_limit_ends_the_run_with_a_checkpoint(tiny, tmp_path: Path) -> None:
    result = train(tiny(max_iters=1_000_000, warmup_iters=0, eval_interval=0, max_minutes=0.01))
    assert 0 < result.step < 1_000_000
    assert saved_steps(tmp_path / "run")[0] == result.step


def test_a_compiler_that_fails_is_said_and_done_without(tiny, monkeypatch, capfd) -> None:
    def broken(model, **options):
        def forward(*args, **more):
            raise RuntimeError("no compiler\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    result = train(tiny(compile=True, max_iters=2))
    assert result.step == 2
    assert "torch.compile cannot work here (no compiler); training without it" in capfd.readouterr().err


@pytest.mark.parametrize("heed", [False, True])
def test_what_is_compiled_is_tried_as_it_is_trained(tiny, heeding: dict, heed: bool, monkeypatch) -> None:
    """With a mask or without one: they are two programs to the compiler."""
    seen = []

    def recording(model, **options):
        assert options == {"fullgraph": True}

        def forward(x, y):
            seen.append(model.eot_token)
            return model(x, y)

        return forward

    monkeypatch.setattr(torch, "compile", recording)
    config = tiny(**heeding | {"document_mask": heed}, compile=True, max_iters=2)
    with partitioner.patch(ban_recompute_materialized_backward=True):
        set_up(config, lambda line: None)
        assert not partitioner.ban_recompute_materialized_backward  # less is kept for the backward pass
    assert len(seen) == 1
    train(config)
    assert seen == [256 if heed else None] * 4  # both trials and both updates


def test_a_sample_without_finite_logits_does_not_end_the_training(
    tiny, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Overflowing weights: each update is skipped, and each sample is left out."""
    run = set_up(tiny(), lambda line: None)
    with torch.no_grad():
        run.model.transformer.ln_f.weight.fill_(3e38)
        run.model.transformer.wte.weight.mul_(1e4)
    result = train(tiny(max_iters=4, sample_interval=2, sample_tokens=3), model=run.model)
    assert result.step == 4
    assert capfd.readouterr().err.count("no sample at step") == 3
    assert not [r for r in read_log(tmp_path / "run") if r["event"] == "sample"]


def test_samples_of_a_prompt_that_cannot_be_encoded_are_refused_at_the_start(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'ß'"):
        train(tiny(sample_interval=10, sample_start="ß"))
    assert not (tmp_path / "run").exists()


def test_what_is_no_runs_is_not_deleted(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("samples/kick.wav", "checkpoints/other.pt", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    (run / "config.toml").write_text("batch_size = 3  # a recipe of my own\n")
    with pytest.raises(UserError, match=r"config\.toml was not written by a run"):
        train(tiny())
    (run / "config.toml").rename(run / "mine.toml")
    train(tiny(max_iters=1))
    train(tiny(max_iters=2, overwrite=True))
    assert saved_steps(run) == [2]
    for name in ("samples/kick.wav", "checkpoints/other.pt", "notes.txt"):
        assert (run / name).read_text() == "mine"


def test_a_run_that_came_to_no_checkpoint_is_replaced(tiny, tmp_path: Path, monkeypatch) -> None:
    from gpt2.training import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", lambda run: 1 / 0)
        with pytest.raises(TrainingFailed, match="ZeroDivisionError: division by zero") as failure:
            train(tiny())
        assert isinstance(failure.value.__cause__, ZeroDivisionError)
    train(tiny(max_iters=2))
    assert [r["event"] for r in read_log(tmp_path / "run")].count("start") == 1


def test_overwrite_comes_after_every_check(tiny, tmp_path: Path, monkeypatch) -> None:
    train(tiny(max_iters=2))
    monkeypatch.setitem(sys.modules, "wandb", None)
    for changes in ({"wandb_log": True}, {"block_size": 10**6}, {"dataset": "nowhere"}):
        with pytest.raises(UserError):
            train(tiny(overwrite=True, **changes))
        assert saved_steps(tmp_path / "run") == [2]


def test_out_of_memory_names_the_knob(tiny, monkeypatch) -> None:
    def exhausted(model, **options):
        def forward(*args, **more):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return forward

    monkeypatch.setattr(torch, "compile", exhausted)
    with pytest.raises(UserError, match="lower --batch_size"):
        train(tiny(compile=True))


def test_losses_that_are_no_numbers_are_logged_as_json(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=9, learning_rate=1e30, min_lr=1e30, grad_clip=0.0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert None in [r["loss"] for r in records if r["event"] == "skip"]


@pytest.mark.parametrize(
    ("world", "flag"), [(World(), ""), (World(size=2, local_size=2), " --nproc=2"), (World(size=4, local_size=2), "")]
)
def test_the_command_to_resume_starts_the_processes_of_one_machine_again(tiny, world: World, flag: str) -> None:
    run = replace(set_up(tiny(out_dir="my run"), lambda line: None), world=world)
    assert run.resume_command == f"gpt2 train --init_from=resume --out_dir='my run'{flag}"
