import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gpt2 import chunked_loss
from gpt2.chunked_loss import TrainingLoss
from gpt2.errors import UserError
from gpt2.generation.kv_cache import KVCache, KVMemory
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizers import make_optimizers
from gpt2.training.compile import checkpoint_activations

TOY = GPTConfig(block_size=4, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
# The tensors of a GPT-2 in the order of llm.c's model file, all layers of one kind together.
LLMC_ORDER = [
    "wte.weight", "wpe.weight", "h.{}.ln_1.weight", "h.{}.ln_1.bias", "h.{}.attn.c_attn.weight",
    "h.{}.attn.c_attn.bias", "h.{}.attn.c_proj.weight", "h.{}.attn.c_proj.bias", "h.{}.ln_2.weight",
    "h.{}.ln_2.bias", "h.{}.mlp.c_fc.weight", "h.{}.mlp.c_fc.bias", "h.{}.mlp.c_proj.weight",
    "h.{}.mlp.c_proj.bias", "ln_f.weight", "ln_f.bias",
]  # fmt: skip


def toy_model(**changes) -> GPT:
    """The toy model of the specification's test vector: every scalar given by its number, in float64."""
    model = GPT(replace(TOY, **changes)).double()
    parameters = dict(model.named_parameters())
    k = 0
    for kind in LLMC_ORDER:
        for layer in range(TOY.n_layer) if "{}" in kind else [0]:
            parameter = parameters["transformer." + kind.format(layer)]
            numbers = torch.arange(k, k + parameter.numel(), dtype=torch.float64)
            values = ((7919 * numbers) % 1009 / 1009 - 0.5) * 0.4
            if "ln_" in kind and kind.endswith("weight"):
                values = values + 1.0
            parameter.data = values.view_as(parameter)
            k += parameter.numel()
    assert k == 1880
    return model


IDX, TARGETS = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]])


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("pad_vocab", [1, 8])
@pytest.mark.parametrize(("gelu", "loss"), [("tanh", 2.654922545546), ("erf", 2.654926169268)])
def test_toy_model_has_the_published_loss(flash: bool, pad_vocab: int, gelu: str, loss: float) -> None:
    model = toy_model(flash=flash, pad_vocab=pad_vocab, gelu=gelu)
    assert TrainingLoss(model)(IDX, TARGETS).item() == pytest.approx(loss, abs=1e-11)
    logits, forward_loss = model(IDX, TARGETS)
    assert forward_loss.item() == pytest.approx(loss, abs=1e-6)
    assert logits.shape == (1, 4, 11)
    if gelu == "tanh":
        expected = [0.1982217887, -0.3654025188, 0.4770819950]
        assert logits[0, 3, :3].tolist() == pytest.approx(expected, abs=1e-9)


def test_toy_model_has_the_published_gradients_and_first_update() -> None:
    model = toy_model()
    [optimizer] = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1)
    TrainingLoss(model)(IDX, TARGETS).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    assert norm.item() == pytest.approx(2.514224788071, abs=1e-11)
    t = model.transformer
    assert t.wte.weight.grad[1, 0].item() == pytest.approx(0.076848778472, abs=1e-11)
    assert t.wpe.weight.grad[0, 0].item() == pytest.approx(0.097734678238, abs=1e-11)
    assert t.h[0].attn.c_attn.weight.grad[0, 0].item() == pytest.approx(0.005740333562, abs=1e-11)
    assert t.h[1].mlp.c_proj.weight.grad[7, 31].item() == pytest.approx(-0.002239494201, abs=1e-11)
    assert t.ln_f.bias.grad[7].item() == pytest.approx(0.032022947412, abs=1e-11)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert TrainingLoss(model)(IDX, TARGETS).item() == pytest.approx(2.589540034977, abs=1e-9)
    assert t.wte.weight[1, 0].item() == pytest.approx(0.113755619752, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert GPT(GPTConfig.preset(name, pad_vocab=64)).get_num_params(non_embedding=False) == parameters


def test_unknown_preset_is_named() -> None:
    with pytest.raises(UserError, match="gpt3"):
        GPTConfig.preset("gpt3")


def test_parameter_names_are_hugging_faces() -> None:
    names = set(dict(GPT(TOY).named_parameters()))
    assert names == {"transformer." + kind.format(i) for kind in LLMC_ORDER for i in range(TOY.n_layer)}


def test_initialisation_has_gpt2s_spread() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=512, n_layer=4, n_head=4, n_embd=128))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            expected = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(p.mean().item()) < 0.1 * expected, name
        else:
            assert torch.equal(p, torch.zeros_like(p) if name.endswith("bias") else torch.ones_like(p)), name


