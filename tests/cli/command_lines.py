"""Makes command lines of every command with extreme, wrong, empty and odd values, and runs them.

`python tests/cli/command_lines.py 5000 SEED` prints every line that ends with a traceback, with another status than
0, 1 or 2, after more than 10 seconds of computing, or needs more than 1 GB. Each line runs in a process of its own,
forked from this one, in a copy of a folder with a text, a dataset and a run.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cyclopts
from cyclopts.argument import Argument, ArgumentCollection

from gpt2.cli import main, make_app

SECONDS = 10
"""Seconds of computing that a command line may take."""
WAIT = 60
"""Seconds until a command line that waits counts as one that hangs; other programs can delay it."""
BYTES = 10**9
FAULT = 97
"""Status of a process with an uncaught exception."""

NUMBERS = [
    "0", "-1", "1", "2", "3", "16", "257", "100000", "1000000", "1000000000", "1000000000000", "2147483648",
    "9223372036854775807", "9223372036854775808",
    "-9223372036854775809", "9" * 30, "9" * 5000, "1e308", "1e9", "1e-320",
    "nan", "inf", "-inf", "0.5", "1.5", "-0.0", "0x10", "1_000", "٣", "²", "1/2", "0/0", "5/4", f"{'9' * 5000}/2",
]  # fmt: skip
TEXTS = [
    "", " ", "-", "--", "---", "~", "~nobody/x", "a" * 300, "x" * 5000, "é😀", "\udcff", "a\udcffb", "[1,2]", "{}",
    "[", '["a"]', "*", "**", "?", "true", "false", "yes", "maybe", "None", "null", "auto", "a,b", "\n",
    "\x1b[31m", "a\tb",
    "../x", "/", ".", "..", "//", "cuda:99999999999999999999", "cpu:1", "mps", "float32", "random:gpt5", "random:",
    "<|endoftext|>", "gpt2-medium", "FILE:", "FILE:/dev/zero", "FILE:missing", "FILE:d", "FILE:binary",
]  # fmt: skip
PATHS = [
    "d", "r", "t.txt", "empty", "empty.txt", "binary", "missing", "missing/x", "/dev/null", "/dev/zero", "/dev/full",
    "/dev/stdin", "/dev/stdout", "d/train.bin", "d/dataset.json", "r/log.jsonl", "r/config.toml", "h.jsonl",
    "t.txt/x", "link", "x.png", "x.json", "x.svg", "x.gguf", "*.txt", "/proc/self",
    "recipe.toml", "recipe.py", "binary.toml",
]  # fmt: skip
TINY = [
    "--n_layer=1",
    "--n_head=1",
    "--n_embd=8",
    "--block_size=8",
    "--batch_size=2",
    "--eval_iters=1",
    "--dataset=d",
    "--out_dir=o",
    "--max_iters=1",
    "--device=cpu",
]
ALWAYS = {
    ("train",): ["--no-compile", "--no-wandb_log", "--no-trackio_log", "--no-tensorboard_log", "--eval_iters=1"],
    ("bench", "train"): ["--no-compile"],
    ("bench", "data"): ["--steps=2"],
    ("bench", "sample"): ["--rounds=1", "--device=cpu"],
    ("plan",): ["--no-compile"],
    ("doctor",): ["--quick"],
    ("sweep",): ["--no-compile", "--no-wandb_log", "--no-trackio_log", "--no-tensorboard_log", "--eval_iters=1"],
    ("demo",): ["--minutes=nan"],  # a demo takes minutes
}
"""Options at the end of every line of a command, without which valid ones would take long."""
BEFORE = {
    ("train",): TINY,
    ("bench", "train"): [*TINY, "--steps=2"],
    ("plan",): [*TINY, "--no-probe"],
    ("sweep",): [*TINY, "--grid=learning_rate=1e-3", "--out=s"],
    ("eval", "hellaswag"): ["--data=h.jsonl"],
    ("sample",): ["--max_new_tokens=3"],
}
"""Options at the start of every line of a command; later ones replace them."""
OMITTED = {"--help", "-h", "--version", "--serve", "--max-minutes", "--compile", "--nproc", "--rounds", "--seeds"}
LONG_WHEN_VALID = {"--max-iters": 3, "--max-new-tokens": 30, "--num-samples": 3, "--sample-tokens": 30, "--steps": 3}
LONG_WHEN_VALID |= {"--gradient-accumulation-steps": 1000}
"""Options with which the work grows, and the largest number that is soon done; larger ones are given beyond their
bounds."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command line."""

    line: list[str]
    fault: str
    """What is wrong, in a word; empty for nothing."""
    seconds: float
    status: int
    err: str


