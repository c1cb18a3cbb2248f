"""Tokens a second and peak memory of training: ours beside other projects', in turns.

    python benchmarks/training.py --nanogpt ~/nanoGPT --llmc ~/llm.c --build_nanogpt ~/build-nanogpt --transformers

Each contestant is a process of its own that waits while the others compute. In each round every one makes so many
updates: forward, backward, clipping and AdamW, on batches of one shape. Ours is the trainer itself; of the others
their model and optimizer are taken from their files as they are, in the loop of their trainer without its logging.
"by hand" is nanoGPT with what its users add themselves: autocast, compile and the fused optimizer. Ratios are the
median of the rounds' ratios, memory is the process's largest (of a GPU, its allocator's). --llmc_c is llm.c's C
program, which trains 124M on 4 rows of 64 tokens, without clipping, whatever the others do; it starts anew in every
round, in its folder with the files that its README asks for.
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
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peers import commit, definitions
from torch import Tensor

from gpt2 import accounting, device
from gpt2.bench.train import random_dataset
from gpt2.cli.allocator import keep_freed_memory
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

UNTIMED = 2
"""Updates of each contestant before the first round, the one that compiles among them."""
Update = Callable[[], None]


def ours(options: argparse.Namespace, dtype: str) -> Update:
    """An update of this project's trainer."""
    keep_freed_memory()  # as the command does
    folder = tempfile.mkdtemp()
    config = TrainConfig(
        dataset=str(random_dataset(Path(folder), GPTConfig.vocab_size)),
        vocab_size=GPTConfig.vocab_size,
        out_dir=f"{folder}/run",
        model=options.model,
        batch_size=options.batch_size,
        block_size=options.block_size,
        gradient_accumulation_steps=options.accumulation,
        device=options.device,
        dtype=dtype,  # pyrefly: ignore[bad-argument-type]
        compile=options.compile,
    )
    run = set_up(config, lambda line: print(line, file=sys.stderr))

    def update() -> None:
        train_step(run).loss.item()
        run.state.step += 1

    return update


def theirs(options: argparse.Namespace, model: Any, optimizer: torch.optim.Optimizer, context: Any) -> Update:
    """An update as nanoGPT, build-nanogpt and llm.c make it; the model returns logits and loss."""
    batches = random_batches(options)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update() -> None:
        for _ in range(options.accumulation):
            x, y = next(batches)
            with context:
                loss = model(x, y)[1] / options.accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return update


def random_batches(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of one micro-batch after the other."""
    shape = (options.batch_size, options.block_size + 1)
    while True:
        tokens = torch.randint(GPTConfig.vocab_size, shape)
        if torch.device(options.device).type == "cuda":
            tokens = tokens.pin_memory().to(options.device, non_blocking=True)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def autocast(options: argparse.Namespace) -> Any:
    return torch.autocast(torch.device(options.device).type, torch.bfloat16)


def shape_of(options: argparse.Namespace) -> dict[str, Any]:
    preset = GPTConfig.preset(options.model, block_size=options.block_size)
    return {name: getattr(preset, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}


def nanogpt(options: argparse.Namespace, by_hand: bool) -> Update:
    """nanoGPT's model: on a CPU as it runs there, or with all that one can add."""
    module = definitions(Path(options.nanogpt) / "model.py")
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50304, dropout=0.0, bias=True))
    model.to(options.device)
    kind = torch.device(options.device).type
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
    if by_hand and kind == "cpu":
        kept = ("params", "weight_decay", "lr", "betas")
        groups = [{name: group[name] for name in kept} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, fused=True)
    context = (
        autocast(options) if kind == "cuda" or (by_hand and options.by_hand_dtype == "bfloat16") else nullcontext()
    )
    compiled = by_hand or kind == "cuda"  # its default; its README says to leave it out on a CPU
    return theirs(options, torch.compile(model) if compiled else model, optimizer, context)


def build_nanogpt(options: argparse.Namespace) -> Update:
    """build-nanogpt's model, under bfloat16 autocast as in its script."""
    module = definitions(Path(options.build_nanogpt) / "train_gpt2.py", master_process=True)
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50304)).to(options.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, torch.device(options.device).type)
    return theirs(options, model, optimizer, autocast(options))


def llmc(options: argparse.Namespace) -> Update:
    """The model of llm.c's train_gpt2.py: float32 as it is on a CPU, bfloat16, flash and compile on a GPU."""
    cuda = torch.device(options.device).type == "cuda"
    module = definitions(
        Path(options.llmc) / "train_gpt2.py",
        FLASH=int(cuda),
        ZeroRedundancyOptimizer=None,
    )
    model = module.GPT(module.GPTConfig(**shape_of(options), vocab_size=50257)).to(options.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), torch.device(options.device).type, zero_stage=0)
    model = torch.compile(model) if cuda else model
    return theirs(
        options,
        lambda x, y: model(x, y, return_logits=False),
        optimizer,
        autocast(options) if cuda else nullcontext(),
    )


