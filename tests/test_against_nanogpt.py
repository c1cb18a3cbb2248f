"""Training beside nanoGPT's own model and optimizer: the same weights and batches give the same losses."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from gpt2.data.batches import gather, sample_starts
from gpt2.formats.open import build
from gpt2.formats.source import Source, Stored
from gpt2.model import GPTConfig
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.setup import set_up
from gpt2.training.step import step_learning_rate, train_step

PEER = os.environ.get("GPT2_PEER_NANOGPT", "")
pytestmark = pytest.mark.skipif(not PEER, reason="set GPT2_PEER_NANOGPT to a checkout of nanoGPT")


@pytest.mark.parametrize("bias", [True, False])
def test_sixty_updates_give_nanogpts_losses(tiny, bias: bool) -> None:
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(PEER) / "model.py")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)

    run = set_up(
        tiny(bias=bias, gelu="erf", max_iters=60, n_embd=32, gradient_accumulation_steps=2), lambda line: None
    )
    config = run.config
    shape = {k: getattr(run.model.config, k) for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    torch.manual_seed(1)
    theirs = peer.GPT(peer.GPTConfig(**shape, bias=bias, dropout=0.0))
    weights = {k: v.clone() for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    tensors = {name: Stored.of(t) for name, t in weights.items()}
    source = Source(GPTConfig(**shape, bias=bias, gelu="erf"), tensors, ByteTokenizer, "nanoGPT")
    run.model.load_state_dict(build(source).state_dict())
    optimizer = theirs.configure_optimizers(config.weight_decay, 1.0, (config.beta1, config.beta2), "cpu")

    for step in range(60):
        starts = sample_starts(run.train_tokens, config.block_size, "random", config.seed, step, 8)
        their_loss = 0.0
        for rows in (starts[:4], starts[4:]):
            x, y = gather(run.train_tokens, rows, config.block_size, run.device)
            _, loss = theirs(x.contiguous(), y.contiguous())
            (loss / 2).backward()
            their_loss += loss.item() / 2
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = step_learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert train_step(run).loss.item() == pytest.approx(their_loss, abs=2e-5), f"update {step}"
        run.state.step += 1
    assert their_loss < 2.6  # from about 3: both have learnt
