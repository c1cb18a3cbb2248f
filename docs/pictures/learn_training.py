"""The pictures of chapters 7 to 11 and 14 of docs/learn, and the curves that they show.

    python docs/pictures/learn_training.py NAME RUN...

stores the losses of runs in docs/learn/curves/NAME.json, together with their settings. The name `logits` stores those
of a prompt. The other figures are computed by the project's functions: rates by `gpt2.optim.schedule`, sequences by
`gpt2.data.batches`, bytes by `gpt2.accounting`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import Picture, axes, curve, levels, number

import gpt2
from gpt2.accounting import Sharing, communication, memory, num_params
from gpt2.data.batches import Batches
from gpt2.data.shards import Tokens, open_shard
from gpt2.generation.sampling import Sampling, candidates
from gpt2.optim.schedule import SCHEDULES, learning_rate
from gpt2.reporting.charts import Scale
from gpt2.runlog.records import read_log
from gpt2.training.recipes import run_settings

CURVES = Path(__file__).parent.parent / "learn" / "curves"
MACHINE = ("device", "dtype", "out_dir")
"""Settings that depend on the machine, or on the name of a folder; they are not stored."""
PROMPT = "ROMEO:\nO, speak a"
"""The text whose next character chapter 8 looks at."""
MEAN_OF = 10
"""Number of steps whose losses become one point of a curve."""


def schedules() -> Picture:
    """Draw the learning rate of each schedule over 1,000 steps."""
    picture = Picture(760, 330, "The learning rate of four schedules over 1,000 steps")
    area, across, up = (70, 60, 520, 220), Scale(0, 1000), Scale(0, 1.1)
    axes(picture, area, across, up, "learning rate as a share of its peak")
    for row, schedule in enumerate(SCHEDULES):
        settings = {"peak": 1.0, "minimum": 0.1, "warmup_iters": 100, "decay_iters": 1000}
        rates = [(step, learning_rate(step, schedule=schedule, **settings)) for step in range(0, 1001, 5)]
        curve(picture, area, across, up, torch.tensor(rates), f"s{row}", "" if row == 0 else "7 4")
        at = 84 + 28 * row
        picture.line([(620, at), (655, at)], f"s{row}", 2, dashes="" if row == 0 else "7 4")
        picture.text(664, at, schedule, anchor="start")
    picture.text(620, 216, "warmup: 100 steps", "quiet", "start", 12)
    picture.text(620, 236, "min_lr: a tenth", "quiet", "start", 12)
    picture.text(620, 256, "of the peak", "quiet", "start", 12)
    picture.text(330, 314, "optimizer step", "quiet", size=12)
    return picture


def sequences_of(steps: int, processes: int) -> list[tuple[int, int, int]]:
    """Return (step, process, offset) of every sequence: of 8 micro-batches a step, each of 2 sequences of 16 tokens.

    The offsets are read from the batches of a dataset whose tokens are their own offsets.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers_train.bin"
        path.write_bytes(np.arange(1000, dtype="<u2").tobytes())
        batches = Batches(
            Tokens([open_shard(path)]), block_size=16, batch_size=2, accumulation=8, order="random", seed=1
        )
        return [
            (step, rank, int(offset))
            for step in range(steps)
            for rank in range(processes)
            for batch in batches.micro_batches(step, rank, processes, torch.device("cpu"))
            for offset in batch.x[:, 0]
        ]


