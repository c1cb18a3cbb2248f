"""Damages the files of a run and a dataset at random, and counts which commands do not end with one clear line.

    python tests/damaged_files.py 5000 SEED          # files of checkpoints, runs, datasets and preparations
    python tests/damaged_files.py --logs 2000 SEED   # log.jsonl

Each mutant is one damaged file in a copy of an intact folder. One of the commands that read it is called in a forked
process, which may take ten seconds and one gigabyte more than it begins with. Prints what went wrong, and counts.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutations import mutate_bytes, mutate_json, mutate_log, mutate_toml

SECONDS, MEMORY = 10, 1 << 30
TRAIN = ["train", "--init_from=resume", "--out_dir=run", "--max_iters=5", "--device=cpu", "--eval_interval=0"]
MODEL_COMMANDS = (
    TRAIN,
    ["sample", "run", "--max_new_tokens=1", "--device=cpu"],
    ["export", "hf", "run", "exported"],
    ["eval", "loss", "run", "char", "--tokens=64", "--device=cpu", "--batch_size=1"],
    ["validate", "run"],
)
RUN_COMMANDS = (
    ["report", "run", "--out=page.html", "--json"],
    ["report", "run", "other", "--out=page.html"],
    ["plot", "run", "--out=picture.png"],
    ["plot", "run", "other", "--out=picture.svg", "--x=time"],
    ["plot", "run", "--out=picture.png", "--x=flops"],
)
SHAPE = ["--n_layer=2", "--n_head=2", "--n_embd=8", "--block_size=8", "--batch_size=2", "--eval_iters=1"]
NEW_CPU = ["train", *SHAPE, "--device=cpu", "--no-compile", "--seed=3"]
NEW = [*NEW_CPU, "--max_iters=1", "--init_from=scratch", "--eval_interval=0"]
START_OVER = [*NEW, "--dataset=char", "--out_dir=run", "--overwrite"]
NEW_RUN = [*NEW, "--out_dir=new"]
STEP = "run/checkpoints/step_0000004"


def data_commands(name: str) -> tuple[list[str], ...]:
    return [*NEW_RUN, f"--dataset={name}"], ["inspect", name], ["inspect", name, "--html=page.html"]


PREPARE = ["prepare", "text.txt", "--tokenizer=byte", "--out=half"]
JOIN = ["prepare", "--join", "part1", "part2", "--out=joined"]
TARGETS: dict[str, tuple[list[str], ...]] = {
    f"{STEP}/state.json": MODEL_COMMANDS,
    f"{STEP}/manifest.json": (*MODEL_COMMANDS, START_OVER),
    f"{STEP}/model.safetensors": MODEL_COMMANDS,
    f"{STEP}/optimizer.safetensors": MODEL_COMMANDS,
    "run/config.toml": (TRAIN, START_OVER, *RUN_COMMANDS),
    "run/checkpoints/best.json": (*MODEL_COMMANDS, START_OVER),
    "char/dataset.json": (
        *data_commands("char"),
        TRAIN,
        MODEL_COMMANDS[3],
        [*PREPARE[:3], "--out=char", "--overwrite"],
    ),
    "char/train.bin": data_commands("char"),
    "llmc/x_train_000000.bin": data_commands("llmc"),
    "npy/x_train_000000.npy": data_commands("npy"),
    "npy/dataset.json": data_commands("npy"),
    "half/.new/journal.json": (PREPARE,),
    "part2/dataset.json": (JOIN,),
}
"""The commands that read each file."""
LOG = "run/log.jsonl"
LOG_COMMANDS = (*RUN_COMMANDS[:2] * 8, *RUN_COMMANDS, TRAIN, START_OVER)  # reports are quick, and draw what plots do


def build(folder: Path) -> None:
    """Make the intact files: runs, datasets in three formats, partitions, and a preparation that was interrupted."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "over", "some", "hill"]
    rng = random.Random(0)
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choices(words, k=8)) for _ in range(200)))
    texts = folder / "texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(" ".join(rng.choices(words, k=20)))
    succeed(["prepare", "text.txt", "--tokenizer=char", "--out=char"])
    for name in ("llmc", "npy"):
        succeed(f"prepare texts --tokenizer=byte --format={name} --name=x --out={name} --val_fraction=0.3".split())
    (folder / "llmc" / "dataset.json").unlink()  # as llm.c's own shards are
    for i in (1, 2):
        succeed(f"prepare texts --tokenizer=byte --out=part{i} --part={i}/2".split())
    shutil.rmtree(texts)
    interrupt_preparation()
    for out in ("run", "other"):
        succeed([*NEW_CPU, "--dataset=char", "--max_iters=4", "--eval_interval=2", f"--out_dir={out}"])


def succeed(arguments: list[str]) -> None:
    outcome = call(arguments)
    assert outcome.status == 0, (arguments, outcome)


def interrupt_preparation() -> None:
    from gpt2.data import prepare, tokenise

    tokenise.RECORD_SECONDS, before = -1.0, tokenise.RECORD_SECONDS
    original = tokenise._record

    def record(*given: Any) -> None:
        original(*given)
        raise KeyboardInterrupt

    tokenise._record = record
    with contextlib.suppress(KeyboardInterrupt):
        prepare.prepare("text.txt", out=Path("half"), tokenizer="byte")
    tokenise.RECORD_SECONDS, tokenise._record = before, original


