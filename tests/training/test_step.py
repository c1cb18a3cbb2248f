"""One update against hand-made references."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import final_weights
from torch.nn import functional as F

from gpt2.data import batches as batches_module
from gpt2.data.batches import gather, sample_starts
from gpt2.formats.run_folder import folder_of, read_description
from gpt2.optim.adamw import parameter_groups
from gpt2.training.loop import train
from gpt2.training.run import Run
from gpt2.training.setup import set_up
from gpt2.training.step import dropout_seed, step_learning_rate, train_step


def silent(line: str) -> None: ...


def all_rows(run: Run, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row of an update as one batch."""
    c = run.config
    count = c.accumulation * c.batch_size
    starts = sample_starts(run.batches.tokens.lengths, c.block_size, c.data_order, c.seed, step, count, c.batch_size)
    return gather(run.batches.tokens, starts, c.block_size, run.device)


def test_an_update_is_the_textbooks(tiny) -> None:
    """Loss, clipping, decay groups, schedule and AdamW against float64 arithmetic written out here."""
    run = set_up(tiny(gradient_accumulation_steps=3, grad_clip=0.5, weight_decay=0.2, warmup_iters=0), silent)
    model = type(run.model)(run.model.config).double()
    model.load_state_dict(run.model.state_dict())
    decays = {n: g["weight_decay"] for g in parameter_groups(model.named_parameters(), 0.2) for n, _ in g["params"]}
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in model.named_parameters()}
    for step in range(3):
        x, y = all_rows(run, step)
        loss = F.cross_entropy(model.head(model.hidden(x)).flatten(0, 1), y.flatten())
        grads = dict(zip(moments, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        lr = step_learning_rate(run.config, step)
        for name, p in model.named_parameters():
            g = grads[name] * min(1.0, 0.5 / (norm + 1e-6))
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.95).add_(0.05 * g**2)
            p.data *= 1 - lr * decays[name]
            t = step + 1
            p.data -= lr * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.95**t)) + 1e-8)
        result = train_step(run)
        run.state.step += 1
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert result.lr == lr
    for (name, p), q in zip(model.named_parameters(), run.model.parameters(), strict=True):
        assert torch.allclose(p.float(), q, rtol=0, atol=2e-4), name  # Adam divides tiny gradients by their size


def test_an_update_heeds_documents(tiny, heeding: dict) -> None:
    """Rows begin with end-of-text where there is one to move to, and their loss is that of masked attention."""
    run = set_up(tiny(**heeding, gradient_accumulation_steps=3), silent)
    for p in run.model.parameters():
        p.data.mul_(5)  # as initialised, hardly anything depends on attention
    model = type(run.model)(run.model.config).double()
    model.load_state_dict(run.model.state_dict())
    drawn, _ = all_rows(run, 0)
    x, y = gather(run.batches.tokens, run.batches.starts(run.state.step), 16, run.device)
    with_one = [256 in row for row in drawn.tolist()]
    assert sum(with_one) > 6
    assert all(row[0] == 256 for row, has in zip(x.tolist(), with_one, strict=True) if has)
    numbers = torch.tensor([[row[: t + 1].count(256) for t in range(16)] for row in x.tolist()])
    losses = []
    same = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()
    for documents in (same, None):
        logits = model.head(model.hidden(x, mask=documents))
        losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    assert abs(losses[0] - losses[1]) > 1e-2
    assert train_step(run).loss.item() == pytest.approx(losses[0], rel=1e-5)
    run = set_up(tiny(**heeding | {"align_documents": False}, gradient_accumulation_steps=3), silent)
    assert torch.equal(gather(run.batches.tokens, run.batches.starts(run.state.step), 16, run.device)[0], drawn)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (6, 2), (3, 4), (1, 12)])
def test_micro_batches_do_not_change_the_update(tiny, batch_size: int, accumulation: int) -> None:
    changes = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "warmup_iters": 0}
    run = set_up(tiny(**changes), silent)
    reference = set_up(tiny(batch_size=12, warmup_iters=0), silent)
    for r in (run, reference):
        r.result = train_step(r)
    assert run.result.loss.item() == pytest.approx(reference.result.loss.item(), rel=1e-6)
    assert run.result.grad_norm.item() == pytest.approx(reference.result.grad_norm.item(), rel=1e-4)


def test_no_clipping_leaves_the_gradient_alone(tiny) -> None:
    """A clip below any norm changes the weights, 0 does not."""
    weights = {}
    for clip in (0.0, 1e9, 1e-3):
        run = set_up(tiny(grad_clip=clip, weight_decay=0.0, warmup_iters=0), silent)
        train_step(run)
        weights[clip] = run.optimizers[0].state[run.model.transformer.wte.weight]["exp_avg"].clone()
    assert torch.equal(weights[0.0], weights[1e9])
    assert weights[1e-3].norm() < 0.1 * weights[0.0].norm()


def test_overfitting_repeats_the_first_batch(tiny) -> None:
    run = set_up(tiny(overfit_step=0, max_iters=150), silent)
    x, y = all_rows(run, 0)
    for _ in range(150):
        train_step(run)
        run.state.step += 1
    with torch.no_grad():
        _, loss = run.model(x, y)
    assert loss.item() < 1.0


