"""Command lines of other programs that somebody typed after `gpt2`, and the command of this program for each."""

import re
import shlex
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import PurePath

from gpt2.cli.habits import SEVERAL_MACHINES
from gpt2.errors import UserError

LAUNCHERS = ("python", "python3", "torchrun", "mpirun", "accelerate", "bash", "sh", "sbatch", "chmod")
"""Programs that start another one, or that are needed before it can be started."""
PROCESSES = ("--nproc-per-node", "--nproc_per_node", "-np", "-n", "--num_processes")
"""Options of these programs with a number of processes."""
HOSTS = ("--host", "-host", "-H", "--hostfile")
"""Options of mpirun with several machines."""
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
"""An environment variable before a command."""

Command = str | Callable[[Sequence[str]], str]
"""A command of this program, or a function of the other program's options and arguments that returns it."""


def value_of(options: Sequence[str], *names: str) -> str | None:
    """Return the value that one of the options `names` has in a command line."""
    for i, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else "".join(options[i + 1 : i + 2])
    return None


def fineweb(options: Sequence[str]) -> str:
    """Return the command for llm.c's dev/data/fineweb.py."""
    name = "fineweb-edu" if value_of(options, "-t", "--type") == "edu" else "fineweb"
    size = "-100B" if value_of(options, "-v", "--version") == "100B" else ""
    return f"prepare {name}{size} --format=llmc"


def hellaswag(options: Sequence[str]) -> str:
    """Return the command for the hellaswag.py of llm.c and build-nanogpt."""
    model, device = value_of(options, "-m", "--model_type"), value_of(options, "-d", "--device")
    return shlex.join(["eval", "hellaswag", model or "gpt2", *([f"--device={device}"] if device else [])])


def export_hf(options: Sequence[str]) -> str:
    """Return the command for llm.c's dev/eval/export_hf.py."""
    source, folder = value_of(options, "-i", "--input"), value_of(options, "-o", "--output")
    dtype = value_of(options, "-d", "--dtype")
    return shlex.join(
        ["export", "hf", source or "MODEL", folder or "FOLDER", *([f"--dtype={dtype}"] if dtype else [])]
    )


def run_eval(options: Sequence[str]) -> str:
    """Return the command for llm.c's dev/eval/run_eval.sh, which evaluates the tasks of the first LLM leaderboard."""
    model, result = [*options, *("MODEL", "results")[len(options) :]][:2]
    return shlex.join(["eval", "harness", model, "--tasks=openllm", f"--output_path={result}"])


SCRIPTS: tuple[tuple[str, Command], ...] = (
    (r"train\.py|train_gpt2\.py|run_clm\.py|train_gpt2?(fp32)?(cu)?", "train"),
    (r"sample\.py", "sample"),
    (r"bench\.py", "bench train"),
    (r"tinyshakespeare\.py", "prepare shakespeare --format=llmc"),
    (r"tinystories\.py", "prepare tinystories --format=llmc"),
    (r".*dev/data/fineweb\.py", fineweb),
    (r"fineweb\.py", "prepare fineweb-edu --format=npy --out=edu_fineweb10B"),
    (r"edu_fineweb\.sh", "prepare fineweb-edu-100B --format=llmc"),
    (r"fineweb\.sh", "prepare fineweb-100B --format=llmc"),
    (r"hellaswag\.py", hellaswag),
    (r"mmlu\.py", "eval harness gpt2 --tasks=mmlu"),
    (r"run_eval\.sh", run_eval),
    (r"export_hf\.py", export_hf),
    (r"prepare\.py", "prepare shakespeare_char"),
    (r"test_gpt2(fp32)?(cu)?", "validate gpt2"),
    (r"profile_gpt2cu(\.py)?", "bench train --trace=trace.json"),
    (r"download_starter_pack\.sh", "export llmc gpt2 starter_pack"),
    (
        r"(py)?run_gpt2_124M\.sh",
        "train gpt2 --dataset=fineweb --max_iters=18865 --warmup_iters=700 --min_lr=0 --nproc=8",
    ),
    (
        r"run_gpt2_350M\.sh",
        "train gpt2-medium --dataset=fineweb-100B --max_iters=60000 --warmup_iters=700 --min_lr=0 --nproc=8",
    ),
    (
        r"run_gpt2_774M\.sh",
        "train gpt2-large --dataset=fineweb-100B --max_iters=286102 --warmup_iters=700 --min_lr=0 --nproc=8",
    ),
    (
        r"run_gpt2_1558M\.sh",
        "train gpt2-xl --dataset=fineweb-edu-100B --total_batch_size=1048576 --max_iters=32000 --warmup_iters=700 "
        "--learning_rate=6e-4 --min_lr=6e-5 --nproc=8",
    ),
    (
        r"run_gpt3_125M\.sh",
        "train gpt2 --block_size=2048 --dataset=fineweb-100B --max_iters=572204 --warmup_iters=700 --min_lr=6e-5 "
        "--nproc=8",
    ),
)
"""Programs by their path or their name, and the command of this program."""
MULTI_NODE = re.compile(r"run_gpt2_124M_(mpi\.sh|fs\.sbatch|tcp\.sbatch)")
"""Names of llm.c's programs for several machines."""
WITH_OPTIONS = ("train", "sample", "bench train")
"""Commands that take the options of the other program."""
PREPARE = re.compile(r"(?:.*/)?data/([\w-]+)/prepare\.py")
"""Path of the program with which nanoGPT prepares a corpus."""


