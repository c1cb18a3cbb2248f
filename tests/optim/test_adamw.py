import pytest
import torch

from gpt2.model import GPT, GPTConfig
from gpt2.optim.adamw import parameter_groups
from gpt2.optim.optimizers import load_named_state, make_optimizers, named_state


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
