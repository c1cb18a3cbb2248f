"""Training on answers alone (loss_after): which tokens have a loss, and how those of a step are averaged."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import curve, final_weights
from torch.nn import functional as F

import gpt2
from gpt2.answers import Answers
from gpt2.chat import MARKERS, TEMPLATE, with_speakers
from gpt2.data.batches import gather
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.evaluation.loss import blocks, measure
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

EOT, USER, ASSISTANT = 256, 257, 258
SPECIAL = SpecialTokens.after(256, ["<|user|>", "<|assistant|>"])
CHAT = BPETokenizer([bytes([b]) for b in range(256)], GPT2_PATTERN, special=SPECIAL)
ANSWERS = Answers.after("<|assistant|>", SPECIAL)
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of questions of 5 to 64 random letters, each answered by its first letter, three times."""
    folder = tmp_path_factory.mktemp("chats")
    letters = torch.randint(97, 123, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    questions = [bytes(letters[i : i + 5 + i % 60]).decode() for i in range(0, 3900, 7)]
    talks = [f"<|user|>{q}<|assistant|>{3 * q[0]}<|endoftext|>" for q in questions]
    (folder / "talks.txt").write_text("".join(talks))
    settings = {"tokenizer": CHAT, "separator": "<|endoftext|>"}
    return str(prepare(folder / "talks.txt", out=folder / "data", note=lambda line: None, **settings))


@pytest.fixture
def chat(tiny: Make, chats: str) -> Make:
    """Makes the configuration of a run on the answers of `chats`, with changes."""
    return lambda **changes: tiny(**{"dataset": chats, "block_size": 32, "loss_after": "<|assistant|>"} | changes)


def silent(line: str) -> None: ...


def test_an_answer_lasts_until_the_next_special_token() -> None:
    sequence = torch.tensor([[7, ASSISTANT, 1, 2, USER, 3, ASSISTANT, 4, EOT, 5, 6], [1] * 5 + [EOT] + [2] * 5])
    found = ANSWERS.only(sequence[:, :-1], sequence[:, 1:])
    assert found.tolist() == [[-1, 1, 2, USER, -1, -1, 4, EOT, -1, -1], [-1] * 10]


@given(st.lists(st.sampled_from([1, 2, EOT, USER, ASSISTANT]), min_size=2, max_size=30))
def test_targets_are_those_of_reading_from_left_to_right(ids: list[int]) -> None:
    expected, inside = [], False
    for token, following in itertools.pairwise(ids):
        inside = token == ASSISTANT if token in (EOT, USER, ASSISTANT) else inside
        expected.append(following if inside else -1)
    sequence = torch.tensor([ids])
    assert ANSWERS.only(sequence[:, :-1], sequence[:, 1:]).tolist() == [expected]


def test_a_step_averages_over_all_its_answers(chat: Make) -> None:
    """Micro-batches have different numbers of them, and one has none. The reference is one batch in float64."""
    run = set_up(chat(batch_size=1, gradient_accumulation_steps=16, grad_clip=0.0), silent)
    model = type(run.model)(run.model.config).double()
    model.load_state_dict(run.model.state_dict())
    x, y = gather(run.batches.tokens, run.batches.starts(0), 32, run.device, ANSWERS)
    counts = (y != -1).sum(dim=1)
    assert counts.min() == 0 < counts.max()
    loss = F.cross_entropy(model.head(model.hidden(x)).flatten(0, 1), y.flatten(), ignore_index=-1)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    result = train_step(run)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm.item() == pytest.approx(torch.sqrt(sum((g**2).sum() for g in grads)).item(), rel=1e-5)


def test_processes_share_a_step_without_changing_it(chat: Make) -> None:
    batches = set_up(chat(gradient_accumulation_steps=4), silent).batches
    alone = list(batches.micro_batches(3, 0, 1, torch.device("cpu")))
    shared = [b for rank in (0, 1) for b in batches.micro_batches(3, rank, 2, torch.device("cpu"))]
    for one, other in zip(alone, shared, strict=True):
        assert (one.number, one.weight) == (other.number, other.weight)
        assert torch.equal(one.y, other.y)
    assert sum(b.weight for b in alone) == pytest.approx(4)
    assert len({b.weight for b in alone}) > 1


def test_the_measured_loss_is_that_of_answers(chat: Make) -> None:
    run = set_up(chat(), silent)
    windows = blocks(run.val_tokens, 32, 0)
    options = {"block_size": 32, "batch_size": 3, "dtype": "float32"}
    found = measure(run.model, run.val_tokens, windows, answers=ANSWERS, **options)
    x, y = gather(run.val_tokens, [w.start for w in windows], 32, run.device, ANSWERS)
    losses = F.cross_entropy(
        run.model.head(run.model.hidden(x)).transpose(1, 2), y, ignore_index=-1, reduction="none"
    )
    assert found.mean == pytest.approx((losses.sum() / (y != -1).sum()).item(), rel=1e-6)
    assert found.counts.tolist() == (y != -1).sum(dim=0).tolist()
    assert found.ids.tolist() == torch.bincount(y[y != -1], minlength=259).tolist()


def test_a_model_learns_the_answers_and_not_the_questions(chat: Make, tmp_path: Path) -> None:
    """A letter of a question has 26 values, an answer is two letters that repeat the first one and end-of-text."""
    losses = {
        marker: train(chat(out_dir=str(tmp_path / f"r{number}"), max_iters=300, loss_after=marker), quiet=True)
        for number, marker in enumerate(["<|assistant|>", ""])
    }
    assert losses["<|assistant|>"].val_loss < 1.5 < 2.0 < losses[""].val_loss


def test_a_resumed_run_is_the_same(chat: Make, tmp_path: Path) -> None:
    parts = chat(out_dir=str(tmp_path / "parts"), max_iters=5, lr_decay_iters=10, warmup_iters=0, eval_interval=10)
    whole = chat(out_dir=str(tmp_path / "all"), max_iters=10, lr_decay_iters=10, warmup_iters=0, eval_interval=10)
    train(whole, quiet=True)
    train(parts, quiet=True)
    train(TrainConfig(**{**parts.as_dict(), "init_from": "resume", "max_iters": 10}), quiet=True)
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "all")
    assert [r for r in curve(tmp_path / "parts") if r[0] == "train"] == [
        r for r in curve(tmp_path / "all") if r[0] == "train"
    ]


