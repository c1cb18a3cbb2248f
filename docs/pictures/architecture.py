"""The pictures of docs/architecture.md.

Everything in them is computed from the code: shapes by `gpt2.inside.anatomy`, parameters by `gpt2.accounting`, curves
and weights by PyTorch.
"""

import torch
from drawing import Picture, axes, curve
from torch.nn import functional as F

import gpt2
from gpt2.accounting import components, num_params
from gpt2.inside.anatomy import anatomy, merged
from gpt2.reporting.charts import Scale
from gpt2.reporting.style import about

WORDS = ["The", "cat", "sat", "on", "the"]
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def network() -> Picture:
    """Draw the network from the ids to the logits, one block in detail, with the shape after every operation."""
    found = anatomy(gpt2.GPTConfig.preset("gpt2"))
    shapes: dict[tuple[str, str], list[str]] = {}
    for step in merged(found.steps):
        times = f"{step.count} × " if step.count > 1 else ""
        key = (step.module.removeprefix("transformer."), step.operation)
        shapes.setdefault(key, []).append(f"{times}({', '.join(map(str, step.shape))})")
    n_layer, size = found.config.n_layer, found.config.n_embd // found.config.n_head
    attention = [
        ("LayerNorm ln_1", "h.0.ln_1", "layer_norm", 0),
        ("c_attn: queries, keys, values", "h.0.attn.c_attn", "linear", 0),
        (f"into {found.config.n_head} heads of {size}", "h.0.attn", "transpose", 0),
        (f"queries · keys / √{size}", "h.0.attn", "div", 0),
        ("causal mask, softmax", "h.0.attn", "softmax", 0),
        ("weights · values", "h.0.attn", "matmul", 1),
        ("heads next to each other", "h.0.attn", "reshape", 0),
        ("c_proj: mixes the heads", "h.0.attn.c_proj", "linear", 0),
    ]
    mlp = [
        ("LayerNorm ln_2", "h.0.ln_2", "layer_norm", 0),
        ("c_fc: four times as wide", "h.0.mlp.c_fc", "linear", 0),
        ("GELU", "h.0.mlp", "gelu", 0),
        ("c_proj: back to the width", "h.0.mlp.c_proj", "linear", 0),
    ]
    stream, left, width, height, gap = 110, 230, 230, 30, 12
    picture = Picture(720, 895, f"GPT-2 {about(num_params(found.config))}, with the shape of every tensor")

    def box(y: float, text: str, shape: str, colour: str) -> None:
        picture.box(left, y, width, height, colour)
        picture.text(left + width / 2, y + height / 2, text)
        picture.text(left + width + 16, y + height / 2, shape, "quiet", "start")

    def branch(y: float, boxes: list[tuple[str, str, str, int]], colour: str) -> float:
        """Draw boxes below each other that begin and end at the stream; return the height at which they end."""
        middle = left + width / 2
        picture.line([(stream, y + height / 2), (left - 3, y + height / 2)], colour, arrow=True)
        for number, (text, module, operation, which) in enumerate(boxes):
            if number:
                picture.line([(middle, y - gap), (middle, y - 3)], colour, arrow=True)
            box(y, text, shapes[module, operation][which], colour)
            y += height + gap
        end = y - gap - height / 2
        picture.line([(left, end), (stream + 14, end)], colour, arrow=True)
        picture.plus(stream, end)
        return end

    picture.box(40, 162, 640, 582, "rule", 0.18)
    picture.text(left + width / 2, 26, "token ids", bold=True)
    picture.text(left + width + 16, 26, f"({found.batch_size}, {found.block_size})", "quiet", "start")
    box(52, "wte: a vector per token", shapes["wte", "embedding"][0], "s2")
    box(94, "wpe: a vector per position", shapes["wpe", "embedding"][0], "s2")
    picture.line([(left + width / 2, 36), (left + width / 2, 49)], "text", arrow=True)
    picture.line([(stream, 109), (stream, 787)], "text", 4)
    picture.line([(left, 67), (stream, 67), (stream, 96)], "text", arrow=True)
    picture.line([(left, 109), (stream + 14, 109)], "text", arrow=True)
    picture.plus(stream, 109)
    picture.text(stream + 14, 141, shapes["", "add"][0], "quiet", "start")
    picture.text(left, 180, f"block h.0, and h.1 to h.{n_layer - 1} in the same way", "text", "start", bold=True)
    end = branch(198, attention, "s0")
    end = branch(end + height / 2 + 30, mlp, "s1")
    picture.text(stream + 14, end + 26, shapes["h.0", "add"][1], "quiet", "start")
    picture.shapes.append(
        f'<text transform="translate({stream - 22} 470) rotate(-90)" font-size="13" text-anchor="middle" '
        f'fill="var(--text)">residual stream</text>'
    )
    picture.line([(stream, 785), (left - 3, 785)], "text", arrow=True)
    box(770, "LayerNorm ln_f", shapes["ln_f", "layer_norm"][0], "s0")
    picture.line([(left + width / 2, 800), (left + width / 2, 809)], "text", arrow=True)
    box(812, "head: the vectors of wte again", shapes["head", "linear"][0], "s2")
    picture.line([(left + width / 2, 842), (left + width / 2, 861)], "text", arrow=True)
    picture.text(left + width / 2, 872, "logits", bold=True)
    return picture


