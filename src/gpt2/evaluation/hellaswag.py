"""HellaSwag (Zellers et al. 2019): which of four endings a context has, asked in the two ways in use."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import UserError
from gpt2.evaluation import llmc_choices
from gpt2.evaluation.choices import Task
from gpt2.files import download
from gpt2.tokenizers import Tokenizer

Rendering = Literal["build-nanogpt", "lm-eval"]
Note = Callable[[str], None]
URL = (
    "https://raw.githubusercontent.com/rowanz/hellaswag/a29ff8e9a04bba4bd6588223785ce105328adc57/data/"
    "hellaswag_val.jsonl"
)
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"


def validation_file(data_dir: str, note: Note) -> Path:
    """The 10,042 tasks for validation as published, downloaded into `data_dir` once. Raises UserError."""
    path = Path(data_dir) / "hellaswag" / "hellaswag_val.jsonl"
    if not path.is_file():
        note(f"downloading HellaSwag's validation tasks to {path}")
        download(URL, path, SHA256, "fetch it elsewhere and name the file with --data")
    return path


def read_tasks(
    path: Path,
    tokenizer: Tokenizer | None,
    rendering: Rendering = "build-nanogpt",
    limit: int | None = None,
    note: Note = lambda line: None,
) -> list[Task]:
    """The first `limit` tasks of a file, or all: JSON lines, which the tokenizer encodes, or llm.c's tokens.

    `note` is told what makes the figures differ from published ones. Raises UserError for a file that is neither,
    a rendering or a tokenizer it does not go with, and a text the tokenizer cannot encode.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    if not path.is_file():
        raise UserError(f"no file {path} with HellaSwag's tasks; name a .jsonl of them, or llm.c's hellaswag_val.bin")
    if llmc_choices.is_llmc_choices(path):
        if rendering != "build-nanogpt":
            raise UserError(f"{path} holds tokens as build-nanogpt renders them; leave --rendering out")
        if tokenizer is not None and tokenizer.kind != "gpt2":
            raise UserError(f"{path} holds GPT-2's tokens, and the model has other ones; give a .jsonl with --data")
        return llmc_choices.read(path, limit)
    if tokenizer is None:
        raise UserError(f"{path} is text, and the model brings no tokenizer; name one with --tokenizer")
    tasks: list[Task] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if len(tasks) == limit:
                break
            where = f"{path}, line {number}"
            question = parse(line, where, FIELDS[rendering])
            if rendering == "lm-eval" and "ctx_a" not in question and not tasks:
                note(f"{path} has no ctx_a and ctx_b, only ctx: close to what lm-eval asks, but not the same")
            try:
                tasks.append(RENDERINGS[rendering](question, tokenizer))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if not (tasks[-1].context and all(tasks[-1].endings) and all(tasks[-1].lengths)):
                raise UserError(f"{where}: the context or an ending is empty; remove that line")
    if not tasks:
        raise UserError(f"{path} is empty; name a .jsonl of HellaSwag's tasks")
    return tasks


def parse(line: bytes, where: str, fields: Sequence[str]) -> dict[str, Any]:
    """The question in a line: text in the `fields`, `endings` and `label`, an int. Raises UserError."""
    try:
        question = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        raise UserError(f"{where} is no JSON; mend or remove that line") from None
    if not isinstance(question, dict):
        raise UserError(f"{where} is no JSON object; mend or remove that line")
    missing = [name for name in (*fields, "endings", "label") if name not in question]
    if missing:
        hint = "; the tasks for testing are published without their labels" if missing == ["label"] else ""
        raise UserError(f"{where} has no {' and no '.join(missing)}{hint}")
    texts = [question[name] for name in (*fields, "ctx_a", "ctx_b") if name in question]
    endings = question["endings"]
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(t, str) for t in [*texts, *endings]):
        raise UserError(f"{where}: {', '.join(fields)} must be text, and endings a list of two texts or more")
    label = question["label"]
    if isinstance(label, str) and label.isdecimal():  # as in the copy on Hugging Face's hub
        label = int(label)
    if type(label) is not int or not 0 <= label < len(endings):
        raise UserError(f"{where}: label is {label!r}; it must be 0 to {len(endings) - 1}")
    return {**question, "label": label}


def as_build_nanogpt(question: dict[str, Any], tokenizer: Tokenizer) -> Task:
    """The context, and each ending after a space; the mean is by token (build-nanogpt and llm.c, hellaswag.py)."""
    endings = [tokenizer.encode(" " + ending) for ending in question["endings"]]
    return Task(tokenizer.encode(question["ctx"]), endings, [len(e) for e in endings], question["label"])


def as_lm_eval(question: dict[str, Any], tokenizer: Tokenizer) -> Task:
    """As EleutherAI's lm-evaluation-harness asks its task `hellaswag`, without examples before it.

    The activity comes first, WikiHow's tags are removed, the mean is by character. (lm_eval/tasks/hellaswag/utils.py,
    `process_docs`; lm_eval/api/task.py, `process_results`; lm_eval/api/model.py, `_encode_pair`)
    """
    ctx = question["ctx"]
    if "ctx_a" in question:
        ctx = question["ctx_a"] + " " + question.get("ctx_b", "").capitalize()
    context = without_tags(question["activity_label"] + ": " + ctx)
    choices = [without_tags(ending) for ending in question["endings"]]
    stem = context.rstrip()
    before = len(tokenizer.encode(stem))
    whole = [tokenizer.encode(f"{context} {choice}") for choice in choices]
    lengths = [len(choice) for choice in choices]
    return Task(tokenizer.encode(stem), [tokens[before:] for tokens in whole], lengths, question["label"])


def without_tags(text: str) -> str:
    """A text of WikiHow's without `[header]`, `[title]`, `[step]` and the like, to the letter as lm-eval does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


FIELDS = {"build-nanogpt": ("ctx",), "lm-eval": ("activity_label", "ctx")}
RENDERINGS: dict[str, Callable[[dict[str, Any], Tokenizer], Task]] = {
    "build-nanogpt": as_build_nanogpt,
    "lm-eval": as_lm_eval,
}
