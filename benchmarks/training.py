"""Compare the speed and the peak memory of training with those of other projects.

    python benchmarks/training.py --nanogpt ~/nanoGPT --llmc ~/llm.c --build_nanogpt ~/build-nanogpt --transformers

Each program runs in its own process, which waits while the others compute. In each round, every program makes
--updates optimizer steps: forward pass, backward pass, clipping and AdamW, on batches of the same shape. Of `gpt2`
this is the trainer itself. The other projects' models and optimizers are those of their files, unchanged, in the loop
of their trainer without its logging. "nanoGPT, by hand" is nanoGPT on a CPU with what its users can add themselves:
autocast, compile and the fused optimizer. Ratios are the medians of the ratios in each round. Memory is the peak of
the process, or of its allocator on a GPU.

--llmc_c is llm.c's C program, which always trains the 124M model on 4 sequences of 64 tokens, without clipping. It is
started again in every round, in its folder, which needs the files that its README names.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from other_projects import commit
from training_steps import build_nanogpt, llmc, nanogpt, shape_of, toolkit

from gpt2 import accounting, device
from gpt2.model import GPTConfig

UNTIMED = 2
"""Number of optimizer steps of each program before the first round. The first of them compiles the model."""


def serve_trainer(options: argparse.Namespace) -> None:
    """Run Hugging Face's Trainer, and make the requested optimizer steps inside its loop. Does not return."""
    import transformers as hf

    preset = shape_of(options)
    config = hf.GPT2Config(
        n_positions=preset.pop("block_size"), **preset, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    sequences = torch.randint(GPTConfig.vocab_size, (4096, options.block_size))
    data = [{"input_ids": sequence, "labels": sequence} for sequence in sequences]
    cuda = torch.device(options.device).type == "cuda"
    arguments = hf.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        max_steps=10**6,
        weight_decay=0.1,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=not cuda,
        bf16=cuda,
        disable_tqdm=True,
    )
    requests = (count + warmups(options) for count in requested_steps())

    class Waits(hf.TrainerCallback):
        """Waits before a step until the parent requests steps, and answers after the last of them."""

        left, seconds, began = 0, [], 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.left:
                self.seconds = []
                if not (count := next(requests, 0)):
                    os._exit(0)
                self.left = count
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.began)
            self.left -= 1
            if not self.left:
                answer(options, self.seconds[warmups(options) :])

    trainer = hf.Trainer(hf.GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[Waits()])
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()


def warmups(options: argparse.Namespace) -> int:
    """Return the number of untimed steps of a round. On a GPU, memory was freed for the other programs."""
    return 1 if torch.device(options.device).type == "cuda" else 0


def requested_steps() -> Iterator[int]:
    """Yield the number of optimizer steps of each request of the parent process."""
    for line in sys.stdin:
        yield int(line)


def answer(options: argparse.Namespace, seconds: list[float]) -> None:
    """Send the seconds of the optimizer steps and the peak memory to the parent process."""
    where = torch.device(options.device)
    peak = device.peak_memory(where)
    if where.type == "cuda":
        torch.cuda.empty_cache()  # for the other programs
    print(json.dumps({"seconds": seconds, "peak": peak}), file=sys.__stdout__, flush=True)


def serve(options: argparse.Namespace) -> None:
    """Run one program: make the number of optimizer steps that each line of the standard input requests."""
    with contextlib.redirect_stdout(sys.stderr):
        if options.serve == "transformers":
            serve_trainer(options)
        update = {
            "gpt2, float32": lambda: toolkit(options, "float32"),
            "gpt2, bfloat16": lambda: toolkit(options, "bfloat16"),
            "nanoGPT": lambda: nanogpt(options, by_hand=False),
            "nanoGPT, by hand": lambda: nanogpt(options, by_hand=True),
            "build-nanogpt": lambda: build_nanogpt(options),
            "llm.c, train_gpt2.py": lambda: llmc(options),
        }[options.serve]()
    for count in requested_steps():
        for _ in range(warmups(options)):
            update()
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            update()
            seconds.append(time.perf_counter() - began)
        answer(options, seconds)


