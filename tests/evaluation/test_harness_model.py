"""How a model answers the requests of EleutherAI's harness: batches, starts of texts, settings and sampling."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.errors import UserError
from gpt2.evaluation.choices import Question, scores
from gpt2.model import GPT
from gpt2.tokenizers import CharTokenizer

pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")

from harness_tasks import BLOCK, requests, save_model

from gpt2.evaluation.harness import ToolkitLM


def test_endings_of_a_context_share_a_sequence(monkeypatch: pytest.MonkeyPatch, models: tuple[str, str]) -> None:
    seen, hidden = [], GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, idx, *rest, **named: seen.append(idx.shape) or hidden(self, idx, *rest, **named)
    )
    asked = requests(("the cat", " sat"), ("the cat", " on a mat"), ("the cat", " saw"), ("two", " dogs"))
    packed = ToolkitLM(models[0], device="cpu").loglikelihood(asked, disable_tqdm=True)
    assert sum(shape[0] for shape in seen) == 2
    alone = [ToolkitLM(models[0], device="cpu").loglikelihood([one], disable_tqdm=True)[0] for one in asked]
    assert [value for value, _ in packed] == pytest.approx([value for value, _ in alone], rel=1e-5)


def test_a_batch_has_the_requested_sequences(monkeypatch: pytest.MonkeyPatch, models: tuple[str, str]) -> None:
    shapes, hidden = [], GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, idx, *rest, **named: shapes.append(idx.shape) or hidden(self, idx, *rest, **named)
    )
    asked = requests(
        *(("the cat sat on a mat and saw two dogs run " * 9, f" {word}") for word in ("over", "some", "hill", "cat"))
    )
    settings = {"max_gen_toks": 2, "until": []}
    for batch_size, sequences in ((1, 1), ("3", 3), ("auto", 4)):
        shapes.clear()
        model = ToolkitLM(models[0], device="cpu", batch_size=batch_size)
        model.loglikelihood(asked, disable_tqdm=True)
        assert max(shape[0] for shape in shapes) == sequences
        assert max(shape.numel() for shape in shapes) == sequences * BLOCK
        shapes.clear()
        model.generate_until(requests(*[("the cat", settings)] * 4), disable_tqdm=True)
        assert max(shape[0] for shape in shapes) == sequences
    assert ToolkitLM(models[0], device="cpu", max_batch_size=2).sequences_per_batch == 2
    with pytest.raises(UserError, match="batch_size is 0; it must be a number of sequences"):
        ToolkitLM(models[0], device="cpu", batch_size=0)


def test_a_tokenizer_without_end_of_text_starts_from_a_newline(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.safetensors", CharTokenizer("\nabc"))
    model = ToolkitLM(str(path), device="cpu")
    # lm-eval moves white space at the end of a context to the ending; here this leaves an empty context
    empty, white = model.loglikelihood(requests(("", "abc"), ("\n\n", "abc")), disable_tqdm=True)
    [rolled] = model.loglikelihood_rolling(requests(("abc",)), disable_tqdm=True)
    [[expected, expected_white]] = scores(model.model, [Question([0], [[1, 2, 3], [0, 0, 1, 2, 3]])], dtype="float32")
    assert empty[0] == pytest.approx(rolled, rel=1e-5) == pytest.approx(expected.log_likelihood, rel=1e-5)
    assert white[0] == pytest.approx(expected_white.log_likelihood, rel=1e-5)
    with pytest.raises(UserError, match="the text has the character 'd'"):
        model.loglikelihood(requests(("a", "d")), disable_tqdm=True)
    nameless = save_model(tmp_path / "n.safetensors", None, vocab_size=77)
    with pytest.raises(UserError, match="tokenizer"):
        ToolkitLM(str(nameless), device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen_toks": BLOCK}, f"up to {BLOCK} new tokens, and the model has {BLOCK} positions"),
        ({}, "up to 256 new tokens"),
        ({"max_gen_toks": 2, "num_beams": 3}, "generates with num_beams, which is not supported"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict, message: str, models: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        ToolkitLM(models[0], device="cpu").generate_until(requests(("the", settings)), disable_tqdm=True)


def test_sampling_follows_the_seed_and_the_settings(models: tuple[str, str]) -> None:
    model = ToolkitLM(models[0], device="cpu")

    def draw(seed: int, **settings: Any) -> list[str]:
        torch.manual_seed(seed)
        asked = requests(*[("the cat", {"max_gen_toks": 20, "until": [], **settings})] * 5)
        return model.generate_until(asked, disable_tqdm=True)

    greedy = draw(0)
    assert len(set(greedy)) == 1
    assert draw(1, temperature=1.0) == draw(1, temperature=1.0) != draw(2, temperature=1.0)
    assert len(set(draw(1, temperature=1.0))) > 1
    assert draw(1, temperature=1.0, top_k=1) == draw(2, do_sample=True, temperature=1.0, top_p=1e-9) == greedy
    assert draw(1, do_sample=False, temperature=1.0) == greedy


def test_nothing_is_computed_after_the_last_stop(monkeypatch: pytest.MonkeyPatch, models: tuple[str, str]) -> None:
    model, settings = ToolkitLM(models[0], device="cpu"), {"max_gen_toks": 20, "until": []}
    [answer] = model.generate_until(requests(("the cat", settings)), disable_tqdm=True)
    calls, hidden = [], GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda *arguments, **named: calls.append(0) or hidden(*arguments, **named))
    asked = requests(("the cat", {**settings, "until": [answer[0]]}))
    assert model.generate_until(asked, disable_tqdm=True) == [""]
    assert len(calls) == 1
