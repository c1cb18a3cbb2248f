"""Training beside nanoGPT's own model and optimizer: the same weights and batches give the same losses."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gpt2.data.batches import gather, sample_starts
from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.training.import_run import import_run
from gpt2.training.loop import train
from gpt2.training.recipes import resume_config
from gpt2.training.run import Run
from gpt2.training.setup import set_up
from gpt2.training.step import step_learning_rate, train_step

PEER = os.environ.get("GPT2_PEER_NANOGPT", "")
pytestmark = pytest.mark.skipif(not PEER, reason="set GPT2_PEER_NANOGPT to a checkout of nanoGPT")


@pytest.fixture
def peer() -> ModuleType:
    """nanoGPT's model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(PEER) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Theirs:
    """nanoGPT's model and optimizer, trained as its train.py does on the batches of one of our runs."""

    def __init__(self, peer: ModuleType, run: Run) -> None:
        shape = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias")
        self.args = {name: getattr(run.model.config, name) for name in shape} | {"dropout": 0.0}
        self.run = run
        torch.manual_seed(1)
        self.model = peer.GPT(peer.GPTConfig(**self.args))
        config = run.config
        betas = (config.beta1, config.beta2)
        self.optimizer = self.model.configure_optimizers(config.weight_decay, 1.0, betas, "cpu")

    def update(self, step: int) -> float:
        """Make update number `step`; its loss."""
        run, config = self.run, self.run.config
        starts = sample_starts(run.batches.tokens.lengths, config.block_size, "random", config.seed, step, 8, 4)
        their_loss = 0.0
        for rows in (starts[:4], starts[4:]):
            x, y = gather(run.batches.tokens, rows, config.block_size, run.device)
            _, loss = self.model(x.contiguous(), y.contiguous())
            (loss / 2).backward()
            their_loss += loss.item() / 2
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = step_learning_rate(config, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return their_loss

    def save(self, path: Path, step: int) -> None:
        """A checkpoint as its train.py saves it."""
        names = ("batch_size", "gradient_accumulation_steps", "seed", "beta2", "max_iters", "warmup_iters", "min_lr")
        settings = {name: getattr(self.run.config, name) for name in names}
        values = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model_args": self.args,
            "iter_num": step,
            "best_val_loss": torch.tensor(2.5),
            "config": settings | {"dataset": "words", "learning_rate": self.run.config.learning_rate},
        }
        torch.save(values, path)


def a_run(tiny, **changes: object) -> Run:
    settings = {"gelu": "erf", "max_iters": 60, "n_embd": 32, "gradient_accumulation_steps": 2}
    return set_up(tiny(**settings | changes), lambda line: None)


@pytest.mark.parametrize("bias", [True, False])
def test_sixty_updates_give_nanogpts_losses(tiny, peer: ModuleType, bias: bool) -> None:
    run = a_run(tiny, bias=bias)
    theirs = Theirs(peer, run)
    run.model.load_state_dict({k: v.clone() for k, v in theirs.model.state_dict().items() if k != "lm_head.weight"})
    for step in range(60):
        their_loss = theirs.update(step)
        assert train_step(run).loss.item() == pytest.approx(their_loss, abs=2e-5), f"update {step}"
        run.state.step += 1
    assert their_loss < 2.6  # from about 3: both have learnt


@pytest.mark.parametrize("bias", [True, False])
def test_its_run_goes_on_here_as_it_goes_on_there(tiny, peer: ModuleType, bias: bool, tmp_path: Path) -> None:
    theirs = Theirs(peer, a_run(tiny, bias=bias))
    for step in range(30):
        theirs.update(step)
    theirs.save(tmp_path / "ckpt.pt", step=30)
    dataset = theirs.run.config.dataset
    import_run(open_model(str(tmp_path / "ckpt.pt"), tokenizer=dataset), tmp_path / "here", lambda line: None)
    ours = set_up(
        resume_config(tmp_path / "here", dataset=dataset, compile=False, device="cpu", dtype="float32"),
        lambda line: None,
    )
    assert ours.state.step == 30
    for step in range(30, 60):
        assert train_step(ours).loss.item() == pytest.approx(theirs.update(step), abs=2e-5), f"update {step}"
        ours.state.step += 1


@pytest.mark.parametrize("bias", [True, False])
def test_our_run_goes_on_there_as_it_goes_on_here(tiny, peer: ModuleType, bias: bool, tmp_path: Path) -> None:
    config = a_run(tiny, bias=bias, max_iters=30, lr_decay_iters=60).config
    train(replace(config, out_dir=str(tmp_path / "run")))
    export(
        open_model(str(tmp_path / "run" / "checkpoints" / "step_0000030")),
        "nanogpt",
        tmp_path / "n",
        lambda line: None,
    )
    ours = set_up(resume_config(tmp_path / "run", max_iters=60), lambda line: None)
    theirs = Theirs(peer, ours)
    saved = torch.load(tmp_path / "n" / "ckpt.pt")
    theirs.model.load_state_dict(saved["model"])
    theirs.optimizer.load_state_dict(saved["optimizer"])
    for step in range(30, 60):
        assert train_step(ours).loss.item() == pytest.approx(theirs.update(step), abs=2e-5), f"update {step}"
        ours.state.step += 1
