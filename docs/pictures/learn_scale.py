"""The pictures of chapters 12, 13 and 15 of docs/learn.

The losses of chapter 15 are those of docs/learn/curves/scaling.json, which is the file `scaling.json` that a block of
the chapter writes. The rates of an H100 are those of `gpt2.gpus`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import Picture, curve, levels, number

from gpt2.gpus import GPUS
from gpt2.reporting.charts import Scale

CURVES = Path(__file__).parent.parent / "learn" / "curves"
H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
PROCESSES = 4


def ring() -> Picture:
    """Draw which piece of the gradient each of four processes sends to its neighbour, round by round."""
    picture = Picture(760, 300, "Four processes in a ring, and which piece each sends in every round")
    n, left, width = PROCESSES, 150, 90
    for step in range(2 * (n - 1)):
        x = left + width * step + (20 if step >= n - 1 else 0)
        picture.text(x + width / 2 - 5, 74, f"round {step + 1}", "quiet", size=12)
        for rank in range(n):
            is_sum = step < n - 1
            piece = (rank - step) % n if is_sum else (rank + 1 - (step - n + 1)) % n
            y = 92 + 44 * rank
            picture.box(x, y, width - 12, 32, f"s{piece}", 0.3)
            picture.text(x + width / 2 - 6, y + 16, f"piece {piece}")
    for rank in range(n):
        picture.text(left - 14, 108 + 44 * rank, f"process {rank}", anchor="end")
    half = width * (n - 1)
    picture.text(left + half / 2 - 6, 40, "add up: reduce-scatter", bold=True)
    picture.text(left + half * 1.5 + 14, 40, "hand out: all-gather", bold=True)
    picture.text(380, 284, f"Every process sends to the next one, and process {n - 1} to process 0.", "quiet")
    return picture


def intensity(positions: int, channels: int = 768, size: int = 2) -> float:
    """Return the FLOPs per byte of a product (N, C) × (C, 4C) of numbers with `size` bytes, as chapter 13 does."""
    moved = size * (positions * channels + channels * 4 * channels + positions * 4 * channels)
    return 2 * positions * channels * 4 * channels / moved


def roofline() -> Picture:
    """Draw the speed that an H100 can reach by FLOPs per byte, and where products of N positions lie."""
    peak, bandwidth = 1e12 * H100.tflops, 1e9 * H100.bandwidth
    picture = Picture(760, 340, "The speed that an H100 can reach, by FLOPs per byte")
    left, top, width, height = area = (70.0, 56.0, 660.0, 230.0)
    across, up = Scale(0, 4), Scale(0, 3.2)  # powers of ten of FLOPs per byte, and of TFLOP/s
    picture.text(left, top - 26, "TFLOP/s", anchor="start", bold=True)
    for power in range(5):
        x = left + width * across(power)
        picture.line([(x, top), (x, top + height)], "grid", 1)
        picture.text(x, top + height + 16, number(10**power), "quiet", size=12)
    for power in range(4):
        y = top + height * (1 - up(power))
        picture.line([(left, y), (left + width, y)], "grid", 1)
        picture.text(left - 8, y, number(10**power), "quiet", "end", 12)
    reach = [(p / 20, math.log10(min(peak, 10 ** (p / 20) * bandwidth) / 1e12)) for p in range(81)]
    curve(picture, area, across, up, torch.tensor(reach, dtype=torch.float64), "s0")
    for positions, name in ((1, "one new token"), (16, "16 texts"), (512, "a prompt of 512"), (16384, "training")):
        found = intensity(positions)
        x = left + width * across(math.log10(found))
        y = top + height * (1 - up(math.log10(min(peak, found * bandwidth) / 1e12)))
        picture.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--s1)"/>')
        if positions == 512:
            picture.text(x - 12, y - 4, name, anchor="end")
        else:
            picture.text(x + 10, y + (18 if positions > 512 else 4), name, anchor="start")
    picture.text(left + width / 2, 326, "FLOPs per byte", "quiet", size=12)
    return picture


def stored() -> dict[str, Any]:
    """Return the settings and the losses that chapter 15 measured."""
    return json.loads((CURVES / "scaling.json").read_text(encoding="utf-8"))


def fit(sizes: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Return α and ln N₀ of L(N) = (N₀ / N)^α, from the straight line through the logarithms, as chapter 15 does."""
    slope, intercept = np.polyfit(np.log(sizes), np.log(losses), 1)
    return float(-slope), float(-intercept / slope)


def scaling() -> Picture:
    """Draw the losses of chapter 15 by the number of parameters, with the fitted law."""
    runs = stored()["runs"]
    sizes = np.array([run["parameters"] for run in runs], dtype=float)
    losses = np.array([run["loss"] for run in runs])
    alpha, log_n0 = fit(sizes, losses)
    picture = Picture(760, 330, "The losses of five models by their number of parameters, and the fitted law")
    low, high = math.floor(10 * losses.min() - 1) / 10, math.ceil(10 * losses.max() + 1) / 10
    area, across, up = (70.0, 60.0, 640.0, 220.0), Scale(3, 6), Scale(low, high)
    left, top, width, height = area
    levels(picture, area, up, "validation loss in nats")
    for power in range(3, 7):
        x = left + width * across(power)
        picture.line([(x, top), (x, top + height)], "grid", 1)
        picture.text(x, top + height + 16, f"{10**power:,}", "quiet", size=12)
    powers = np.linspace(math.log10(sizes.min()), math.log10(sizes.max()), 61)
    law = torch.tensor(
        [(p, math.exp(alpha * (log_n0 - p * math.log(10)))) for p in powers.tolist()], dtype=torch.float64
    )
    curve(picture, area, across, up, law, "s0")
    for size, loss in zip(sizes, losses, strict=True):
        x, y = left + width * across(math.log10(size)), top + height * (1 - up(loss))
        picture.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--s1)"/>')
    picture.text(left + width - 10, top + 20, f"(N₀ / N)^{alpha:.3f}", anchor="end", bold=True)
    picture.text(left + width / 2, 316, "parameters without embeddings", "quiet", size=12)
    return picture


PICTURES = {"learn-ring": ring, "learn-roofline": roofline, "learn-scaling": scaling}
"""Names of the files in docs/images, and what draws them."""