@dataclass(frozen=True)
class Outcome:
    status: object
    """The exit status, `traceback`, or how the process ended."""
    err: str

    @property
    def problem(self) -> str | None:
        """What is wrong with how a command ended; None where nothing is."""
        if self.status == 2:
            lines = [line for line in self.err.splitlines() if line.startswith("gpt2: ")]
            return None if len(lines) == 1 and lines[0].isprintable() else "status 2 without one line"
        if "Traceback" in self.err or "unexpected" in self.err:
            return "traceback"
        return None if self.status in (0, 1) else str(self.status)


def call(arguments: list[str]) -> Outcome:
    from gpt2.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            main(arguments)
    except SystemExit as end:
        return Outcome(end.code, err.getvalue())
    except BaseException:
        return Outcome("traceback", err.getvalue() + traceback.format_exc())
    raise AssertionError("main never returns")


def call_forked(arguments: list[str]) -> Outcome:
    """Call a command in a process of its own, with limits of time and memory."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if not (pid := os.fork()):
        os.close(reading)
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY, resource.RLIM_INFINITY))
        signal.alarm(SECONDS)
        outcome = call(arguments)
        with os.fdopen(writing, "w", errors="backslashreplace") as pipe:
            json.dump([outcome.status, outcome.err[-4000:]], pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        content = pipe.read()
    _, ended = os.waitpid(pid, 0)
    if content:
        return Outcome(*json.loads(content))
    by = os.WTERMSIG(ended)
    return Outcome("more than ten seconds" if by == signal.SIGALRM else f"signal {by}", "")


def damage(name: str, rng: random.Random) -> None:
    """Damage a file in the current folder in one way."""
    path = Path(name)
    kind, data = rng.random(), path.read_bytes()
    if kind < 0.02:
        path.unlink()
        path.mkdir()
    elif kind < 0.04:
        path.unlink()
    elif kind < 0.06:
        path.write_bytes(rng.choice([p for p in Path().glob("*/*") if p.is_file()]).read_bytes())
    elif name == LOG:
        path.write_bytes(mutate_log(data.decode(), rng))
    elif kind < 0.2 or path.suffix not in (".json", ".toml", ".safetensors"):
        path.write_bytes(mutate_bytes(data, rng))
    elif path.suffix == ".json":
        path.write_text(mutate_json(data.decode(), rng))
    elif path.suffix == ".toml":
        path.write_text(mutate_toml(data.decode(), rng))
    else:
        size = int.from_bytes(data[:8], "little")
        header = mutate_json(data[8 : 8 + size].decode(), rng).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    if path.parent.name.startswith("step_") and path.name != "manifest.json" and rng.random() < 0.8:
        fit_manifest(path.parent)


def fit_manifest(folder: Path) -> None:
    """Write the manifest of a checkpoint again, as somebody who edited it by hand would."""
    from gpt2.files import write_manifest

    (folder / "manifest.json").unlink()
    if all(path.is_file() for path in folder.iterdir()):
        write_manifest(folder)


def mutants(intact: Path, files: int, logs: int, seed: int) -> Iterator[tuple[str, list[str], Outcome]]:
    """Yield the damaged file, the command and its outcome, for each mutant. Changes the current folder."""
    for number in range(files + logs):
        rng = random.Random(f"{seed} {number}")
        name = list(TARGETS)[number % len(TARGETS)] if number < files else LOG
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(intact, scratch, dirs_exist_ok=True)
            os.chdir(scratch)
            damage(name, rng)
            command = rng.choice(LOG_COMMANDS if name == LOG else TARGETS[name])
            yield name, command, call_forked(command)
            os.chdir(intact)


def warm_up(intact: Path) -> None:
    """Call every command once on intact files, so that a forked process need not import anything."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(intact, scratch, dirs_exist_ok=True)
        os.chdir(scratch)
        for command in [
            *RUN_COMMANDS,
            *MODEL_COMMANDS,
            ["inspect", "npy", "--html=page.html"],
            JOIN,
            PREPARE,
            START_OVER,
        ]:
            succeed(command)
        os.chdir(intact)


def survey(files: int, logs: int, seed: int, show: bool = False) -> tuple[Counter, list[str]]:
    """Return how many mutants ended in which way, and a description of each that ended wrongly."""
    os.environ["OMP_NUM_THREADS"] = "1"
    ended, wrong = Counter[str](), []
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            build(Path(scratch))
            warm_up(Path(scratch))
            for number, (name, command, outcome) in enumerate(mutants(Path(scratch), files, logs, seed)):
                ended[outcome.problem or f"status {outcome.status}"] += 1
                if outcome.problem:
                    wrong.append(
                        f"{number}: {outcome.problem}: {name}: gpt2 {' '.join(command)}\n{outcome.err[-1500:]}"
                    )
                    if show:
                        print(wrong[-1], flush=True)
        finally:
            os.chdir(back)
    return ended, wrong


if __name__ == "__main__":
    count, seed, *_ = [int(a) for a in sys.argv[1:] if a != "--logs"] + [0]
    found, wrong = survey(*((0, count) if "--logs" in sys.argv else (count, 0)), seed, show=True)
    print(dict(found), f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)