def processes() -> Picture:
    """Draw the sequences of two optimizer steps in the training tokens, and which of four processes takes each."""
    picture = Picture(760, 400, "The sequences of two optimizer steps, and which of four processes takes each")
    left, width, row = 110, 610, 26
    picture.text(20, 26, "1,000 training tokens; each mark is a sequence of 16", anchor="start", bold=True)
    for step in range(2):
        top = 50 + 172 * step
        picture.text(20, top + 10, f"step {step}", anchor="start", bold=True)
        for rank in range(4):
            y = top + row * (rank + 1)
            picture.text(left - 12, y + 8, f"process {rank}", "text", "end", 12)
            picture.line([(left, y + 8), (left + width, y + 8)], "grid", 1)
        y = top + row * 5
        picture.text(left - 12, y + 8, "all", "text", "end", 12)
        picture.line([(left, y + 8), (left + width, y + 8)], "grid", 1)
        for _, rank, offset in (found for found in sequences_of(2, 4) if found[0] == step):
            for at in (top + row * (rank + 1), y):
                picture.box(left + width * offset / 1000, at, width * 16 / 1000, 16, f"s{rank}", 0.5)
    picture.text(left, 388, "0", "quiet", size=12)
    picture.text(left + width, 388, "1,000", "quiet", size=12)
    picture.text(left + width / 2, 388, "offset in the training tokens", "quiet", size=12)
    return picture


def sharing() -> Picture:
    """Draw what each of four processes keeps of the weights, gradients and optimizer state of the largest GPT-2."""
    config = gpt2.GPTConfig.preset("gpt2-xl")
    full = 4 * num_params(config)
    picture = Picture(760, 396, "What each of four processes keeps with DDP, ZeRO and FSDP")
    ways = {
        "DDP": ("of gradients", Sharing(4)),
        "ZeRO stage 1": ("of gradients and weights", Sharing(4, zero_stage=1)),
        "FSDP": ("of weights and gradients", Sharing(4, parallel="fsdp")),
    }
    for at, (colour, kind) in enumerate((("s0", "weights"), ("s1", "gradients"), ("s2", "optimizer state"))):
        picture.box(190 + 140 * at, 18, 16, 16, colour, 0.5)
        picture.text(214 + 140 * at, 26, kind, anchor="start")
    picture.text(670, 26, "GB in each", "quiet", size=12)
    for row, (name, (what, way)) in enumerate(ways.items()):
        top = 66 + 112 * row
        picture.text(20, top + 26, name, anchor="start", bold=True)
        picture.text(20, top + 48, f"sends {communication(config, way, 1) / 1e9:.1f} GB", "quiet", "start", 12)
        picture.text(20, top + 66, what, "quiet", "start", 12)
        found = memory(config, way, 1, half=True)
        for rank in range(4):
            x = 190 + 108 * rank
            picture.text(x + 46, top - 4, f"process {rank}", "quiet", size=12)
            parts = (found.parameters / full, found.gradients / full, found.optimizer / (2 * full))
            for bar, (share, height) in enumerate(zip(parts, (30, 30, 60), strict=True)):
                # a bar is as high as its bytes, and its filled part as wide as the share that the process keeps
                y, high = top + 10 + 0.62 * (0, 30, 60)[bar], 0.62 * height
                picture.box(x, y, 92, high, "rule", 0.08)
                offset = 92 * rank / 4 if share < 0.99 else 0
                picture.box(x + offset, y, 92 * min(share, 1), high, f"s{bar}", 0.5)
        kept = found.parameters + found.gradients + found.optimizer
        picture.text(670, top + 46, f"{kept / 1e9:.1f}", bold=True)
    return picture


