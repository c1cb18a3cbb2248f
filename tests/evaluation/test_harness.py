"""EleutherAI's harness gives our models the figures of its own `hf` model and of `gpt2 eval hellaswag`."""

import itertools
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.cli import main
from gpt2.errors import UserError
from gpt2.evaluation.choices import Question, scores
from gpt2.formats import safetensors_file
from gpt2.formats.export import export
from gpt2.formats.open import load, open_model
from gpt2.formats.source import Extras
from gpt2.generation.engine import complete
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import CharTokenizer, Tokenizer, gpt2_tokenizer, train_bpe

lm_eval = pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")
pytest.importorskip("accelerate", reason="the harness's hf model needs pip install transformers accelerate")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from gpt2.evaluation.harness import NAME, ToolkitLM  # noqa: E402

BLOCK = 64


def save_model(path: Path, tokenizer: Tokenizer | None, **changes: Any) -> Path:
    """Write a model with random weights and confident predictions, mostly plain letters, to one file."""
    torch.manual_seed(0)
    vocabulary = {"vocab_size": tokenizer.vocab_size} if tokenizer else {}
    settings = {"block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 32, **vocabulary}
    model = GPT(GPTConfig(**settings | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        if tokenizer is not None:
            plain = [tokenizer.decode_bytes([i]).isascii() for i in range(tokenizer.vocab_size)]
            model.transformer.wte.weight[torch.tensor(plain)] += 0.2
            model.transformer.ln_f.bias += 0.5
    safetensors_file.write(model, Extras(tokenizer, path.stem, "float32", print), path)
    return path


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_task(folder: Path, name: str, data: Path, **settings: Any) -> None:
    """Write the description of a task over the JSON lines in `data` for the harness. JSON is valid YAML."""
    files = {"data_files": {"validation": str(data)}, "cache_dir": str(folder / "cache")}
    common = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    splits = {"validation_split": "validation", "training_split": None}
    (folder / f"{name}.yaml").write_text(json.dumps(common | splits | settings), encoding="utf-8")


def evaluate(folder: Path, task: str, model: str, **arguments: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the harness's figures for the tasks in a folder, and its samples in order."""
    results = lm_eval.simple_evaluate(
        model=model,
        model_args={"device": "cpu", **arguments},
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    figures = {name.removesuffix(",none"): value for name, value in results["results"][task].items()}
    return figures, sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module")
def texts(text: str) -> list[str]:
    return text.split("\n")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[str, str]:
    """Write a model file and export it to Hugging Face's format. With 300 tokens, words have several."""
    folder = tmp_path_factory.mktemp("models")
    file = save_model(folder / "model.safetensors", train_bpe(texts, 300))
    export(open_model(str(file)), "hf", folder / "hf", print)
    return str(file), str(folder / "hf")


def both(folder: Path, task: str, models: tuple[str, str]) -> tuple[Any, Any]:
    """Return the figures and samples of our model, and those of `hf`."""
    file, hf_folder = models
    return (
        evaluate(folder, task, NAME, pretrained=file),
        evaluate(folder, task, "hf", pretrained=hf_folder, dtype="float32", batch_size=4),
    )


def resps(samples: list[dict[str, Any]]) -> list[Any]:
    return [sample["filtered_resps"] for sample in samples]


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


def requests(*arguments: tuple) -> list[Instance]:
    return [Instance("loglikelihood", {}, given, i) for i, given in enumerate(arguments)]


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


@pytest.fixture
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the harness skip its own thousands of tasks, which take half a minute to read.

    This also lets it log to the standard error of this test, not to that of the test before.
    """
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])
    read = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **rest: read(self, include_defaults=False, **rest))


def test_the_command_passes_arguments_on(
    tmp_path: Path, texts: list[str], models: tuple[str, str], own_tasks_alone: None, gpt2_command: Any
) -> None:
    records = [{"prompt": t, "target": " the cat"} for t in texts[:6]]
    settings = {"output_type": "loglikelihood", "doc_to_text": "{{prompt}}", "doc_to_target": "{{target}}"}
    data = write_lines(tmp_path / "ll.jsonl", records)
    write_task(tmp_path, "ll", data, **settings, metric_list=[{"metric": "acc"}])
    line = ["eval", "harness", models[0], "--tasks=ll", "--include_path", tmp_path, "--limit", "5"]
    status, out, err = gpt2_command(*line, "--json", "--dtype=bfloat16")
    assert status == 0, err
    results = json.loads(out)
    assert results["config"]["model"] == NAME
    assert results["config"]["model_dtype"] == "bfloat16"
    assert (results["config"]["batch_size"], results["config"]["device"]) == ("auto", "auto")
    assert results["n-samples"]["ll"] == {"original": 6, "effective": 5}
    assert 0 <= results["results"]["ll"]["acc,none"] <= 1
    status, out, err = gpt2_command(*line, "--log_samples", "--output_path", tmp_path / "out", "-b", "2")
    assert status == 0, err
    assert "|ll |" in out
    assert list((tmp_path / "out").rglob("samples_ll_*.jsonl"))
    [written] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["batch_size"] == "2"
    settings = {"tasks": ["ll"], "include_path": str(tmp_path), "batch_size": 3, "device": "cpu"}
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    status, out, err = gpt2_command("eval", "harness", models[0], f"--config={tmp_path / 'settings.yaml'}", "--json")
    assert status == 0, err
    results = json.loads(out)
    assert (results["config"]["batch_size"], results["config"]["device"]) == (3, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "--tasks", "nonesuch"], "gpt2: lm-eval: Tasks not found: nonesuch"),
        (["{model}"], "gpt2: lm-eval: No tasks specified"),
        (["{model}", "--tasks", "ll", "--include_path", "{folder}", "--device", "cpux"], "gpt2: no device 'cpux'"),
        (["{model}", "--tasks=ll", "--include_path={folder}", "--apply_chat_template"], "gpt2: GPT-2 has no chat"),
        (["{folder}/none", "--tasks", "ll", "--include_path", "{folder}"], "gpt2: no model '{folder}/none'"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, models: Any, own_tasks_alone: None, gpt2_command: Any
) -> None:
    data = write_lines(tmp_path / "ll.jsonl", [{"text": "the"}])
    write_task(tmp_path, "ll", data, output_type="loglikelihood", doc_to_text="", doc_to_target="{{text}}")
    names = {"model": models[0], "folder": str(tmp_path)}
    status, out, err = gpt2_command("eval", "harness", *(a.format(**names) for a in arguments))
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(message.format(**names))
    assert "Traceback" not in err


def test_a_fault_inside_the_harness_keeps_its_traceback(
    models: Any, own_tasks_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **rest: object) -> None:
        raise ValueError("an internal fault")

    monkeypatch.setattr("lm_eval.simple_evaluate", broken, raising=False)
    monkeypatch.setattr("lm_eval.config.evaluate_config.EvaluatorConfig.process_tasks", lambda self, metadata: None)
    with pytest.raises(ValueError, match="an internal fault"):
        main(["eval", "harness", models[0], "--tasks", "ll"])