def commands(app: cyclopts.App, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ArgumentCollection]]:
    """Yield the words and the arguments of every command."""
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        if command.default_command is not None:
            yield (*names, name), command.assemble_argument_collection()
        yield from commands(command, (*names, name))


def make_world(folder: Path) -> None:
    """Fill a folder with a text, a dataset `d`, a run `r` and odd files."""
    from gpt2.data.prepare import prepare
    from gpt2.training.config import TrainConfig
    from gpt2.training.loop import train

    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "over", "some", "hill"]
    (folder / "t.txt").write_text("\n".join(" ".join(rng.choices(words, k=8)) for _ in range(300)))
    prepare(folder / "t.txt", out=folder / "d", tokenizer="byte")
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "batch_size": 2, "eval_iters": 1}
    train(
        TrainConfig(
            dataset=str(folder / "d"), out_dir=str(folder / "r"), max_iters=2, device="cpu", compile=False, **shape
        )
    )
    task = {"activity_label": "A", "ctx": "the", "endings": [" cat", " mat", " dogs", " hill"], "label": 0}
    (folder / "h.jsonl").write_text(json.dumps(task) + "\n")
    (folder / "binary").write_bytes(rng.randbytes(5000))
    (folder / "binary.toml").write_bytes(rng.randbytes(500))
    (folder / "recipe.toml").write_text("batch_size = 3\nmax_iters = 1\n")
    (folder / "recipe.py").write_text("batch_size = 3\nmax_iters = 1\ndataset = 'd'\n")
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    (folder / "link").symlink_to("link")


def value_of(rng: random.Random, argument: Argument) -> str:
    """Return a value for an argument, which is more often of its kind than not."""
    hint = str(argument.hint)
    choices = [str(choice) for choice in getattr(argument.hint, "__args__", ()) if isinstance(choice, str | int)]
    if choices and rng.random() < 0.6:
        return rng.choice(choices)
    pools = [NUMBERS] if "int" in hint or "float" in hint else [PATHS, TEXTS]
    value = rng.choice(rng.choice(pools if rng.random() < 0.8 else [NUMBERS, TEXTS, PATHS]))
    most = LONG_WHEN_VALID.get(argument.name)
    if most is not None and (digits := value.replace("_", "")).isdecimal() and most < int(digits[:30]):
        return "9" * 20
    return value


def make_line(rng: random.Random, found: list[tuple[tuple[str, ...], ArgumentCollection]]) -> list[str]:
    """Return the words of a command line after `gpt2`."""
    names, arguments = rng.choice(found)
    words: list[str] = []
    options = [a for a in arguments if a.name.startswith("-") and not OMITTED & set(a.names)]
    for argument in arguments:
        if not argument.name.startswith("-") and argument.name != "*" and rng.random() < 0.97:
            words.append(positional(rng, names, argument))
    for argument in rng.sample(options, min(len(options), rng.choice([0, 1, 1, 2, 3, 4]))):
        name = rng.choice(argument.names)
        if argument.hint is bool:
            words.append(rng.choice([name, f"{name}={rng.choice(['true', 'false', 'yes', '', '1', 'x', '-'])}"]))
        elif rng.random() < 0.9:
            words.append(f"{name}={value_of(rng, argument)}")
        else:
            words += [name, value_of(rng, argument)]
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice([*TEXTS, *PATHS, "--no", "-x", "--=", "--seed", "-o"]))
    return [*names, *BEFORE.get(names, []), *words, *ALWAYS.get(names, [])]