def grid(picture: Picture, left: float, top: float, values: torch.Tensor, texts: list[list[str]], title: str) -> None:
    """Draw a matrix (T, T) of values from 0 to 1 as a grid, with the words at its rows and columns."""
    cell = 50
    for i, word in enumerate(WORDS):
        picture.text(left - 10, top + cell * (i + 0.5), word, "text", "end")
        picture.text(left + cell * (i + 0.5), top - 14, word, "text")
        for j in range(len(WORDS)):
            picture.box(left + cell * j + 1, top + cell * i + 1, cell - 2, cell - 2, "s0", 0.75 * float(values[i, j]))
            is_strong = float(values[i, j]) > 0.6
            picture.text(
                left + cell * (j + 0.5), top + cell * (i + 0.5), texts[i][j], "card" if is_strong else "text", size=14
            )
    picture.text(left + cell * len(WORDS) / 2, top - 62, title, bold=True)
    picture.text(left + cell * len(WORDS) / 2, top - 40, "key: the word that is looked at", "quiet", size=12)


def causal_mask() -> Picture:
    """Draw the causal mask of a sentence, and the attention weights of one head of a new model."""
    n = len(WORDS)
    torch.manual_seed(0)
    model = gpt2.GPT(gpt2.GPTConfig(block_size=n, vocab_size=n, n_layer=1, n_head=1, n_embd=64))
    model.transformer.h[0].attn.c_attn.weight.data.mul_(8)  # as initialized, all weights of a row are nearly equal
    weights = gpt2.attention_weights(model, torch.arange(n)[None])[0, 0, 0]
    mask = torch.ones(n, n).tril()
    picture = Picture(760, 400, "The causal mask of five words, and attention weights under it")
    grid(picture, 100, 110, mask, [["0" if m else "−∞" for m in row] for row in mask.tolist()], "added to the scores")
    texts = [[f"{w:.2f}" if w else "0" for w in row] for row in weights.tolist()]
    grid(picture, 470, 110, weights, texts, "attention weights")
    picture.shapes.append(
        '<text transform="translate(34 235) rotate(-90)" font-size="12" text-anchor="middle" fill="var(--quiet)">'
        "query: the word that looks</text>"
    )
    picture.text(380, 382, "Each row of the weights adds up to 1. The weights are those of a random head.", "quiet")
    return picture


