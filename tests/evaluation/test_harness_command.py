"""`gpt2 eval harness` passes arguments on to EleutherAI's harness, and reports a mistake in one line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gpt2.cli import main

pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")

from harness_tasks import write_lines, write_task
from lm_eval.tasks import TaskManager

from gpt2.evaluation.harness import NAME


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
