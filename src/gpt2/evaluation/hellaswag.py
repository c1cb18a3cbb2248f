"""Reads HellaSwag (Zellers et al. 2019), which asks for the correct one of four endings, in the two usual ways."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import Log, UserError
from gpt2.evaluation import llmc_choices
from gpt2.evaluation.choices import Task
from gpt2.files import download
from gpt2.spelling import did_you_mean
from gpt2.tokenizers import Tokenizer

Rendering = Literal["build-nanogpt", "lm-eval"]
"""A way to turn a task into text: build-nanogpt's, which llm.c uses too, or that of EleutherAI's harness."""
URL = (
    "https://raw.githubusercontent.com/rowanz/hellaswag/a29ff8e9a04bba4bd6588223785ce105328adc57/data/"
    "hellaswag_val.jsonl"
)
"""Address of the published validation tasks."""
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
"""Hash of the file at `URL`."""


def validation_file(data_dir: str, log: Log) -> Path:
    """Return the file of the 10,042 published validation tasks, downloaded into `data_dir` if it is not there.

    Raises UserError if it cannot be downloaded, or differs from the published file.
    """
    path = Path(data_dir) / "hellaswag" / "hellaswag_val.jsonl"
    if not path.is_file():
        log(f"downloading HellaSwag's validation tasks to {path}")
        download(URL, path, SHA256, "fetch it elsewhere and name the file with --data")
    return path


def read_tasks(
    path: Path,
    tokenizer: Tokenizer | None,
    rendering: Rendering = "build-nanogpt",
    limit: int | None = None,
    log: Log = lambda line: None,
) -> list[Task]:
    """Return the first `limit` tasks of a file, or all of them.

    The file holds JSON lines, which the tokenizer encodes, or tokens in llm.c's format. `log` receives a line about
    what makes the figures differ from published ones. Raises UserError for a file in neither format, a rendering or
    tokenizer that does not fit it, and text that the tokenizer cannot encode.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    if not path.is_file():
        hint = did_you_mean(str(path), (), "name a .jsonl of them, or llm.c's hellaswag_val.bin")
        raise UserError(f"no file {path} with HellaSwag's tasks; {hint}")
    if llmc_choices.is_llmc_choices(path):
        if rendering != "build-nanogpt":
            raise UserError(f"{path} holds tokens as build-nanogpt renders them; omit --rendering")
        if tokenizer is not None and tokenizer.kind != "gpt2":
            raise UserError(f"{path} holds GPT-2's tokens, but the model has other ones; give a .jsonl with --data")
        return llmc_choices.read(path, limit)
    if tokenizer is None:
        raise UserError(f"{path} is text, but the model brings no tokenizer; name one with --tokenizer")
    tasks: list[Task] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if len(tasks) == limit:
                break
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            question = parse(line, where, FIELDS[rendering])
            if rendering == "lm-eval" and "ctx_a" not in question and not tasks:
                log(f"{path} has no ctx_a and ctx_b, only ctx: the tasks differ a little from those of lm-eval")
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
    """Parse a JSON line into a question with text in `fields`, a list `endings` and an int `label`.

    Raises UserError, with `where` as the name of the line, if it is anything else.
    """
    try:
        question = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        raise UserError(f"{where} is not JSON; fix or remove that line") from None
    if not isinstance(question, dict):
        raise UserError(f"{where} is not a JSON object; fix or remove that line")
    missing = [name for name in (*fields, "endings", "label") if name not in question]
    if missing:
        hint = "; the test tasks are published without labels" if missing == ["label"] else ""
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
    """Return the task as build-nanogpt and llm.c render it in hellaswag.py.

    Context and endings stay unchanged, with a space before each ending. Lengths are in tokens.
    """
    endings = [tokenizer.encode(" " + ending) for ending in question["endings"]]
    return Task(tokenizer.encode(question["ctx"]), endings, [len(e) for e in endings], question["label"])


def as_lm_eval(question: dict[str, Any], tokenizer: Tokenizer) -> Task:
    """Return the task as EleutherAI's lm-evaluation-harness renders its task `hellaswag`, without examples.

    The activity comes first, and WikiHow's tags are removed. Lengths are in characters. See `process_docs` in
    lm_eval/tasks/hellaswag/utils.py, `process_results` in lm_eval/api/task.py, and `_encode_pair` in
    lm_eval/api/model.py.
    """
    ctx = question["ctx"]
    if "ctx_a" in question:
        ctx = question["ctx_a"] + " " + question.get("ctx_b", "").capitalize()
    context = without_tags(question["activity_label"] + ": " + ctx)
    choices = [without_tags(ending) for ending in question["endings"]]
    stem = context.rstrip()
    before = len(tokenizer.encode(stem))
    encoded = [tokenizer.encode(f"{context} {choice}") for choice in choices]
    lengths = [len(choice) for choice in choices]
    return Task(tokenizer.encode(stem), [tokens[before:] for tokens in encoded], lengths, question["label"])


def without_tags(text: str) -> str:
    """Return a text from WikiHow without tags like `[header]`, `[title]` and `[step]`, exactly as lm-eval does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


FIELDS = {"build-nanogpt": ("ctx",), "lm-eval": ("activity_label", "ctx")}
"""Fields of a JSON line that each rendering needs, in addition to `endings` and `label`."""
RENDERINGS: dict[str, Callable[[dict[str, Any], Tokenizer], Task]] = {
    "build-nanogpt": as_build_nanogpt,
    "lm-eval": as_lm_eval,
}
"""Functions that make a task from a question, by rendering."""