def positional(rng: random.Random, names: tuple[str, ...], argument: Argument) -> str:
    """Return a value for a positional argument, which is most often a valid one."""
    valid = {"MODEL": "r", "DATASET": "d", "RUNS": "r", "SOURCES": "t.txt", "OUT": "new", "RECIPE": "recipe.toml"}
    valid |= {"NAME": "r", "IDS": "5", "FOLDERS": ".", "TEXT": "FILE:t.txt"}
    if argument.name == "FORMAT":
        return rng.choice(["hf", "nanogpt", "llmc", "gguf", "safetensors", "", "onnx"])
    if argument.name in valid and rng.random() < 0.7 and names != ("validate",):  # which takes long to import
        return valid[argument.name]
    value = rng.choice(PATHS if rng.random() < 0.7 else TEXTS)
    return "missing" if names == ("validate",) and value.startswith("r") else value


def run_line(line: list[str], world: Path) -> Outcome:
    """Run a command line in a new process, and say what is wrong with the outcome."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "world"
        shutil.copytree(world, folder, symlinks=True)
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        began = time.monotonic()
        if (pid := os.fork()) == 0:
            run_here(line, folder, out, err)
        _, how, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        text = err.read_text(errors="replace") if err.exists() else ""
    status = os.waitstatus_to_exitcode(how)
    return Outcome(line, fault_of(status, text, usage.ru_maxrss), seconds, status, text)


def fault_of(status: int, err: str, kilobytes: int) -> str:
    """Return what is wrong with an outcome, in a word; nothing for a good one."""
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        return "hang"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "there is not enough memory" in err or "does not fit into memory" in err or (kilobytes - own) * 1024 > BYTES:
        return "memory"
    if status == FAULT or "Traceback" in err:
        return "traceback"
    return "" if status in (0, 1, 2) else "status"


def run_here(line: list[str], folder: Path, out: Path, err: Path) -> None:
    """Run a command line in this process and end it with its status."""
    status = FAULT
    try:
        os.chdir(folder)
        for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.environ["HOME"] = str(folder)
        data = next(r for r in Path("/proc/self/status").read_text().splitlines() if r.startswith("VmData"))
        most = int(data.split()[1]) * 1024 + BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 1))
        signal.alarm(WAIT)
        sys.stdin, sys.stdout, sys.stderr = (
            open(0, closefd=False),  # noqa: SIM115
            open(1, "w", encoding="utf-8", closefd=False),  # noqa: SIM115
            open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False),  # noqa: SIM115
        )
        sys.argv = ["gpt2", *line]
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def limited(group: Path) -> Path:
    """Make what `free_memory` reads of a container, so that it sees what the processes may use."""
    group.mkdir()
    for name, value in {"memory.max": BYTES, "memory.current": 0, "memory.stat": ""}.items():
        (group / name).write_text(str(value))
    return group


def run_lines(count: int, seed: int) -> Iterator[Outcome]:
    """Run `count` command lines and yield their outcomes."""
    import matplotlib
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import torch

    import gpt2.bench.plan
    import gpt2.bench.sample
    import gpt2.data.train_tokenizer
    import gpt2.device
    import gpt2.evaluation.hellaswag_accuracy
    import gpt2.formats.export
    import gpt2.reporting.picture

    os.environ |= {"MPLCONFIGDIR": matplotlib.get_configdir()}  # elsewhere it looks for fonts again
    os.environ |= {"COLUMNS": "100", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    rng, found = random.Random(seed), list(commands(make_app()))
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder))
        gpt2.device.CONTAINER = limited(Path(folder) / "container")
        for _ in range(count):
            yield run_line(make_line(rng, found), Path(folder))


def shown(line: list[str]) -> str:
    """Return a command line as a text of limited length."""
    return " ".join(repr(w if len(w) < 60 else f"{w[:40]}…({len(w)})") for w in line)


if __name__ == "__main__":
    faults: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    slowest = 0.0
    for outcome in run_lines(int(sys.argv[1]), int(sys.argv[2])):
        statuses[outcome.status] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.fault:
            faults[outcome.fault] += 1
            last = "\n    ".join(outcome.err.splitlines()[-4:])[-700:]
            print(
                f"{outcome.fault} ({outcome.status}, {outcome.seconds:.1f} s): {shown(outcome.line)}\n    {last}",
                flush=True,
            )
    print(
        f"{sum(statuses.values())} lines, statuses {dict(statuses)}, slowest {slowest:.1f} s, faults {dict(faults)}"
    )