def gelus() -> Picture:
    """Draw both GELUs and ReLU, and the difference of the two GELUs."""
    x = torch.tensor([step / 20 for step in range(-80, 81)], dtype=torch.float64)  # linspace rounds by processor
    exact, tanh = F.gelu(x), F.gelu(x, approximate="tanh")
    picture = Picture(760, 330, "The two GELUs, and their difference")
    across = Scale(-4, 4)
    left, right = (60, 60, 290, 220), (450, 60, 280, 220)
    up = Scale(-0.5, 4)
    axes(picture, left, across, up, "GELU(x)")
    curve(picture, left, across, up, torch.stack([x, F.relu(x)], dim=1), "quiet", "4 4")
    curve(picture, left, across, up, torch.stack([x, exact], dim=1), "s0")
    curve(picture, left, across, up, torch.stack([x, tanh], dim=1), "s1", "6 6")
    for row, (name, colour, dashes) in enumerate(
        (("exact", "s0", ""), ("tanh, on top of it", "s1", "6 6"), ("ReLU", "quiet", "4 4"))
    ):
        at = 78 + 20 * row
        picture.line([(74, at), (104, at)], colour, 2, dashes=dashes)
        picture.text(112, at, name, anchor="start", size=12)
    difference = 1e4 * (tanh - exact)
    most = float(difference.abs().max())
    up = Scale(-1.15 * most, 1.15 * most)
    axes(picture, right, across, up, "(tanh − exact) · 10,000")
    curve(picture, right, across, up, torch.stack([x, difference], dim=1), "s1")
    return picture


def parameters() -> Picture:
    """Draw the shares of the components in the parameters of the four sizes."""
    picture = Picture(760, 300, "Shares of the components in the parameters of the four sizes")
    left, width, height = 120, 540, 34
    for row, size in enumerate(SIZES):
        config = gpt2.GPTConfig.preset(size)
        y, x, total = 70 + 48 * row, float(left), num_params(config)
        picture.text(left - 12, y + height / 2, size, anchor="end")
        for number, (_, count) in enumerate(components(config).items()):
            share = count / total
            picture.box(x, y, width * share, height, f"s{number}", 0.4)
            if share > 0.04:
                picture.text(x + width * share / 2, y + height / 2, f"{100 * share:.0f}%")
            x += width * share
        picture.text(left + width + 12, y + height / 2, about(total), anchor="start", bold=True)
    at = 20.0
    for number, kind in enumerate(components(gpt2.GPTConfig())):
        picture.box(at, 22, 16, 16, f"s{number}", 0.4)
        picture.text(at + 24, 30, kind, anchor="start")
        at += 46 + 7.4 * len(kind)
    most = max(components(c)["LayerNorm"] / num_params(c) for c in map(gpt2.GPTConfig.preset, SIZES))
    picture.text(left, 276, f"LayerNorm is the hardly visible end of each bar: at most {most:.2%}.", "quiet", "start")
    return picture


def norms() -> Picture:
    """Draw where LayerNorm is in the first transformer and in GPT-2."""
    picture = Picture(760, 200, "Post-norm and pre-norm")
    for top, title, boxes in (
        (28, "post-norm: Transformer and GPT, 2017 and 2018", ("attention or MLP", "+", "LayerNorm")),
        (122, "pre-norm: GPT-2, 2019", ("LayerNorm", "attention or MLP", "+")),
    ):
        y, x = top + 36, 130
        picture.text(20, top, title, anchor="start", bold=True)
        picture.text(54, y, "x")
        picture.line([(64, y), (x - 3, y)], "text", arrow=True)
        for box in boxes:
            if box == "+":
                picture.plus(x + 11, y)
                picture.line([(90, y), (90, y + 32), (x + 11, y + 32), (x + 11, y + 14)], "text", 2.5, arrow=True)
                x += 22
            else:
                picture.box(x, y - 17, 150, 34, "s0" if box == "LayerNorm" else "s1")
                picture.text(x + 75, y, box)
                x += 150
            picture.line([(x, y), (x + 47, y)], "text", arrow=True)
            x += 50
        picture.text(x + 6, y, "the next part", "quiet", "start")
    return picture


PICTURES = {"network": network, "causal-mask": causal_mask, "gelus": gelus, "parameters": parameters, "norms": norms}
"""Names of the files in docs/images, and what draws them."""
