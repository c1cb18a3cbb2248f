"""EleutherAI's harness gives our models the figures of its own `hf` model and of `gpt2 eval hellaswag`."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2.formats.export import export
from gpt2.formats.open import load, open_model
from gpt2.generation.complete import complete
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer, gpt2_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")
pytest.importorskip("accelerate", reason="the harness's hf model needs pip install transformers accelerate")

from harness_tasks import BLOCK, both, requests, resps, save_model, write_lines, write_task  # noqa: E402

from gpt2.evaluation.harness import ToolkitLM  # noqa: E402


def choices(samples: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Return the choice in each task by sum, and by mean."""
    sums = [[float(value) for value, _ in of_task] for of_task in resps(samples)]
    lengths = [[len(choice) for choice in sample["doc"]["choices"]] for sample in samples]
    means = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(sums, lengths, strict=True)]
    return [v.index(max(v)) for v in sums], [v.index(max(v)) for v in means]


def check_three_ways(
    folder: Path, data: Path, models: tuple[str, str], command: Callable[..., Any], count: int
) -> None:
    """Check that `hf`, our model and `gpt2 eval hellaswag` choose the same ending in each task."""
    own_task = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "hellaswag.yaml"
    write_task(folder, "hs", data, include=str(own_task))
    (figures, samples), (hf_figures, hf_samples) = both(folder, "hs", models)
    line = ["eval", "hellaswag", models[0], f"--data={data}", "--rendering=lm-eval", "--device=cpu"]
    status, out, err = command(*line, "--dtype=float32", "--json", f"--out={folder / 'choices.jsonl'}")
    assert status == 0, err
    own = json.loads(out)
    for name in ("acc", "acc_norm"):
        assert figures[name] == hf_figures[name] == own[name], name
        assert 0 < own[name] < 1
    records = [json.loads(line) for line in (folder / "choices.jsonl").read_text().splitlines()]
    chosen = [record["prediction"] for record in records], [record["prediction_norm"] for record in records]
    assert len(records) == count
    assert choices(samples) == choices(hf_samples) == chosen
    assert set(chosen[0]) == {0, 1, 2, 3}
    for of_ours, of_hf in zip(resps(samples), resps(hf_samples), strict=True):
        assert [value for value, _ in of_ours] == pytest.approx([value for value, _ in of_hf], rel=1e-4)


def test_hellaswag_is_the_same_three_ways(tmp_path: Path, texts: list[str], models: Any, gpt2_command: Any) -> None:
    rng = random.Random(1)
    records = []
    for i in range(60):
        start, other, *endings = rng.sample(texts, 6)
        records.append(
            {
                "activity_label": rng.choice(("Run", "[header] Over the hill")),
                "ctx_a": f"{start} [step] {other}" * (1 + i % 3),  # the longest leave no space for all of them
                "ctx_b": rng.choice(("", "then")),
                "ctx": start,
                "endings": [" ".join(ending.split()[: rng.randint(1, 8)]) for ending in endings],
                "label": str(rng.randrange(4)),
            }
        )
    check_three_ways(tmp_path, write_lines(tmp_path / "hs.jsonl", records), models, gpt2_command, 60)


