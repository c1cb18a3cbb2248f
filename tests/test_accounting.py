import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from gpt2 import accounting, chunked_loss
from gpt2.chunked_loss import TrainingLoss
from gpt2.model import GPT, PRESETS, GPTConfig
from gpt2.optim.optimizers import make_optimizers, named_state
from gpt2.training.compile import recompute_activations

NANOGPT_DEFAULT = GPTConfig(vocab_size=50304, bias=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_formula_counts_the_parameters_of_the_model(name: str, bias: bool) -> None:
    config = GPTConfig.preset(name, bias=bias)
    with torch.device("meta"):
        assert accounting.num_params(config) == GPT(config).get_num_params(non_embedding=False)


def test_nanogpts_counts() -> None:
    assert accounting.num_params(NANOGPT_DEFAULT) == 124_373_760
    small = GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, bias=False)
    assert accounting.num_params(small) == 804_096


def test_nanogpts_flops_and_mfu() -> None:
    assert accounting.flops_per_token(NANOGPT_DEFAULT) == 854_770_176
    assert accounting.flops_per_token(GPTConfig()) == 855_166_464
    # 240 sequences of 1024 tokens in 2.7 s on an A100
    assert accounting.mfu(NANOGPT_DEFAULT, 240 * 1024 / 2.7, 312e12) == pytest.approx(0.249368849067, abs=1e-12)
    # a device that was busy while its peak was measured
    assert accounting.mfu(NANOGPT_DEFAULT, 240 * 1024 / 2.7, 312e11) == 1.0


def kept_for_backward(config: GPTConfig, half: bool, compiled: bool, recomputes: bool) -> int:
    """Bytes of what autograd keeps from a forward pass of 4 sequences, without the weights; the model is one graph.

    `half` is float16: PyTorch's bfloat16 attention does not run on an AMX processor without AVX-512.
    """
    model = GPT(config)
    forward: Any = TrainingLoss(model)
    if compiled:
        recompute_activations(recomputes)
        torch._dynamo.reset()
        forward = torch.compile(forward, fullgraph=True, backend="aot_eager_decomp_partition")
    sizes = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)
        return tensor

    idx = torch.zeros(4, config.block_size, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.float16, half):
        forward(idx, idx)
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("half", "compiled", "recomputes"),
    [
        (False, False, False),
        (False, True, True),
        (False, True, False),
        (True, False, False),
        (True, True, True),  # without recomputation, code compiled for a CPU keeps more than for a GPU
    ],
)
def test_a_block_keeps_what_the_arithmetic_says(half: bool, compiled: bool, recomputes: bool) -> None:
    shape = {"block_size": 64, "vocab_size": 100, "n_head": 4, "n_embd": 64}
    shallow, deep = (GPTConfig(**shape, n_layer=n) for n in (2, 3))
    kept = [kept_for_backward(config, half, compiled, recomputes) for config in (deep, shallow)]
    options: dict[str, Any] = {"half": half, "compiled": compiled, "recomputes": recomputes}
    counted = [accounting.memory(c, accounting.Sharing(), 4, **options).activations for c in (deep, shallow)]
    assert counted[0] - counted[1] == pytest.approx(kept[0] - kept[1], rel=0.02)


def peak_of_tensors(config: GPTConfig, half: bool) -> int:
    """Bytes of the tensors of a forward pass of 8 sequences, at their largest, without the weights."""
    loss_of = TrainingLoss(GPT(config))
    idx = torch.zeros(8, config.block_size, dtype=torch.long)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:  # noqa: SIM117
        with torch.autocast("cpu", torch.float16, half):
            loss_of(idx, idx)
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("half", [False, True])
def test_a_forward_pass_needs_what_the_arithmetic_says(
    half: bool, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GPTConfig(block_size=64, vocab_size=4000, n_layer=2, n_head=4, n_embd=32)
    monkeypatch.setitem(chunked_loss.MAX_CHUNK_LOGITS, "cpu", 4000 * 512 // chunks)
    counted = accounting.memory(config, accounting.Sharing(), 8, half=half, accumulates=False, device="cpu")
    assert counted.activations + counted.logits == pytest.approx(peak_of_tensors(config, half), rel=0.06)
    assert counted.gradients == 0


def test_gradients_exist_with_activations_if_they_are_accumulated() -> None:
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=64)
    kinds = [accounting.memory(config, accounting.Sharing(), 1, half=False, accumulates=a) for a in (True, False)]
    passing = kinds[1].activations + kinds[1].logits
    assert kinds[0].gradients == 4 * accounting.num_params(config)
    assert kinds[1].gradients + passing == max(4 * accounting.num_params(config), passing)


def test_state_of_a_parameter_takes_sixteen_bytes_until_it_is_shared() -> None:
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16)
    n = accounting.num_params(config)

    def state(**sharing: Any) -> tuple[int, int, int]:
        found = accounting.memory(config, accounting.Sharing(**sharing), 1, half=False)
        return found.parameters, found.gradients, found.optimizer

    assert state() == state(processes=1, parallel="fsdp") == (4 * n, 4 * n, 8 * n)
    assert state(processes=4) == (4 * n, 4 * n, 8 * n)
    assert state(processes=4, parallel="fsdp") == (n, n, 2 * n)  # 4 divides every first dimension
    assert state(processes=2, zero_stage=1)[:2] == (4 * n, 4 * n)
    assert 4 * n <= state(processes=2, zero_stage=1)[2] < 4.1 * n


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimizers_state_is_as_large_as_counted(kind: Literal["adamw", "muon"]) -> None:
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16)
    model = GPT(config)
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon={"lr": 0.02} if kind == "muon" else None)
    idx = torch.tensor([[1, 2, 3]])
    TrainingLoss(model)(idx, idx).backward()
    for optimizer in optimizers:
        optimizer.step()
    kept = sum(t.nbytes for t in named_state(optimizers).values() if t.dim())
    assert kept == accounting.memory(config, accounting.Sharing(), 1, half=False, optimizer=kind).optimizer
    shared = accounting.memory(config, accounting.Sharing(2, zero_stage=1), 1, half=False, optimizer=kind)
    assert kept / 2 <= shared.optimizer < 0.55 * kept  # the token embedding is in one of the two


def test_the_fullest_of_several_shares() -> None:
    assert accounting.largest_zero_share([5, 3, 3, 2], 2) == 7
    assert accounting.largest_zero_share([5, 3, 3, 2], 9) == 5


def test_the_plan_in_the_docs_is_the_one_that_the_arithmetic_gives() -> None:
    root = Path(__file__).parent.parent
    script = [sys.executable, str(root / "benchmarks" / "plan_table.py")]
    table = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert table in (root / "docs" / "distributed.md").read_text()


def test_bytes_sent() -> None:
    config = GPTConfig()
    half = 4 * accounting.num_params(config) / 2
    for sharing, micro_batches, times in (
        (accounting.Sharing(2), 5, 2),
        (accounting.Sharing(2, zero_stage=1), 5, 3),
        (accounting.Sharing(2, "fsdp"), 5, 11),
    ):
        assert accounting.communication(config, sharing, micro_batches) == times * half
    assert accounting.communication(config, accounting.Sharing(), 5) == 0