def test_flash_and_explicit_attention_agree() -> None:
    torch.manual_seed(0)
    flash = GPT(GPTConfig(block_size=32, vocab_size=50, n_layer=2, n_head=4, n_embd=32)).double()
    explicit = GPT(replace(flash.config, flash=False)).double()
    explicit.load_state_dict(flash.state_dict())
    idx = torch.randint(0, 50, (3, 32))
    assert torch.allclose(flash.hidden(idx), explicit.hidden(idx), rtol=0, atol=1e-12)


def test_no_position_sees_a_later_one() -> None:
    torch.manual_seed(0)
    model = GPT(TOY).double()
    changed = IDX.clone()
    changed[0, -1] = 9
    before, after = model.hidden(IDX), model.hidden(changed)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def packed_model(flash: bool) -> GPT:
    """A model for rows of 8 tokens, the same for either attention."""
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=16, flash=flash)).double()


def packed_rows(begins: list[list[bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids in which 0 stands where a document begins, and the number of each token's document."""
    idx = torch.arange(1, 17).view(2, 8).masked_fill(torch.tensor(begins), 0)
    return idx, torch.tensor([[sum(row[: t + 1]) for t in range(8)] for row in begins])


def written_out(model: GPT, idx: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Final hidden states of one row at a time, each position attending by itself, in float64."""

    def norm(x: torch.Tensor, ln) -> torch.Tensor:
        centred = x - x.mean()
        return centred / torch.sqrt((centred**2).mean() + 1e-5) * ln.weight + ln.bias

    t, head_size = model.transformer, model.config.n_embd // model.config.n_head
    result = []
    for row, numbers in zip(idx.tolist(), documents.tolist(), strict=True):
        xs = [t.wte.weight[token] + t.wpe.weight[i] for i, token in enumerate(row)]
        for block in t.h:
            qkv = [block.attn.c_attn.weight @ norm(x, block.ln_1) + block.attn.c_attn.bias for x in xs]
            qs, ks, vs = zip(*((p.view(3, -1, head_size)) for p in qkv), strict=True)
            for i in range(len(xs)):
                seen = [j for j in range(i + 1) if numbers[j] == numbers[i]]
                heads = []
                for h in range(model.config.n_head):
                    powers = [torch.exp(qs[i][h] @ ks[j][h] / head_size**0.5) for j in seen]
                    heads.append(sum(p * vs[j][h] for p, j in zip(powers, seen, strict=True)) / sum(powers))
                xs[i] = xs[i] + block.attn.c_proj.weight @ torch.cat(heads) + block.attn.c_proj.bias
            for i, x in enumerate(xs):
                inner = block.mlp.c_fc.weight @ norm(x, block.ln_2) + block.mlp.c_fc.bias
                gelu = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
                xs[i] = x + block.mlp.c_proj.weight @ gelu + block.mlp.c_proj.bias
        result.append(torch.stack([norm(x, t.ln_f) for x in xs]))
    return torch.stack(result)


def within(documents: torch.Tensor) -> torch.Tensor:
    """The mask that keeps attention inside the documents with these numbers, written out from its definition."""
    B, T = documents.shape
    mask = torch.zeros(B, 1, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(i + 1):
                mask[b, 0, i, j] = documents[b, i] == documents[b, j]
    return mask


PLACES = st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=2, max_size=2)
BEGINS = [[t in places for t in range(8)] for places in ([], [0], [7], [3], [0, 7], [2, 3, 4], [0, 1], range(8))]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("begins", BEGINS)
@torch.no_grad()
def test_documents_are_masked_as_worked_out_position_by_position(begins: list[bool], flash: bool) -> None:
    model = packed_model(flash)
    for p in model.parameters():
        p.mul_(5)  # as initialised, attention is nearly even
    idx, documents = packed_rows([begins, begins[::-1]])
    expected = written_out(model, idx, documents)
    assert torch.allclose(model.hidden(idx, mask=within(documents)), expected, rtol=0, atol=1e-11)
    _, loss = model(idx, idx.roll(-1, 1), mask=within(documents))
    assert loss.item() == pytest.approx(
        F.cross_entropy(model.head(expected).flatten(0, 1), idx.roll(-1, 1).flatten()).item(), rel=1e-6
    )


@pytest.mark.parametrize("flash", [True, False])
@given(begins=PLACES)
@torch.no_grad()
def test_a_document_sees_no_earlier_one(begins: list[list[bool]], flash: bool) -> None:
    """Bit for bit, whatever the earlier ones hold; without the mask it does."""
    model = packed_model(flash)
    idx, documents = packed_rows(begins)
    before, unmasked = model.hidden(idx, mask=within(documents)), model.hidden(idx)
    for number in range(1, int(documents.max()) + 1):
        earlier, here = documents < number, documents == number
        changed = torch.where(earlier, (idx + 1) % 20, idx)
        assert torch.equal(model.hidden(changed, mask=within(documents))[here], before[here])
        seen = here & earlier.any(dim=1, keepdim=True)  # a row may have none before this one
        assert (model.hidden(changed)[seen] != unmasked[seen]).any(dim=-1).all()


@given(begins=PLACES)
def test_flash_and_explicit_attention_agree_on_documents(begins: list[list[bool]]) -> None:
    """And so do their gradients."""
    idx, documents = packed_rows(begins)
    flash, explicit = packed_model(True), packed_model(False)
    losses = [m(idx, idx.roll(-1, 1), mask=within(documents))[1] for m in (flash, explicit)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(flash.named_parameters(), explicit.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=0, atol=1e-6), name  # the loss is in float32


def test_without_documents_attention_is_the_causal_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask would cost the fast path."""
    asked = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, mask, dropout, is_causal: (
            asked.append({"mask": mask, "is_causal": is_causal}) or attention(q, k, v, mask, dropout, is_causal)
        ),
    )
    model = packed_model(True)
    idx, documents = packed_rows(BEGINS[3:5])
    model(idx)
    assert asked == [{"mask": None, "is_causal": True}] * 2
    model(idx, mask=within(documents))
    first, second = (how["mask"] for how in asked[2:])
    assert first is second  # made once for all layers
    assert first.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.1}, {"flash": False}, {"pad_vocab": 8}, {"mask": True}, {"checkpoint_activations": True}],
)
def test_model_and_loss_are_one_graph(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits in several parts, in float32 and under autocast."""
    monkeypatch.setitem(chunked_loss.MAX_CHUNK_LOGITS, "cpu", 3 * 20)
    config = GPTConfig(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=16)
    model = GPT(replace(config, **{k: v for k, v in settings.items() if k in ("dropout", "flash", "pad_vocab")}))
    if "checkpoint_activations" in settings:
        checkpoint_activations(model.transformer.h)
    idx = torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(0))
    loss_of = TrainingLoss(model, int(idx[0, 3]) if "mask" in settings else None)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    for half in (False, True):
        with torch.autocast("cpu", enabled=half):
            torch.manual_seed(1)
            expected = loss_of(idx, idx)
            torch.manual_seed(1)
            loss = compiled(idx, idx)
        loss.backward()
        if "dropout" not in settings:
            assert loss.item() == pytest.approx(expected.item(), abs=1e-2 if half else 1e-5)


def test_documents_can_be_compiled() -> None:
    """In one graph; the rest of the compiler is PyTorch's, and is tried when a run begins."""
    model = packed_model(True)
    idx, documents = packed_rows(BEGINS[3:5])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for numbers in (documents, documents.flip(0)):
        _, loss = compiled(idx, idx, mask=within(numbers))
        assert loss.item() == pytest.approx(model(idx, idx, mask=within(numbers))[1].item(), abs=1e-6)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("pieces", [[1] * 8, [5, 1, 1, 1], [3, 3, 2], [8]])
def test_cache_gives_the_same_hidden_states_in_any_pieces(pieces: list[int], flash: bool) -> None:
    torch.manual_seed(0)
    config = GPTConfig(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=16, flash=flash)
    model = GPT(config).double()
    idx = torch.randint(0, 20, (2, 8))
    cache = KVMemory(config, 2, torch.device("cpu"), torch.float64)
    chunks, start = [], 0
    for chunk in idx.split(pieces, dim=1):
        window = KVCache.even(cache, 0, 2, start, chunk.size(1))
        chunks.append(model.hidden(chunk, window.mask, window, window.positions))
        start += chunk.size(1)
    assert torch.allclose(torch.cat(chunks, dim=1), model.hidden(idx), rtol=0, atol=1e-12)


def test_padded_vocabulary_changes_no_loss_and_adds_no_parameter() -> None:
    torch.manual_seed(0)
    plain = GPT(TOY).double()
    padded = GPT(replace(TOY, pad_vocab=64)).double()
    padded.load_state_dict(plain.state_dict())
    for model in (plain, padded):
        TrainingLoss(model)(IDX, TARGETS).backward()
    logits, _ = padded(IDX)
    assert logits.shape == (1, 1, 11)
    for (name, p), q in zip(plain.named_parameters(), padded.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=0, atol=1e-14), name


def test_ignored_targets_do_not_count() -> None:
    model = GPT(TOY)
    _, first_two = model(IDX[:, :2], TARGETS[:, :2])
    _, masked = model(IDX, torch.tensor([[2, 3, -1, -1]]))
    assert masked.item() == pytest.approx(first_two.item(), abs=1e-6)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = GPT(replace(TOY, dropout=0.5))
    assert not torch.equal(model.hidden(IDX), model.hidden(IDX))
    model.eval()
    assert torch.equal(model.hidden(IDX), model.hidden(IDX))


def test_crop_keeps_the_first_positions() -> None:
    model = GPT(TOY)
    before = model.hidden(IDX[:, :2])
    model.crop_block_size(2)
    assert torch.equal(model.hidden(IDX[:, :2]), before)
    assert model.transformer.wpe.weight.shape == (2, 8)
    assert model.config.block_size == 2
    with pytest.raises(UserError, match="block_size=8"):
        model.crop_block_size(8)


@pytest.mark.parametrize(
    "change",
    [
        *({"n_head": 3}, {"n_layer": 0}, {"dropout": 1.0}, {"gelu": "relu"}),
        *(
            {"n_layer": 2.0},
            {"n_layer": "2"},
            {"n_embd": None},
            {"n_head": True},
            {"dropout": "0.1"},
            {"bias": "False"},
            {"flash": 1},
        ),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(TOY, **change)


@pytest.mark.parametrize("shape", [(4, 1), (4,), (1, 3), (1, 4, 11)])
def test_targets_have_the_shape_of_the_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=r"^targets \(.*\) must have the shape of idx, \(1, 4\)$"):
        GPT(TOY)(IDX, torch.zeros(shape, dtype=torch.int64))
