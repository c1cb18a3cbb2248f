"""Compare the speed and the choices of `gpt2 eval hellaswag` with those of build-nanogpt.

    python benchmarks/hellaswag.py hellaswag_val.jsonl --build_nanogpt ~/build-nanogpt

Both evaluate the same tasks with the same random weights, by default those of the 124M model. The tasks are spread
evenly over the file, because its first ones are the shortest. In each round the programs run one after the other. The
time is from the text to the choices. The functions and the model of build-nanogpt are those of its files, unchanged.
Its loop over the examples is part of a longer program, so this file has a copy of it, in float32 and without its
output.
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
from other_projects import definitions

from gpt2.device import pick_device
from gpt2.evaluation.choices import choose
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import gpt2_tokenizer


def build_nanogpt(folder: Path, model: GPT, lines: list[str]) -> Callable[[], list[int]]:
    """Return a function that evaluates the tasks in `lines` with build-nanogpt and returns its choices.

    The weights are those of `model`.
    """
    program = definitions(folder / "train_gpt2.py")
    render = definitions(folder / "hellaswag.py", enc=tiktoken.get_encoding("gpt2")).render_example
    config = model.config
    shape = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    network = program.GPT(program.GPTConfig(**{name: getattr(config, name) for name in shape}))
    missing = network.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == ["lm_head.weight"], "the output head is the token embedding"
    device = next(model.parameters()).device
    network.to(device).eval()

    @torch.no_grad()
    def run() -> list[int]:
        choices = []
        for line in lines:
            _, tokens, mask, _ = render(json.loads(line))
            tokens, mask = tokens.to(device), mask.to(device)
            logits, _ = network(tokens)
            choices.append(program.get_most_likely_row(tokens, mask, logits))
        return choices

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="tasks of HellaSwag as .jsonl")
    parser.add_argument("--build_nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="gpt2", help="size of the model, which has random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], help="dtypes of the matrix products of gpt2")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()

    device = pick_device(arguments.device)
    torch.manual_seed(1337)
    model = GPT(GPTConfig.preset(arguments.model)).to(device).eval()

    def toolkit(dtype: str) -> Callable[[], list[int]]:
        def run() -> list[int]:
            tasks = read_tasks(spread, gpt2_tokenizer())
            return choose(model, tasks, dtype=dtype).predictions_norm

        return run

    every = arguments.data.read_text(encoding="utf-8").splitlines()
    lines = [every[i * len(every) // arguments.tasks] for i in range(arguments.tasks)]
    spread = Path(tempfile.mkdtemp()) / "tasks.jsonl"
    spread.write_text("\n".join(lines) + "\n", encoding="utf-8")
    programs = {f"gpt2, {dtype}": toolkit(dtype) for dtype in arguments.dtypes}
    if arguments.build_nanogpt:
        programs["build-nanogpt, float32"] = build_nanogpt(arguments.build_nanogpt, model, lines)
    gpt2_tokenizer()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    choices: dict[str, list[int]] = {}
    for number in range(arguments.rounds):
        for name, run in programs.items():
            began = time.perf_counter()
            choices[name] = run()
            seconds[name].append(time.perf_counter() - began)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)

    base = list(programs)[-1]
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
    print(f"| | tasks/s, median (spread) | relative to {base} | different choices |\n|---|---|---|---|")
    for name, row in table.items():
        rate = f"{row['tasks_per_second']:.2f} ({row['slowest']:.2f}–{row['fastest']:.2f})"
        print(f"| {name} | {rate} | {row['ratio']:.2f}× | {row['other_choices']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
