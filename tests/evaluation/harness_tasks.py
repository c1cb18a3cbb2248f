"""Models, and tasks over JSON lines, with which EleutherAI's harness is tested."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from gpt2.evaluation.harness import NAME
from gpt2.formats import safetensors_file
from gpt2.formats.source import Extras
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import Tokenizer

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


def both(folder: Path, task: str, models: tuple[str, str]) -> tuple[Any, Any]:
    """Return the figures and samples of our model, and those of `hf`."""
    file, hf_folder = models
    return (
        evaluate(folder, task, NAME, pretrained=file),
        evaluate(folder, task, "hf", pretrained=hf_folder, dtype="float32", batch_size=4),
    )


def resps(samples: list[dict[str, Any]]) -> list[Any]:
    return [sample["filtered_resps"] for sample in samples]


def requests(*arguments: tuple) -> list[Instance]:
    return [Instance("loglikelihood", {}, given, i) for i, given in enumerate(arguments)]
