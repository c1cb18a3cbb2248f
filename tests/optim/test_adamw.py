import pytest
import torch

from gpt2.model import GPT, GPTConfig
from gpt2.optim.adamw import adamw, load_named_state, named_state, parameter_groups


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
        groups = parameter_groups(GPT(config), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    sizes = [(len(g["params"]), sum(p.numel() for _, p in g["params"])) for g in groups]
    assert sizes == [decayed, kept]


def test_state_goes_out_and_in_by_name() -> None:
    config = GPTConfig(block_size=4, vocab_size=7, n_layer=1, n_head=1, n_embd=4)
    idx = torch.tensor([[1, 2, 3]])

    def update(model: GPT, optimizer: torch.optim.Optimizer) -> None:
        model(idx, idx)[1].backward()
        optimizer.step()
        optimizer.zero_grad()

    model = GPT(config)
    optimizer = adamw(model, 1e-2, (0.9, 0.95), 0.1)
    update(model, optimizer)
    twin = GPT(config)
    twin.load_state_dict(model.state_dict())
    twin_optimizer = adamw(twin, 1e-2, (0.9, 0.95), 0.1)
    load_named_state(twin_optimizer, {k: v.clone() for k, v in named_state(optimizer).items()})
    update(model, optimizer)
    update(twin, twin_optimizer)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