def refuse_programs(words: Sequence[str], rewrite: Callable[[list[str]], list[str]]) -> None:
    """Raise UserError, with the right command line, for a command line of another program.

    rewrite: returns a command line with the names of this program.
    """
    environment = list(takewhile(ASSIGNMENT.fullmatch, words))
    typed = words[len(environment) :]
    if typed[:1] == ["make"] and len(typed) > 1:
        command = _command_of(typed[1], ()) or "train"
        raise UserError(f"nothing has to be compiled here: {shlex.join(typed)} is not needed; use gpt2 {command}")
    is_launcher = bool(typed) and typed[0] in LAUNCHERS
    position = next((i for i, word in enumerate(typed) if _command_of(word, ())), None) if is_launcher else 0
    if not typed or position is None or not (command := _command_of(typed[position], typed[position + 1 :])):
        return
    launcher, options = list(typed[:position]), list(typed[position + 1 :])
    program = " ".join(words[: len(environment) + position + 1])
    if command == SEVERAL_MACHINES or any(word.partition("=")[0] in HOSTS for word in launcher):
        raise UserError(f"{program} is another program; {SEVERAL_MACHINES}")
    if "--nnodes" in " ".join(launcher) and command in WITH_OPTIONS:
        new = [*environment, *launcher, "-m", "gpt2", *rewrite([*shlex.split(command), *options])]
        raise UserError(f"this program is a module for torchrun: {shlex.join(new)}")
    new = shlex.split(command)
    if command in WITH_OPTIONS:
        new = rewrite([*new, *options, *_processes(launcher)])
    raise UserError(f"{program} is another program; here: {shlex.join([*environment, 'gpt2', *new])}")


def _command_of(word: str, options: Sequence[str]) -> str | None:
    """Return the command for the path of another program and its options; None for any other word."""
    if match := PREPARE.fullmatch(word):
        from gpt2.data.corpora import CORPORA

        return f"prepare {match[1]}" if match[1] in CORPORA else f"prepare FILES --out=data/{match[1]}"
    path = word.removeprefix("./")
    name = PurePath(path).name
    if MULTI_NODE.fullmatch(name):
        return SEVERAL_MACHINES
    candidates = (path, name) if path.endswith(("cu", ".py", ".sh", "_gpt2")) else (path,)
    found = next((to for each in candidates for pattern, to in SCRIPTS if re.fullmatch(pattern, each)), None)
    return found(options) if callable(found) else found


def _processes(launcher: Sequence[str]) -> list[str]:
    """Return --nproc for the number of processes in the options of a launcher."""
    count = value_of(launcher, *PROCESSES)
    return [] if count is None else [f"--nproc={count}"]