def test_a_marker_that_is_no_special_token_is_refused(chat: Make) -> None:
    with pytest.raises(UserError, match=r"loss_after is '<\|bot\|>', which is no special token .*<\|user\|>, <\|as"):
        set_up(chat(loss_after="<|bot|>"), silent)


def test_text_without_answers_is_refused_before_training(chat: Make, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("no one asks anything here\n" * 200)
    prepare(tmp_path / "t.txt", out=tmp_path / "plain", note=silent, tokenizer=CHAT)
    with pytest.raises(
        UserError, match=r"no measured token follows the special token of loss_after; .* --val for validation"
    ):
        train(chat(dataset=str(tmp_path / "plain")), quiet=True)


def test_a_split_is_measured_as_the_run_measures_it(chat: Make, chats: str, tmp_path: Path) -> None:
    result = train(chat(out_dir=str(tmp_path / "run"), max_iters=5, eval_iters=0), quiet=True)
    found = gpt2.evaluate(tmp_path / "run", chats, loss_after="<|assistant|>", dtype="float32")
    assert found.loss == pytest.approx(result.val_loss, rel=0.02)  # its last window is not moved back
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) * 4 / 3, rel=0.02)  # 3 letters and an end
    everything = gpt2.evaluate(tmp_path / "run", chats, dtype="float32")
    assert found.tokens < everything.tokens / 2


@pytest.fixture
def base(tiny: Make, tmp_path: Path) -> Callable[..., Path]:
    """Trains a model whose tokenizer has the bytes of `CHAT`, and end-of-text or the given special tokens."""

    def trained(special: SpecialTokens | None = None, **changes: object) -> Path:
        (tmp_path / "t.txt").write_text("some words of a text\n" * 200)
        tokenizer = BPETokenizer(CHAT.tokens, GPT2_PATTERN, special=special)
        prepare(tmp_path / "t.txt", out=tmp_path / "plain", note=silent, tokenizer=tokenizer)
        out = tmp_path / "base"
        train(tiny(dataset=str(tmp_path / "plain"), out_dir=str(out), block_size=32, **changes), quiet=True)
        return out

    return trained


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_a_model_gets_the_special_tokens_that_it_lacks(
    chat: Make, base: Callable[..., Path], vocab_size: int
) -> None:
    """Ids after them, which only fill up the vocabulary, stay."""
    out = base(vocab_size=vocab_size)
    lines: list[str] = []
    shape = {"n_layer": None, "n_head": None, "n_embd": None}
    run = set_up(chat(init_from=str(out), **shape), lines.append)
    assert any(line.startswith("adding embeddings for <|user|>, <|assistant|>, which") for line in lines)
    found, given = run.model.transformer.wte.weight, gpt2.load(out)[0].transformer.wte.weight
    assert len(found) == run.model.config.vocab_size == run.config.vocab_size == max(259, vocab_size)
    assert torch.equal(found[:257], given[:257])
    assert torch.equal(found[259:], given[259:])
    torch.testing.assert_close(found[257:259], given[:257].mean(dim=0).expand(2, -1))
    probabilities = run.model(torch.randint(257, (4, 32)))[0].softmax(dim=-1)
    assert probabilities[..., 257:259].max() < 1 / 257
    assert run.tokenizer.special.ids == SPECIAL.ids
    train_step(run)


def test_a_model_that_has_the_speakers_gets_the_template_of_the_conversations(
    chat: Make, base: Callable[..., Path], tmp_path: Path
) -> None:
    """Its other special tokens, and where its texts ended, stay."""
    special = SpecialTokens.after(256, [*MARKERS, "<|end|>"])
    out = base(replace(special, further_ends=(260,)))
    (tmp_path / "t.json").write_text(json.dumps([{"messages": [{"role": "assistant", "content": "Hi!"}]}] * 200))
    speaking = with_speakers(BPETokenizer(CHAT.tokens, GPT2_PATTERN, special=SpecialTokens.after(256, MARKERS)))
    data = prepare(tmp_path / "t.json", out=tmp_path / "talks", note=silent, tokenizer=speaking, chat=True)
    shape = {"n_layer": None, "n_head": None, "n_embd": None}
    found = set_up(chat(dataset=str(data), init_from=str(out), **shape), silent).tokenizer.special
    assert found == replace(special, further_ends=(260, 257, 258), chat_template=TEMPLATE)


def test_the_optimizer_state_of_fewer_tokens_is_refused(chat: Make, base: Callable[..., Path]) -> None:
    shape = {"n_layer": None, "n_head": None, "n_embd": None}
    with pytest.raises(UserError, match="lacks the new tokens; leave --resume_optimizer out"):
        set_up(chat(init_from=str(base()), resume_optimizer=True, **shape), silent)