def serve_trainer(options: argparse.Namespace) -> None:
    """Hugging Face's Trainer, which is asked for updates from within its loop."""
    import transformers as hf

    preset = shape_of(options)
    config = hf.GPT2Config(
        n_positions=preset.pop("block_size"), **preset, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    rows = torch.randint(GPTConfig.vocab_size, (4096, options.block_size))
    data = [{"input_ids": row, "labels": row} for row in rows]
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
    orders = (count + warmups(options) for count in asked())

    class Waits(hf.TrainerCallback):
        left, seconds, began = 0, [], 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.left:
                self.seconds = []
                if not (count := next(orders, 0)):
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
    """Updates before those of a round: on a GPU memory was given back for the others, and is taken again."""
    return 1 if torch.device(options.device).type == "cuda" else 0


def asked() -> Iterator[int]:
    """How many updates to make, again and again."""
    for line in sys.stdin:
        yield int(line)


def answer(options: argparse.Namespace, seconds: list[float]) -> None:
    """Tell the parent what the updates took."""
    where = torch.device(options.device)
    peak = device.peak_memory(where)
    if where.type == "cuda":
        torch.cuda.empty_cache()  # for the others
    print(json.dumps({"seconds": seconds, "peak": peak}), file=sys.__stdout__, flush=True)


def serve(options: argparse.Namespace) -> None:
    """Be one contestant: make as many updates as each line of the standard input says."""
    with contextlib.redirect_stdout(sys.stderr):
        if options.serve == "transformers":
            serve_trainer(options)
        update = {
            "gpt2, float32": lambda: ours(options, "float32"),
            "gpt2, bfloat16": lambda: ours(options, "bfloat16"),
            "nanoGPT": lambda: nanogpt(options, by_hand=False),
            "nanoGPT, by hand": lambda: nanogpt(options, by_hand=True),
            "build-nanogpt": lambda: build_nanogpt(options),
            "llm.c, train_gpt2.py": lambda: llmc(options),
        }[options.serve]()
    for count in asked():
        for _ in range(warmups(options)):
            update()
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            update()
            seconds.append(time.perf_counter() - began)
        answer(options, seconds)


class Contestant:
    """A process that trains when it is asked to."""

    def __init__(self, name: str, arguments: list[str], tokens: int, model: GPTConfig) -> None:
        self.name = name
        self.model = model
        self.tokens = tokens
        """Of an update."""
        self.rounds: list[float] = []
        """Mean seconds of an update, in each round."""
        self.peak = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "--verbose" in arguments else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, updates: int) -> list[float]:
        """Seconds of each of so many updates."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(updates, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended; see why with --verbose")
        said = json.loads(line)
        self.peak = said["peak"]
        return said["seconds"]


class Program:
    """llm.c's C program, started anew for each round."""

    name, tokens = "llm.c, train_gpt2.c, 4×64", 4 * 64
    model = GPTConfig.preset("gpt2", block_size=64)

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.rounds: list[float] = []
        self.peak = 0

    def ask(self, updates: int) -> list[float]:
        """Seconds of each of so many updates, after one that is not counted."""
        command = ["stdbuf", "-oL", str(self.path)]
        seconds: list[float] = []
        with subprocess.Popen(command, cwd=self.path.parent, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if took := re.search(r"\(took ([\d.]+) ms\)", line):
                    seconds.append(float(took[1]) / 1000)
                if len(seconds) > updates:
                    break
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.kill()
        if len(seconds) <= updates:
            raise SystemExit(f"{self.path} ended after {len(seconds)} updates")
        self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024)
        return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--build_nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--llmc", type=Path, help="a checkout of llm.c")
    parser.add_argument("--llmc_c", type=Path, help="llm.c's compiled train_gpt2")
    parser.add_argument("--transformers", action="store_true", help="Hugging Face's Trainer, where it is installed")
    parser.add_argument("--model", default="gpt2", help="size of the model")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of an update")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1, help="updates of a contestant in a round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"], help="formats of ours")
    parser.add_argument("--by_hand_dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="train ours without compiling")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--verbose", action="store_true", help="show what the contestants say")
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
    contestants: list[Contestant | Program] = [Contestant(name, sys.argv[1:], tokens, model) for name in names]
    contestants += [Program(options.llmc_c)] if options.llmc_c else []
    for contestant in contestants:
        first = contestant.ask(UNTIMED)
        print(f"{contestant.name}: first update {first[0]:.1f} s", file=sys.stderr, flush=True)
    for number in range(options.rounds):
        for contestant in contestants:
            contestant.rounds.append(statistics.fmean(contestant.ask(options.updates)))
            said = f"{contestant.name}: {contestant.rounds[-1]:.3f} s an update"
            print(f"round {number + 1}: {said}", file=sys.stderr, flush=True)
    folders["llm.c, train_gpt2.c"] = options.llmc_c and options.llmc_c.parent
    report(options, contestants, {name: commit(folder) for name, folder in folders.items() if folder})


def report(options: argparse.Namespace, contestants: list[Contestant | Program], commits: dict[str, str]) -> None:
    """Print the table, and write it as JSON where that is asked for."""
    where = torch.device(options.device)
    peaks = {dtype: device.measured_flops(where, dtype) for dtype in ("float32", "bfloat16")}
    tokens = contestants[0].tokens
    rates = {c.name: [c.tokens / seconds for seconds in c.rounds] for c in contestants}
    first = rates[contestants[0].name]
    table = {
        c.name: {
            "tokens_per_second": (rate := statistics.median(rates[c.name])),
            "slowest": min(rates[c.name]),
            "fastest": max(rates[c.name]),
            "ratio": statistics.median(f / r for f, r in zip(first, rates[c.name], strict=True)),
            "mfu": {dtype: accounting.mfu(c.model, rate, peak) for dtype, peak in peaks.items()},
            "peak_memory": c.peak,
        }
        for c in contestants
    }
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {threads}, {device.describe(where)}, PyTorch {torch.__version__}"
    products = ", ".join(f"{dtype} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    print(f"{options.model}, {tokens:,} tokens an update in rows of {options.block_size}; {machine}")
    print(f"matrix products {products}; {options.rounds} rounds; {json.dumps(commits)}\n")
    faster = f"{contestants[0].name} is faster by"
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
