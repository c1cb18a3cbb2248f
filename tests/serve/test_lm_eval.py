"""lm-eval gives the same results through the server as with the model itself, for each task."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2.formats.open import load
from gpt2.generation.complete import complete
from gpt2.generation.sampling import Sampling
from gpt2.tokenizers import gpt2_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")
for package in ("tenacity", "aiohttp", "requests"):
    pytest.importorskip(package, reason="lm-eval's local-completions needs pip install 'lm-eval[api]'")

from evaluation.harness_tasks import evaluate, resps, save_model, write_lines, write_task  # noqa: E402
from serve.conftest import Running, running  # noqa: E402

from gpt2.evaluation.harness import NAME  # noqa: E402

N_TASKS = 200


@pytest.fixture(scope="module")
def tasks(shared_data: Path) -> list[dict[str, Any]]:
    """Real HellaSwag."""
    lines = (shared_data / "hellaswag" / "hellaswag_val.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:N_TASKS]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, gpt2_vocabulary: None) -> str:
    return str(save_model(tmp_path_factory.mktemp("m") / "m.safetensors", gpt2_tokenizer(), block_size=256))


@pytest.fixture(scope="module")
def server(file: str) -> Iterator[Running]:
    network, tokenizer = load(file)
    with running(network=network, tokenizer=tokenizer, slots=8) as one:
        yield one


def both(folder: Path, task: str, file: str, server: Running) -> tuple[Any, Any]:
    """Return the figures and samples through the server, and those of the model itself."""
    settings = {"pretrained": "tiny", "max_length": server.network.config.block_size, "num_concurrent": 4}
    return (
        evaluate(folder, task, "local-completions", base_url=f"{server.address}/v1/completions", **settings),
        evaluate(folder, task, NAME, pretrained=file),
    )


def test_hellaswag(tmp_path: Path, tasks: list[dict[str, Any]], file: str, server: Running) -> None:
    own_task = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "hellaswag.yaml"
    data = write_lines(tmp_path / "hs.jsonl", [{"ctx_a": task["ctx"], "ctx_b": "", **task} for task in tasks])
    write_task(tmp_path, "hs", data, include=str(own_task))
    (figures, samples), (own_figures, own_samples) = both(tmp_path, "hs", file, server)
    assert len(samples) == N_TASKS
    for name in ("acc", "acc_norm"):
        assert figures[name] == own_figures[name]
    for of_task, of_own in zip(resps(samples), resps(own_samples), strict=True):
        assert [is_greedy for _, is_greedy in of_task] == [is_greedy for _, is_greedy in of_own]
        assert [value for value, _ in of_task] == pytest.approx([value for value, _ in of_own], rel=1e-4)


def test_perplexity(tmp_path: Path, tasks: list[dict[str, Any]], file: str, server: Running) -> None:
    """The harness leaves one token of the context for an answer, so that only texts that fit are cut equally."""
    data = write_lines(tmp_path / "roll.jsonl", [{"text": task["ctx"]} for task in tasks[:20]])
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    write_task(tmp_path, "roll", data, **settings, metric_list=[{"metric": "byte_perplexity"}])
    (served, of_served), (own, of_own) = both(tmp_path, "roll", file, server)
    assert served["byte_perplexity"] == pytest.approx(own["byte_perplexity"], rel=1e-5)
    assert resps(of_served) == [pytest.approx(value, rel=1e-4) for value in resps(of_own)]


def test_greedy_answers(tmp_path: Path, tasks: list[dict[str, Any]], file: str, server: Running) -> None:
    model, tokenizer = load(file)
    first = complete(model, [tokenizer.encode(tasks[0]["ctx"])], 16, Sampling(temperature=0))[0]
    asked = {"until": [tokenizer.decode(first[8:9])], "max_gen_toks": 24, "do_sample": False}
    data = write_lines(tmp_path / "gen.jsonl", [{"prompt": task["ctx"], "answer": ""} for task in tasks[:20]])
    settings = {"output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
    write_task(tmp_path, "gen", data, **settings, generation_kwargs=asked, metric_list=[{"metric": "exact_match"}])
    (_, of_served), (_, of_own) = both(tmp_path, "gen", file, server)
    assert resps(of_served) == resps(of_own)
    assert len({answer for (answer,) in resps(of_own)}) > 10