def test_dropout_is_a_function_of_seed_step_and_micro_batch(tiny) -> None:
    losses = []
    for _ in range(2):
        run = set_up(tiny(dropout=0.5, gradient_accumulation_steps=2), silent)
        torch.manual_seed(torch.seed() % 1000)  # whatever came before does not matter
        losses.append(train_step(run).loss.item())
    assert losses[0] == losses[1]
    seeds = {dropout_seed(*s) for s in itertools.product(range(3), range(3), range(3))}
    assert len(seeds) == 27


def test_every_micro_batch_of_every_update_has_dropout_masks_of_its_own(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same rows and the same weights, only the masks can make a difference."""
    monkeypatch.setattr(batches_module, "sample_starts", lambda *arguments: np.zeros(12, dtype=np.int64))
    losses: dict[float, list[float]] = {0.0: [], 0.5: []}
    for dropout, found in losses.items():
        run = set_up(tiny(dropout=dropout, gradient_accumulation_steps=3, learning_rate=0.0), silent)
        forward = run.gradients.loss_of

        def watched(*arguments: object, forward=forward, found=found) -> torch.Tensor:
            loss = forward(*arguments)
            found.append(loss.item())
            return loss

        run.gradients.loss_of = watched
        for _ in range(3):
            train_step(run)
            run.state.step += 1
    assert len(losses[0.0]) == 9
    assert len(set(losses[0.0])) == 1
    assert len(set(losses[0.5])) == 9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_learning_rate_of_nothing_changes_nothing(tiny, optimizer: str) -> None:
    """Muon's own learning rate follows the course of the other."""
    run = set_up(tiny(learning_rate=0.0, weight_decay=0.1, optimizer=optimizer), silent)
    before = [p.clone() for p in run.model.parameters()]
    train_step(run)
    assert all(map(torch.equal, before, run.model.parameters()))


def test_recomputed_activations_are_the_same(tiny) -> None:
    """Each block runs once more in the backward pass, with the same dropout masks."""
    weights, calls = [], []
    for recompute in (False, True):
        run = set_up(tiny(dropout=0.5, activation_checkpointing=recompute), silent)
        calls.append(0)

        def count(*ignored: object) -> None:
            calls[-1] += 1

        for block in run.model.transformer.h:
            block.mlp.register_forward_pre_hook(count)
        train_step(run)
        weights.append(list(run.model.parameters()))
    assert calls == [2, 4]
    assert all(map(torch.equal, *weights))


def test_learning_rate_without_decay_is_constant(tiny) -> None:
    config = tiny(decay_lr=False, warmup_iters=5).resolved()
    assert {step_learning_rate(config, s) for s in (0, 3, 19)} == {1e-2}
    config = tiny(lr_schedule="linear", warmup_iters=1).resolved()
    assert step_learning_rate(config, 0) == 5e-3


@pytest.mark.parametrize(("dtype", "optimizer"), [("bfloat16", "adamw"), ("float16", "adamw"), ("float16", "muon")])
def test_lower_precision_trains_like_float32(tiny, dtype: str, optimizer: str) -> None:
    losses = {}
    for d in ("float32", dtype):
        run = set_up(tiny(dtype=d, optimizer=optimizer, warmup_iters=0), silent)
        for _ in range(30):
            losses[d] = train_step(run).loss.item()
            run.state.step += 1
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_skips_an_update_that_overflows_and_lowers_its_scale(tiny, optimizer: str) -> None:
    run = set_up(tiny(dtype="float16", optimizer=optimizer), silent)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.clone() for p in run.model.parameters()]
    result = train_step(run)
    assert not result.grad_norm.isfinite()
    assert run.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, q) for p, q in zip(before, run.model.parameters(), strict=True))


def test_a_resume_restores_the_float16_scale(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale begins far too high, and later grows every five updates until one overflows again."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**30, growth_interval=5)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    settings = {"dtype": "float16", "eval_interval": 0, "checkpoint_interval": 31, "keep_checkpoints": 0}
    train(tiny(**settings, max_iters=50, out_dir=str(tmp_path / "whole")))
    train(tiny(**settings, max_iters=31, lr_decay_iters=50, warmup_iters=2))
    stopped = read_description(folder_of(tmp_path / "run", 31))["scaler"]
    assert stopped["scale"] < 2.0**25
    train(tiny(**settings, max_iters=50, init_from="resume"))
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")
    whole, parts = (read_description(folder_of(tmp_path / name, 50))["scaler"] for name in ("whole", "run"))
    assert whole == parts


def test_weights_do_not_depend_on_vocabulary_padding(tiny) -> None:
    runs = [set_up(replace(tiny(), pad_vocab=pad), silent) for pad in (1, 64)]
    for run in runs:
        for _ in range(3):
            train_step(run)
            run.state.step += 1
    for p, q in zip(*(r.model.parameters() for r in runs), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-4)


def test_nothing_is_written_before_the_run_is_known_to_work(tiny, tmp_path: Path) -> None:
    from gpt2.errors import UserError

    with pytest.raises(UserError):
        set_up(tiny(block_size=100_000), silent)
    assert not (tmp_path / "run").exists()
