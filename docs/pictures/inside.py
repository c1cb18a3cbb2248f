"""The pictures of docs/inside.md, from figures that the page measures."""

import json
from pathlib import Path

import torch
from drawing import Area, Picture, axes, curve

from gpt2.reporting.charts import Scale

MEASURED = Path(__file__).parent.parent / "inside-induction.json"
"""What the Python block of docs/inside.md wrote, for every checkpoint of the run."""


def induction() -> Picture:
    """Draw the losses of both halves of repeated random tokens during training, and the scores of the heads."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    steps = torch.tensor([float(row["step"]) for row in measured])
    picture = Picture(760, 350, "When a small model learns to copy, and the heads that do it")
    across = Scale(0, float(steps.max()))
    left, right = (50, 60, 300, 220), (430, 60, 300, 220)

    def draw(area: Area, up: Scale, values: list[float], colour: str, dashes: str) -> None:
        curve(picture, area, across, up, torch.stack([steps, torch.tensor(values)], dim=1), colour, dashes)

    losses = {name: [float(row[name]) for row in measured] for name in ("first_loss", "second_loss")}
    up = Scale(0, 1.1 * max(map(max, losses.values())))
    axes(picture, left, across, up, "mean loss of a half, in nats")
    draw(left, up, losses["first_loss"], "quiet", "4 4")
    draw(left, up, losses["second_loss"], "s0", "")
    up = Scale(0, 1)
    axes(picture, right, across, up, "attention weight, one line per head")
    n_layer, n_head = len(measured[0]["induction"]), len(measured[0]["induction"][0])
    for layer in range(n_layer):
        for head in range(n_head):
            draw(right, up, [row["previous"][layer][head] for row in measured], "s1", "4 4")
            draw(right, up, [row["induction"][layer][head] for row in measured], "s0", "")
    for x, dashes, colour, text in (
        (50, "4 4", "quiet", "first half"),
        (170, "", "s0", "second half"),
        (430, "4 4", "s1", "to the previous token"),
        (610, "", "s0", "induction score"),
    ):
        picture.line([(x, 328), (x + 26, 328)], colour, 2, dashes=dashes)
        picture.text(x + 32, 328, text, anchor="start", size=12)
    for area in (left, right):
        picture.text(area[0] + area[2] / 2, 312, "optimizer step", "quiet", size=12)
    return picture


PICTURES = {"induction": induction}
"""Names of the files in docs/images, and what draws them."""
