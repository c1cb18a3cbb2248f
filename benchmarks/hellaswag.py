"""How fast HellaSwag is evaluated: `gpt2 eval hellaswag` beside build-nanogpt's way, and whether the choices agree.

    python benchmarks/hellaswag.py hellaswag_val.jsonl --build_nanogpt ~/build-nanogpt

Both take the same lines, evenly spread over the file because its first tasks are the shortest, and the same random
weights, the 124M model's unless said otherwise. They take turns, one after the other in each round, from the text to
the choices. build-nanogpt's functions and model are taken from its files as they are; its loop over the examples,
which is part of a longer program, is written here again, in float32 and without the line it prints for each example.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
import torch
from peers import definitions

from gpt2.device import pick_device
from gpt2.evaluation.choices import choose
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import gpt2_tokenizer


def build_nanogpt(folder: Path, ours: GPT, lines: list[str]) -> Callable[[], list[int]]:
    """Their evaluation, with our weights, of the examples in `lines`; gives the choices."""
    program = definitions(folder / "train_gpt2.py")
    render = definitions(folder / "hellaswag.py", enc=tiktoken.get_encoding("gpt2")).render_example
    config = ours.config
    shape = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    theirs = program.GPT(program.GPTConfig(**{name: getattr(config, name) for name in shape}))
    missing = theirs.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert missing == ["lm_head.weight"], "which is the token embedding"
    device = next(ours.parameters()).device
    theirs.to(device).eval()

    @torch.no_grad()
    def run() -> list[int]:
        choices = []
        for line in lines:
            _, tokens, mask, _ = render(json.loads(line))
            tokens, mask = tokens.to(device), mask.to(device)
            logits, _ = theirs(tokens)
            choices.append(program.get_most_likely_row(tokens, mask, logits))
        return choices

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="HellaSwag's tasks as .jsonl")
    parser.add_argument("--build_nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="gpt2", help="size of the model with random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], help="of our matrix products")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    device = pick_device(arguments.device)
    torch.manual_seed(1337)
    model = GPT(GPTConfig.preset(arguments.model)).to(device).eval()

    def ours(dtype: str) -> Callable[[], list[int]]:
        def run() -> list[int]:
            tasks = read_tasks(spread, gpt2_tokenizer())
            return choose(model, tasks, dtype=dtype).predictions_norm

        return run

    every = arguments.data.read_text(encoding="utf-8").splitlines()
    lines = [every[i * len(every) // arguments.tasks] for i in range(arguments.tasks)]
    spread = Path(tempfile.mkdtemp()) / "tasks.jsonl"
    spread.write_text("\n".join(lines) + "\n", encoding="utf-8")
    contestants = {f"gpt2, {dtype}": ours(dtype) for dtype in arguments.dtypes}
    if arguments.build_nanogpt:
        contestants["build-nanogpt, float32"] = build_nanogpt(arguments.build_nanogpt, model, lines)
    gpt2_tokenizer()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    choices: dict[str, list[int]] = {}
    for number in range(arguments.rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            choices[name] = run()
            seconds[name].append(time.perf_counter() - began)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)

    base = list(contestants)[-1]
    table = {
        name: {
            "tasks_per_second": arguments.tasks / statistics.median(runs),
            "slowest": arguments.tasks / max(runs),
            "fastest": arguments.tasks / min(runs),
            "ratio": statistics.median(b / r for r, b in zip(runs, seconds[base], strict=True)),
            "other_choices": sum(map(int.__ne__, choices[name], choices[base])),
        }
        for name, runs in seconds.items()
    }
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {threads}, {device}, PyTorch {torch.__version__}"
    print(f"{arguments.tasks} tasks, {arguments.model}, random weights; {machine}; {arguments.rounds} rounds\n")
    print(f"| | tasks/s, median (spread) | to {base} in the same round | other choices |\n|---|---|---|---|")
    for name, row in table.items():
        rate = f"{row['tasks_per_second']:.2f} ({row['slowest']:.2f}–{row['fastest']:.2f})"
        print(f"| {name} | {rate} | {row['ratio']:.2f}× | {row['other_choices']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
