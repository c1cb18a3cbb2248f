import math

import pytest
import torch

from gpt2.model import GPT, GPTConfig
from gpt2.optim import adamw
from gpt2.optim.adamw import AdamW, parameter_groups
from gpt2.optim.optimizers import load_named_state, make_optimizers, named_state, update


@pytest.mark.parametrize(
    ("config", "decayed", "kept"),
    [
        (GPTConfig.preset("gpt2"), (50, 124_318_464), (98, 121_344)),
        (GPTConfig.preset("gpt2-medium"), (98, 354_501_632), (194, 321_536)),
        (GPTConfig(vocab_size=50304, bias=False), (50, 124_354_560), (25, 19_200)),
    ],
)
def test_decay_groups_have_the_peers_sizes(config: GPTConfig, decayed: tuple, kept: tuple) -> None:
    with torch.device("meta"):
        groups = parameter_groups(GPT(config).named_parameters(), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    sizes = [(len(g["params"]), sum(p.numel() for _, p in g["params"])) for g in groups]
    assert sizes == [decayed, kept]


def test_state_goes_out_and_in_by_name() -> None:
    config = GPTConfig(block_size=4, vocab_size=7, n_layer=1, n_head=1, n_embd=4)
    idx = torch.tensor([[1, 2, 3]])

    def update(model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
        model(idx, idx)[1].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    model = GPT(config)
    optimizers = make_optimizers(model, 1e-2, (0.9, 0.95), 0.1)
    update(model, optimizers)
    twin = GPT(config)
    twin.load_state_dict(model.state_dict())
    twins = make_optimizers(twin, 1e-2, (0.9, 0.95), 0.1)
    load_named_state(twins, {k: v.clone() for k, v in named_state(optimizers).items()})
    update(model, optimizers)
    update(twin, twins)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name


SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}
SHAPES = ((5, 3), (7,), ())


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def everything(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = [
        optimizer.state[p].get(key, torch.zeros(())) for p in parameters for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    return [t.detach().clone() for t in (*parameters, *state)]


@pytest.mark.parametrize("scaled", [False, True], ids=["as they are", "by a GradScaler"])
def test_updates_are_those_of_pytorchs_adamw(scaled: bool) -> None:
    """Bit for bit, with overflows on the way, which the scaler skips, and a gradient that is missing."""
    found = []
    for kind in (AdamW, torch.optim.AdamW):
        parameters, generator = weights(), torch.Generator().manual_seed(1)
        optimizer = kind(parameters, **SETTINGS)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)
        for step in range(6):
            terms = [(p * torch.randn(p.shape, generator=generator)).sum() for p in parameters[step % 2 :]]
            bad = math.inf if scaled and step == 2 else 1.0
            scaler.scale(torch.stack(terms).sum() * bad).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert all(p.grad is None for p in parameters)
        found.append([*everything(parameters, optimizer), torch.tensor(scaler.get_scale())])
    assert all(map(torch.equal, *found))
    assert found[0][-1] == (4.0 if scaled else 1.0)


def test_a_flagged_update_changes_nothing_where_the_kernel_ignores_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's kernel for Apple's GPUs does up to 2.13."""
    kernel = torch._fused_adamw_

    def deaf(*lists, found_inf, **settings) -> None:
        kernel(*lists, **settings)

    monkeypatch.setattr(torch, "_fused_adamw_", deaf)
    monkeypatch.setattr(adamw, "IGNORE_FOUND_INF", ("cpu",))
    parameters = weights()
    optimizer = AdamW(parameters, **SETTINGS)
    for flag in (0.0, 1.0, 0.0):
        for p in parameters:
            p.grad = torch.full_like(p, math.nan if flag else 1.0)
        before = everything(parameters, optimizer)
        update([optimizer], torch.amp.GradScaler("cpu", enabled=False), 1.0, torch.tensor(flag))
        same = [torch.equal(a, b) for a, b in zip(before, everything(parameters, optimizer), strict=True)]
        assert all(same) if flag else not any(same)