def test_real_hellaswag_is_the_same_three_ways(
    tmp_path: Path, shared_data: Path, gpt2_vocabulary: None, gpt2_command: Any
) -> None:
    lines = (shared_data / "hellaswag" / "hellaswag_val.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    file = save_model(tmp_path / "m.safetensors", gpt2_tokenizer(), n_embd=16, block_size=256)
    export(open_model(str(file)), "hf", tmp_path / "hf", print)
    tasks = [json.loads(line) for line in lines]
    data = write_lines(tmp_path / "hs.jsonl", [{"ctx_a": task["ctx"], "ctx_b": "", **task} for task in tasks])
    check_three_ways(tmp_path, data, (str(file), str(tmp_path / "hf")), gpt2_command, 300)


def continued(model: GPT, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    """Return the text of the likeliest tokens after a prompt."""
    return tokenizer.decode(complete(model, [tokenizer.encode(prompt)], count, Sampling(temperature=0))[0])


def test_likelihoods_and_greedy_continuations_are_those_of_hf(
    tmp_path: Path, texts: list[str], models: tuple[str, str]
) -> None:
    model, tokenizer = load(models[0])
    records = []
    for i, text in enumerate(texts[:20]):
        prompt = "" if i == 3 else " ".join([*texts[20 + i : 20 + 5 * (i % 3)], text.rsplit(" ", 1)[0]])
        target = " " + text.rsplit(" ", 1)[1]
        if i % 2 and prompt:  # the model's continuation, if its text is encoded as the same tokens
            target = continued(model, tokenizer, prompt, 2)
        records.append({"prompt": prompt, "target": target})
    data = write_lines(tmp_path / "ll.jsonl", records)
    settings = {"output_type": "loglikelihood", "doc_to_text": "{{prompt}}", "doc_to_target": "{{target}}"}
    metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
    write_task(tmp_path, "ll", data, **settings, target_delimiter="", metric_list=metrics)
    (figures, samples), (hf_figures, hf_samples) = both(tmp_path, "ll", models)
    assert figures["acc"] == hf_figures["acc"]
    assert 0.2 < figures["acc"] < 0.8
    assert figures["perplexity"] == pytest.approx(hf_figures["perplexity"], rel=1e-4)
    for ((value, is_greedy),), ((hf_value, hf_is_greedy),) in zip(resps(samples), resps(hf_samples), strict=True):
        assert value == pytest.approx(hf_value, rel=1e-4)
        assert is_greedy == hf_is_greedy
    lengths = [len(tokenizer.encode(record["prompt"])) for record in records]
    assert min(lengths) == 0 < BLOCK < max(lengths), "one context is empty, and some are too long"


def test_rolling_likelihoods_are_those_of_hf(tmp_path: Path, texts: list[str], models: tuple[str, str]) -> None:
    records = [{"text": "\n".join(texts[i : i + 3 * i])} for i in range(0, 12)]  # from nothing to several windows
    tokenizer = load(models[0])[1]
    lengths = [len(tokenizer.encode(record["text"])) for record in records]
    assert lengths[0] == 0
    assert lengths[-1] > 2 * BLOCK
    data = write_lines(tmp_path / "roll.jsonl", [*records[1:], {"text": texts[0][:3] + "<|endoftext|>" + texts[1]}])
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metrics = [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}]
    write_task(tmp_path, "roll", data, **settings, metric_list=metrics)
    (figures, samples), (hf_figures, hf_samples) = both(tmp_path, "roll", models)
    for metric in metrics:
        assert figures[metric["metric"]] == pytest.approx(hf_figures[metric["metric"]], rel=1e-4)
    assert resps(samples) == [pytest.approx(value, rel=1e-5) for value in resps(hf_samples)]
    assert ToolkitLM(models[0], device="cpu").loglikelihood_rolling(requests(("",)), disable_tqdm=True) == [0]


def test_generated_answers_are_those_of_hf(tmp_path: Path, texts: list[str], models: tuple[str, str]) -> None:
    prompts = [" ".join(texts[i : i + 1 + 3 * (i % 3)])[: 10 + 9 * i] for i in range(21)]
    model, tokenizer = load(models[0])
    assert max(len(tokenizer.encode(prompt)) for prompt in prompts) > BLOCK - 24, "some prompts are too long"
    # a text that stops some answers and not others
    outputs = [continued(model, tokenizer, prompt, 12) for prompt in prompts[:5]]
    stop = max(itertools.chain.from_iterable(outputs), key=lambda c: sum(c in s for s in outputs) in (1, 2, 3))
    settings = {"output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
    asked = {"until": [stop], "max_gen_toks": 24, "do_sample": False}
    metrics = [{"metric": "exact_match"}]
    data = write_lines(tmp_path / "gen.jsonl", [{"prompt": prompt, "answer": "the cat"} for prompt in prompts])
    write_task(tmp_path, "gen", data, **settings, generation_kwargs=asked, metric_list=metrics)
    (_, samples), (_, hf_samples) = both(tmp_path, "gen", models)
    answers = [answer for (answer,) in resps(samples)]
    assert answers == [answer for (answer,) in resps(hf_samples)]
    assert not any(stop in answer for answer in answers)
    lengths = sorted(len(tokenizer.encode(answer)) for answer in answers)
    assert lengths[0] < 10 < 20 <= lengths[-1]