class ServingProcess:
    """A process of this file that makes optimizer steps on request."""

    def __init__(self, name: str, arguments: list[str], tokens: int, model: GPTConfig) -> None:
        self.name = name
        self.model = model
        self.tokens = tokens
        """Number of tokens in an optimizer step."""
        self.rounds: list[float] = []
        """Mean seconds of an optimizer step in each round."""
        self.peak = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "--verbose" in arguments else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, steps: int) -> list[float]:
        """Make `steps` optimizer steps, and return the seconds of each."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended; --verbose shows its output")
        figures = json.loads(line)
        self.peak = figures["peak"]
        return figures["seconds"]


class CProgram:
    """llm.c's C program, which is started again for each round."""

    name, tokens = "llm.c, train_gpt2.c, 4×64", 4 * 64
    model = GPTConfig.preset("gpt2", block_size=64)

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.rounds: list[float] = []
        self.peak = 0

    def ask(self, steps: int) -> list[float]:
        """Make `steps` optimizer steps after an untimed one, and return the seconds of each."""
        command = ["stdbuf", "-oL", str(self.path)]
        seconds: list[float] = []
        with subprocess.Popen(command, cwd=self.path.parent, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if took := re.search(r"\(took ([\d.]+) ms\)", line):
                    seconds.append(float(took[1]) / 1000)
                if len(seconds) > steps:
                    break
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.kill()
        if len(seconds) <= steps:
            raise SystemExit(f"{self.path} ended after {len(seconds)} steps")
        self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024)
        return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--build_nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--llmc", type=Path, help="a checkout of llm.c")
    parser.add_argument("--llmc_c", type=Path, help="llm.c's compiled train_gpt2")
    parser.add_argument("--transformers", action="store_true", help="also run Hugging Face's Trainer")
    parser.add_argument("--model", default="gpt2", help="size of the model")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--accumulation", type=int, default=1, help="number of micro-batches per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1, help="number of steps per program and round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"], help="dtypes of gpt2")
    parser.add_argument("--by_hand_dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="train gpt2 without torch.compile")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    parser.add_argument("--verbose", action="store_true", help="show the output of the programs")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return

    names = [f"gpt2, {dtype}" for dtype in options.dtypes]
    folders = {
        "nanoGPT": options.nanogpt,
        "build-nanogpt": options.build_nanogpt,
        "llm.c, train_gpt2.py": options.llmc,
    }
    for name, folder in folders.items():
        names += [name] if folder else []
        names += ["nanoGPT, by hand"] if folder and name == "nanoGPT" and options.device == "cpu" else []
    names += ["transformers"] if options.transformers else []
    tokens = options.batch_size * options.block_size * options.accumulation
    model = GPTConfig.preset(options.model, block_size=options.block_size)
    programs: list[ServingProcess | CProgram] = [ServingProcess(name, sys.argv[1:], tokens, model) for name in names]
    programs += [CProgram(options.llmc_c)] if options.llmc_c else []
    for program in programs:
        first = program.ask(UNTIMED)
        print(f"{program.name}: first step {first[0]:.1f} s", file=sys.stderr, flush=True)
    for number in range(options.rounds):
        for program in programs:
            program.rounds.append(statistics.fmean(program.ask(options.updates)))
            line = f"round {number + 1}: {program.name}: {program.rounds[-1]:.3f} s per step"
            print(line, file=sys.stderr, flush=True)
    folders["llm.c, train_gpt2.c"] = options.llmc_c and options.llmc_c.parent
    report(options, programs, {name: commit(folder) for name, folder in folders.items() if folder})


def report(options: argparse.Namespace, programs: list[ServingProcess | CProgram], commits: dict[str, str]) -> None:
    """Print the table, and write it to the file of --json."""
    where = torch.device(options.device)
    peaks = {dtype: device.measured_flops(where, dtype) for dtype in ("float32", "bfloat16")}
    tokens = programs[0].tokens
    rates = {c.name: [c.tokens / seconds for seconds in c.rounds] for c in programs}
    first = rates[programs[0].name]
    table = {
        c.name: {
            "tokens_per_second": (rate := statistics.median(rates[c.name])),
            "slowest": min(rates[c.name]),
            "fastest": max(rates[c.name]),
            "ratio": statistics.median(f / r for f, r in zip(first, rates[c.name], strict=True)),
            "mfu": {dtype: accounting.mfu(c.model, rate, peak) for dtype, peak in peaks.items()},
            "peak_memory": c.peak,
        }
        for c in programs
    }
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {threads}, {device.describe(where)}, PyTorch {torch.__version__}"
    products = ", ".join(f"{dtype} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    print(f"{options.model}, {tokens:,} tokens per step in sequences of {options.block_size}; {machine}")
    print(f"matrix products {products}; {options.rounds} rounds; {json.dumps(commits)}\n")
    faster = f"{programs[0].name} is faster by"
    print(f"| | tokens/s, median (spread) | {faster} | MFU, float32 / bfloat16 | peak memory |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        rate = f"{row['tokens_per_second']:,.0f} ({row['slowest']:,.0f}–{row['fastest']:,.0f})"
        mfu = " / ".join(f"{100 * share:.0f} %" for share in row["mfu"].values())
        print(f"| {name} | {rate} | {row['ratio']:.2f}× | {mfu} | {row['peak_memory'] / 1e9:.2f} GB |")
    if options.json:
        about = {"machine": machine, "matmul": peaks, "commits": commits, "tokens_per_update": tokens}
        options.json.write_text(json.dumps(about | {"results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