def record(name: str, runs: list[Path]) -> None:
    """Store the settings and the losses of runs in a file of `CURVES`; with the name `logits`, those of a prompt."""
    CURVES.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    if name == "logits":
        model, tokenizer = gpt2.load(runs[0])
        logits = model.eval()(torch.tensor([tokenizer.encode(PROMPT)]))[0][0, -1].tolist()
        settings = {k: v for k, v in run_settings(runs[0]).items() if k not in MACHINE}
        found = {"settings": settings, "prompt": PROMPT, "characters": tokenizer.decode(list(range(len(logits))))}
        found["logits"] = [round(value, 4) for value in logits]
        (CURVES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    for run in runs:
        log = read_log(run)
        losses = [r["loss"] for r in log if r["event"] == "train"]
        means = [float(np.mean(losses[i : i + MEAN_OF])) for i in range(0, len(losses), MEAN_OF)]
        found[run.name] = {
            "settings": {k: v for k, v in run_settings(run).items() if k not in MACHINE},
            "train": [[MEAN_OF * (i + 0.5), round(mean, 4)] for i, mean in enumerate(means)],
            "train_evaluated": [[r["step"], round(r["train_loss"], 4)] for r in log if r["event"] == "eval"],
            "val": [[r["step"], round(r["val_loss"], 4)] for r in log if r["event"] == "eval"],
        }
    text = json.dumps(found)
    (CURVES / f"{name}.json").write_text(text.replace(', "', ',\n"').replace('": {"', '": {\n"') + "\n")


def stored(name: str) -> dict[str, Any]:
    """Return what `record` stored: settings and curves by the name of the run."""
    return json.loads((CURVES / f"{name}.json").read_text(encoding="utf-8"))


def dots(picture: Picture, area: tuple[float, ...], x: Scale, y: Scale, points: list, colour: str) -> None:
    """Draw a small square at each point of a chart."""
    left, top, width, height = area
    for a, b in points:
        picture.box(left + width * x(a) - 3, top + height * (1 - y(b)) - 3, 6, 6, colour, 0.9)


def curves_of_steps(picture: Picture, names: tuple[tuple[str, str], ...]) -> None:
    """Draw a legend of colours and names beside the curves, and label the horizontal axis."""
    for at, (colour, text) in enumerate(names):
        picture.line([(606, 150 + 26 * at), (636, 150 + 26 * at)], colour, 2)
        picture.text(644, 150 + 26 * at, text, anchor="start", size=12)
    picture.text(330, 324, "optimizer step", "quiet", size=12)


def training_curve() -> Picture:
    """Draw the training loss and the validation loss of chapter 7's run."""
    [run] = stored("training").values()
    steps = run["val"][-1][0]
    picture = Picture(760, 340, f"Training and validation loss of a run of {steps:,} steps")
    area, across, up = (70, 60, 520, 230), Scale(0, steps), Scale(1.5, 4.5)
    axes(picture, area, across, up, "loss in nats per token")
    curve(picture, area, across, up, torch.tensor(run["train"]), "s0")
    curve(picture, area, across, up, torch.tensor(run["val"]), "s1", "6 5")
    dots(picture, area, across, up, run["val"], "s1")
    uniform = float(np.log(65))
    level = area[1] + area[3] * (1 - up(uniform))
    picture.line([(area[0], level), (area[0] + area[2], level)], "quiet", 1.5, dashes="3 4")
    picture.text(area[0] + area[2] + 10, level, f"ln 65 = {uniform:.2f}", "quiet", "start", 12)
    curves_of_steps(picture, (("s0", f"mean of {MEAN_OF} steps"), ("s1", "validation")))
    return picture


def sampling() -> Picture:
    """Draw the likeliest next characters at three temperatures, and which of them top-k and top-p keep."""
    found = stored("logits")
    logits, characters = torch.tensor(found["logits"]), found["characters"]
    order = logits.argsort(descending=True)[:8]
    picture = Picture(760, 330, "Probabilities of the next character at three temperatures")
    picture.text(20, 26, f"after {found['prompt']!r}", anchor="start", bold=True)
    for column, temperature in enumerate((0.5, 1.0, 2.0)):
        left, limit = 60 + 240 * column, 0.75
        p, _ = candidates(logits[None], Sampling(temperature=temperature))
        kept, ids = candidates(logits[None], Sampling(temperature=temperature, top_p=limit))
        assert ids is not None
        in_top_p = set(ids[kept > 0].tolist())
        picture.text(left, 58, f"temperature {temperature:g}", anchor="start", bold=True)
        for row, i in enumerate(order.tolist()):
            y = 76 + 27 * row
            picture.text(left - 12, y + 9, characters[i].replace(" ", "␣"), "text", "end")
            colour, strength = ("s0", 0.5) if i in in_top_p else ("quiet", 0.1)
            picture.box(left, y, max(1, 250 * float(p[0, i])), 18, colour, strength)
            picture.text(left + 250 * float(p[0, i]) + 8, y + 9, f"{float(p[0, i]):.2f}", "quiet", "start", 12)
        y = 76 + 27 * 3 - 5
        picture.line([(left - 30, y), (left + 165, y)], "s1", 1.5, dashes="5 4")
    picture.text(20, 312, "blue: kept by top-p 0.75. Above the dashed line: kept by top-k 3.", "quiet", "start", 12)
    return picture


def kv_cache() -> Picture:
    """Draw which positions each step of decoding computes, without and with a cache."""
    n, cell = 8, 30
    picture = Picture(760, 350, "The positions that are computed in each step, without and with a cache")
    for left, title, has_cache in ((90, "without a cache", False), (450, "with a cache", True)):
        picture.text(left, 26, title, anchor="start", bold=True)
        computed = 0
        for step in range(n):
            y = 62 + cell * step
            picture.text(left - 12, y + cell / 2 - 2, f"step {step + 1}", "quiet", "end", 12)
            for position in range(step + 1):
                is_new = not has_cache or position == step
                computed += is_new
                colour, strength = ("s0", 0.6) if is_new else ("s2", 0.12)
                picture.box(left + cell * position, y, cell - 4, cell - 4, colour, strength)
        picture.text(left, 48, f"{computed} positions computed for {n} tokens", "quiet", "start", 12)
    picture.box(90, 318, 16, 16, "s0", 0.6)
    picture.text(114, 326, "computed in this step", anchor="start", size=12)
    picture.box(300, 318, 16, 16, "s2", 0.12)
    picture.text(324, 326, "only its keys and values are read", anchor="start", size=12)
    return picture


def overfitting() -> Picture:
    """Draw the losses of chapter 9's run on a small text."""
    [run] = stored("overfitting").values()
    steps = run["val"][-1][0]
    best = min(run["val"], key=lambda point: point[1])
    picture = Picture(760, 340, "Training and validation loss of a run that overfits")
    values = [loss for name in ("val", "train_evaluated") for _, loss in run[name]]
    area, across = (70, 60, 520, 230), Scale(0, steps)
    up = Scale(0.0, 1.05 * max(values))
    axes(picture, area, across, up, "loss in nats per token")
    for name, colour in (("train_evaluated", "s0"), ("val", "s1")):
        curve(picture, area, across, up, torch.tensor(run[name]), colour)
        dots(picture, area, across, up, run[name], colour)
    x = area[0] + area[2] * across(best[0])
    picture.line([(x, area[1]), (x, area[1] + area[3])], "quiet", 1.5, dashes="3 4")
    picture.text(x + 6, area[1] + area[3] - 12, f"best: step {best[0]}", "quiet", "start", 12)
    curves_of_steps(picture, (("s0", "training text"), ("s1", "validation text")))
    return picture


def seeds() -> Picture:
    """Draw the final validation losses of chapter 10's sweep: a row for each setting, a mark for each seed."""
    runs = stored("seeds")
    rows: dict[str, list[float]] = {}
    for run in runs.values():
        rows.setdefault(f"learning rate {run['settings']['learning_rate']:g}", []).append(run["val"][-1][1])
    values = [value for row in rows.values() for value in row]
    margin = 0.2 * (max(values) - min(values))
    picture = Picture(760, 90 + 60 * len(rows), "Validation losses by learning rate and seed")
    area, across = (170, 50, 540, 60 * len(rows) - 20), Scale(min(values) - margin, max(values) + margin)
    left, top, width, height = area
    title = "validation loss at the end; a mark for each seed, a line at the mean"
    picture.text(20, 26, title, anchor="start", bold=True)
    for tick in across.ticks(6):
        at = left + width * across(tick)
        picture.line([(at, top), (at, top + height)], "grid", 1)
        picture.text(at, top + height + 16, number(round(tick, 6)), "quiet", size=12)
    for row, (name, losses) in enumerate(rows.items()):
        y = top + 24 + 56 * row
        picture.text(left - 14, y, name, anchor="end")
        for value in losses:
            picture.box(left + width * across(value) - 5, y - 5, 10, 10, f"s{row}", 0.6)
        at = left + width * across(float(np.mean(losses)))
        picture.line([(at, y - 16), (at, y + 16)], f"s{row}", 2)
    return picture


def memory_of_batches() -> Picture:
    """Draw the memory of training GPT-2 124M by the size of the micro-batch."""
    config, sizes = gpt2.GPTConfig.preset("gpt2"), (1, 2, 4, 8, 16, 32)
    parts = ("parameters", "gradients", "optimizer", "activations", "logits")
    picture = Picture(760, 330, "The memory of training GPT-2 124M, by the size of the micro-batch")
    area, up = (70, 60, 500, 220), Scale(0, 20)
    left, top, width, height = area
    levels(picture, area, up, "GB, products in bfloat16, not compiled")
    for column, batch_size in enumerate(sizes):
        found, total = memory(config, Sharing(), batch_size, half=True), 0.0
        x = left + 16 + column * width / len(sizes)
        for row, part in enumerate(parts):
            size = getattr(found, part) / 1e9
            picture.box(x, top + height * (1 - up(total + size)), 52, height * up(size), f"s{row}", 0.5)
            total += size
        picture.text(x + 26, top + height * (1 - up(total)) - 10, f"{total:.1f}", size=12)
        picture.text(x + 26, top + height + 16, str(batch_size), "quiet", size=12)
    for row, part in enumerate(parts):
        picture.box(600, 80 + 28 * row, 16, 16, f"s{row}", 0.5)
        picture.text(624, 88 + 28 * row, part, anchor="start")
    picture.text(left + width / 2, 316, "sequences of 1,024 tokens in a micro-batch", "quiet", size=12)
    return picture


def tree() -> Picture:
    """Draw the order in which the gradients of eight micro-batches are added, and which of four processes does it."""
    picture = Picture(760, 330, "The order in which the gradients of eight micro-batches are added")
    n, left, pitch, top = 8, 150, 72, 262
    picture.text(20, top + 15, "micro-batch", "quiet", "start", 12)
    for leaf in range(n):
        x = left + pitch * leaf
        picture.box(x - 16, top, 32, 30, f"s{leaf * 4 // n}", 0.5)
        picture.text(x, top + 15, str(leaf))
    nodes, level, y = [left + pitch * leaf for leaf in range(n)], 0, top
    names = ("inside a process", "processes 0 and 1, 2 and 3", "all processes")
    while len(nodes) > 1:
        above = y - 72
        picture.text(20, above, names[level], "quiet", "start", 12)
        merged = []
        for pair, (one, other) in enumerate(zip(nodes[::2], nodes[1::2], strict=True)):
            middle = (one + other) / 2
            colour = f"s{pair}" if level == 0 else "text"
            for x in (one, other):
                picture.line([(x, y - (11 if level else 0)), (middle, above)], colour, 2)
            picture.plus(middle, above)
            merged.append(middle)
        nodes, level, y = merged, level + 1, above
    for process in range(4):
        picture.text(left + pitch * (2 * process + 0.5), top + 46, f"process {process}", "quiet", size=12)
    return picture


PICTURES = {
    "learn-schedules": schedules,
    "learn-processes": processes,
    "learn-sharing": sharing,
    "learn-training-curve": training_curve,
    "learn-sampling": sampling,
    "learn-kv-cache": kv_cache,
    "learn-overfitting": overfitting,
    "learn-seeds": seeds,
    "learn-memory": memory_of_batches,
    "learn-tree": tree,
}
"""Names of the files in docs/images, and what draws them."""

if __name__ == "__main__":
    record(sys.argv[1], [Path(run) for run in sys.argv[2:]])
