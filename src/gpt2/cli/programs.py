"""Command lines of other programs that somebody typed after `gpt2`, and the command of this program for each."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import PurePath

from gpt2.errors import UserError

LAUNCHERS = ("python", "python3", "torchrun", "mpirun", "accelerate")
"""Programs that start another one."""
PROCESSES = ("--nproc-per-node", "--nproc_per_node", "-np", "-n", "--num_processes")
"""Options of these programs with a number of processes."""
SCRIPTS = (
    (r"train\.py|train_gpt2\.py|run_clm\.py|train_gpt2(fp32)?(cu)?", "train"),
    (r"sample\.py", "sample"),
    (r"bench\.py", "bench train"),
    (r".*dev/data/tinyshakespeare\.py", "prepare shakespeare --format=llmc"),
    (r".*dev/data/tinystories\.py", "prepare tinystories --format=llmc"),
    (r".*dev/data/fineweb\.py", "prepare fineweb --format=llmc"),
    (r"fineweb\.py", "prepare fineweb-edu --format=npy --out=edu_fineweb10B"),
    (r".*hellaswag\.py", "eval hellaswag gpt2"),
    (r"prepare\.py", "prepare shakespeare_char"),
    (r"test_gpt2(fp32)?(cu)?", "validate gpt2"),
    (r"profile_gpt2cu", "bench train --trace=trace.json"),
    (r".*download_starter_pack\.sh", "export llmc gpt2 starter_pack"),
)
"""Programs by their path, and the command of this program."""
WITH_OPTIONS = ("train", "sample", "bench train")
"""Commands that take the options of the other program."""
PREPARE = re.compile(r"(?:.*/)?data/([\w-]+)/prepare\.py")
"""Path of the program with which nanoGPT prepares a corpus."""


def refuse_programs(words: Sequence[str], rewrite: Callable[[list[str]], list[str]]) -> None:
    """Raise UserError, with the right command line, for a command line of another program.

    rewrite: returns a command line with the names of this program.
    """
    if words[0] == "make" and len(words) > 1:
        raise UserError(f"nothing has to be compiled here: {shlex.join(words)} is not needed; use gpt2 train")
    is_launcher = words[0] in LAUNCHERS
    position = next((i for i, word in enumerate(words) if _command_of(word)), None) if is_launcher else 0
    if position is None or not (command := _command_of(words[position])):
        return
    launcher, options = list(words[:position]), list(words[position + 1 :])
    if "--nnodes" in " ".join(launcher) and command in WITH_OPTIONS:
        new = [*launcher, "-m", "gpt2", *rewrite([*command.split(), *options])]
        raise UserError(f"this program is a module for torchrun: {shlex.join(new)}")
    new = command.split()
    if command in WITH_OPTIONS:
        new = rewrite([*new, *options, *_processes(launcher)])
    raise UserError(f"{' '.join(words[: position + 1])} is another program; here: gpt2 {shlex.join(new)}")


def _command_of(word: str) -> str | None:
    """Return the command for the path of another program; None for any other word."""
    if match := PREPARE.fullmatch(word):
        from gpt2.data.corpora import CORPORA

        return f"prepare {match[1]}" if match[1] in CORPORA else f"prepare FILES --out=data/{match[1]}"
    path = word.removeprefix("./")
    candidates = (path, PurePath(path).name) if path.endswith(("cu", ".py", "_gpt2")) else (path,)
    return next((to for candidate in candidates for name, to in SCRIPTS if re.fullmatch(name, candidate)), None)


def _processes(launcher: Sequence[str]) -> list[str]:
    """Return --nproc for the number of processes in the options of a launcher."""
    for i, word in enumerate(launcher):
        name, _, value = word.partition("=")
        if name in PROCESSES:
            return [f"--nproc={value or ''.join(launcher[i + 1 : i + 2])}"]
    return []
