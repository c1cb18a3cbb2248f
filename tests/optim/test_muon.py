import math

import pytest
import torch
from torch import Tensor

from gpt2.chunked_loss import TrainingLoss
from gpt2.model import GPT, GPTConfig
from gpt2.optim import muon as module
from gpt2.optim.muon import Muon, orthogonalized
from gpt2.optim.optimizers import load_named_state, make_optimizers, named_state, update

CONFIG = GPTConfig(block_size=4, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
SETTINGS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


@pytest.mark.parametrize(("iterations", "off"), [(3, 0.87), (4, 0.57), (5, 0.125)])
@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_what_comes_out_is_about_orthogonal_with_the_same_singular_vectors(
    shape: tuple[int, int], iterations: int, off: float
) -> None:
    u, _, v = torch.linalg.svd(random(*shape).double(), full_matrices=False)
    matrix = u @ torch.logspace(1, -1.5, min(shape)).double().diag() @ v
    found = u.T @ orthogonalized(matrix[None], iterations, torch.float64)[0] @ v.T
    assert (found - found.diag().diag()).abs().max() < 1e-10
    assert 1 - off < found.diag().min() <= found.diag().max() < 1 + off


def test_matrices_of_many_shapes_are_computed_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STACK", 2 * 32)
    matrices = [random(8, 4), random(4, 8) + 1, random(8, 4) - 1, random(6, 6), random(4, 8), random(8, 4) * 2]
    parameters, alone = ([torch.nn.Parameter(m.clone()) for m in matrices] for _ in range(2))
    for parameter in (*parameters, *alone):
        parameter.grad = parameter.detach() ** 2
    Muon([{"params": parameters}], **SETTINGS).step()
    for parameter in alone:
        Muon([{"params": [parameter]}], **SETTINGS).step()
    for matrix, parameter, found in zip(matrices, alone, parameters, strict=True):
        torch.testing.assert_close(found, parameter)
        assert not torch.equal(found, matrix)


@pytest.mark.parametrize("shape", [(24, 24), (12, 48), (48, 12)])
def test_updates_are_those_of_pytorchs_muon(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With its coefficients, which are the same in every iteration."""
    monkeypatch.setattr(module, "COEFFICIENTS", [(3.4445, -4.7750, 2.0315)] * 5)
    monkeypatch.setattr(module, "MARGIN", 1.0)
    mine, theirs = torch.nn.Parameter(random(*shape)), torch.nn.Parameter(random(*shape))
    ours = Muon([{"params": [mine]}], dtype=torch.bfloat16, **SETTINGS)
    reference = torch.optim.Muon([theirs], nesterov=True, **SETTINGS)
    for step in range(3):
        mine.grad = random(*shape, 3)[..., step].clone()
        theirs.grad = mine.grad.clone()
        before = theirs.detach().clone()
        ours.step()
        reference.step()
        change = (theirs - before).norm()
        assert (mine - theirs).norm() < 0.03 * change  # bfloat16 has two digits
        theirs.data.copy_(mine)


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    model = GPT(CONFIG)
    [_, optimizer] = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon={"lr": 1.0})
    weight = model.transformer.h[0].attn.c_attn.weight
    before = weight.detach().clone()
    weight.grad = random(24, 8) * torch.tensor([1e-3, 1.0, 1e3]).repeat_interleave(8)[:, None]
    optimizer.step()
    for change in (before - weight.detach()).split(8):
        assert 0.87 < torch.linalg.svdvals(change).min() <= torch.linalg.svdvals(change).max() < 1.13


def test_muon_has_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = GPT(CONFIG)
    adamw, muon = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    names = [name for group in muon.param_groups for name in group["param_names"]]
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert sorted(names) == sorted(f"transformer.h.{i}.{kind}.weight" for i in (0, 1) for kind in kinds)
    rest = [name for group in adamw.param_groups for name in group["param_names"]]
    assert sorted(names + rest) == sorted(name for name, _ in model.named_parameters())


def test_both_follow_one_schedule() -> None:
    optimizers = make_optimizers(GPT(CONFIG), 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    for share in (0.5, 0.25, 1.0):
        update(optimizers, torch.amp.GradScaler("cpu", enabled=False), share, torch.tensor(False))
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * share] * 2 + [0.02 * share] * 2)


def train(model: GPT, optimizers: list[torch.optim.Optimizer], bad: float = 0.0) -> None:
    idx = torch.tensor([[1, 2, 3]])
    (TrainingLoss(model)(idx, idx) * (1 + bad)).backward()
    skip = torch.tensor(not math.isfinite(bad))
    update(optimizers, torch.amp.GradScaler("cpu", enabled=False), 1.0, skip)


def everything(model: GPT, optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *named_state(optimizers).values())]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = GPT(CONFIG)
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    train(model, optimizers)
    before = everything(model, optimizers)
    train(model, optimizers, bad)
    assert all(map(torch.equal, before, everything(model, optimizers)))
    train(model, optimizers)
    assert not any(map(torch.equal, before[:3], everything(model, optimizers)[:3]))


@pytest.mark.parametrize("overflowing", ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"])
def test_with_a_gradient_scaler_an_overflow_anywhere_changes_nothing(overflowing: str) -> None:
    """Neither in the weights that Muon updates nor in AdamW's. The other steps are those without a scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(model: GPT, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler, bad: bool) -> None:
        idx = torch.tensor([[1, 2, 3]])
        scaler.scale(TrainingLoss(model)(idx, idx)).backward()
        if bad:
            gradient = model.get_parameter(overflowing).grad
            assert gradient is not None
            gradient[0, 0] = math.inf
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # makes every gradient 0 or NaN where one is infinite
        update(optimizers, scaler, 1.0, torch.tensor(False))

    model, twin = GPT(CONFIG), GPT(CONFIG)
    twin.load_state_dict(model.state_dict())
    pairs = [(m, make_optimizers(m, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)) for m in (model, twin)]
    for bad in (False, True, False):
        before = everything(*pairs[0])
        step(*pairs[0], scaler, bad)
        if bad:
            assert all(map(torch.equal, before, everything(*pairs[0])))
        else:
            step(*pairs[1], torch.amp.GradScaler("cpu", enabled=False), False)
        assert all(map(torch.equal, everything(*pairs[0]), everything(*pairs[1])))
    assert scaler.get_scale() == 512.0


def test_its_state_goes_out_and_in_by_name() -> None:
    model = GPT(CONFIG)
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    train(model, optimizers)
    twin = GPT(CONFIG)
    twin.load_state_dict(model.state_dict())
    twins = make_optimizers(twin, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    load_named_state(twins, {name: tensor.clone() for name, tensor in named_state(optimizers).items()})
    train(model, optimizers)
    train(twin, twins)
    assert all(map(torch.equal, everything(model, optimizers), everything(twin, twins)))


def test_state_that_is_not_there_to_load_is_begun_anew() -> None:
    model = GPT(CONFIG)
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon=SETTINGS)
    train(model, optimizers)
    load_named_state(optimizers, {})
    assert named_state(optimizers) == {}


def test_the_flag_to_skip_a_step_has_arrived_where_the_parameters_are() -> None:
    """As with parameters in CPU memory, whose optimizer would read a copy that is still under way."""
    parameter = torch.nn.Parameter(torch.zeros(4, 4, device="meta"))
    optimizer = Muon([{"params": [("w", parameter)]}])
    update([optimizer], torch.amp.GradScaler("cpu", enabled=False), 1.0, torch.tensor(True))
    assert optimizer.found_inf is not None and optimizer.found_inf.device == parameter.device
