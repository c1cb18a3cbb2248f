"""The pictures of the first chapters of docs/learn, from tokens to the first update of the weights.

Everything in them is computed: tokens by the project's tokenizers, vectors and weights by its model, and steps by its
optimizer.
"""

import math
import string
from collections.abc import Callable, Sequence

import torch
from drawing import Picture, axes, curve
from drawing import number as written
from torch import Tensor

import gpt2
from gpt2.optim.adamw import adamw
from gpt2.reporting.charts import Scale
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer, CharTokenizer, train_bpe

SENTENCE = "the thin thing in the kitchen is thinner than the other thing"
MERGES = 4
WORD = "ROMEO"


def small_model() -> tuple[gpt2.GPT, Tensor]:
    """Return the model of the chapters, and the ids of WORD: int64 (1, T)."""
    tokenizer = CharTokenizer("\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase)
    torch.manual_seed(1337)
    config = gpt2.GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=tokenizer.vocab_size)
    return gpt2.GPT(config).eval().requires_grad_(False), torch.tensor([tokenizer.encode(WORD)])


def merges() -> Picture:
    """Draw the tokens of a sentence after each merge of byte-pair encoding."""
    trained = train_bpe([SENTENCE], 256 + MERGES + 1)
    left, cell, height = 118, 10.2, 28
    picture = Picture(760, 70 + 46 * (MERGES + 1), "A sentence after each merge of byte-pair encoding")
    picture.text(
        left, 24, "Each box is a token. A dot is a space, which belongs to the word after it.", "quiet", "start"
    )
    for row in range(MERGES + 1):
        tokenizer = BPETokenizer(trained.tokens[: 256 + row], GPT2_PATTERN)
        ids = tokenizer.encode(SENTENCE)
        y, x = 48 + 46 * row, float(left)
        merged = tokenizer.tokens[-1].decode().replace(" ", "·") if row else "bytes"
        picture.text(16, y + 8, merged, anchor="start", bold=True)
        picture.text(16, y + 23, f"{len(ids)} tokens", "quiet", "start", 12)
        for i in ids:
            letters = tokenizer.decode([i]).replace(" ", "·")
            colour = "rule" if len(letters) == 1 else "s1" if row and i == 255 + row else "s0"
            picture.box(x + 0.5, y, cell * len(letters) - 1, height, colour, 0.06 if colour == "rule" else 0.3)
            for number, letter in enumerate(letters):
                picture.text(x + cell * (number + 0.5), y + height / 2, letter, size=12)
            x += cell * len(letters)
    picture.text(
        left, picture.height - 14, "The newest token of each row has the second colour.", "quiet", "start", 12
    )
    return picture


def targets() -> Picture:
    """Draw a sequence and its targets, and the eight predictions that are in it."""
    piece, cell = "First Cit", 34
    picture = Picture(760, 400, "Inputs, and targets, which are the inputs shifted by one")

    def letters(x: float, y: float, text: str, colour: str, strength: float) -> None:
        for number, letter in enumerate(text.replace(" ", "·")):
            picture.box(x + cell * number + 1, y, cell - 2, cell - 2, colour, strength)
            picture.text(x + cell * (number + 0.5), y + cell / 2 - 1, letter)

    left, top = 60, 96
    picture.text(left, 30, "one sequence", anchor="start", bold=True)
    picture.text(left - 16, top + 16, "x", bold=True)
    picture.text(left - 16, top + 96, "y", bold=True)
    letters(left, top, piece[:-1], "s0", 0.25)
    letters(left, top + 80, piece[1:], "s1", 0.25)
    for t in range(len(piece) - 1):
        at = left + cell * (t + 0.5)
        picture.text(at, top - 18, str(t), "quiet", size=12)
        picture.line([(at, top + cell), (at, top + 77)], "text", arrow=True)
    picture.text(left, top + 140, "y[t] = x[t + 1]: the arrow is the prediction", "quiet", "start", 12)
    picture.text(left, top + 160, "at position t, which sees x[0] to x[t].", "quiet", "start", 12)

    left, top = 420, 50
    picture.text(left, 30, "is eight predictions", anchor="start", bold=True)
    for t in range(len(piece) - 1):
        letters(left, top + 41 * t, piece[: t + 1], "s0", 0.25)
        letters(left + cell * (t + 1), top + 41 * t, piece[t + 1], "s1", 0.25)
    return picture


def embeddings() -> Picture:
    """Draw the vectors of tokens and positions, and their sum."""
    model, idx = small_model()
    T = idx.size(1)
    tokens, positions = model.transformer.wte.weight[idx[0]], model.transformer.wpe.weight[:T]
    rows: list[tuple[str, Tensor, Sequence[str]]] = [
        ("token embeddings: the rows of wte", tokens, WORD),
        ("position embeddings: the first rows of wpe", positions, [str(t) for t in range(T)]),
        ("their sum, which goes into the first block", tokens + positions, WORD),
    ]
    most = float((tokens + positions).abs().max())
    left, cell = 80, 19
    picture = Picture(760, 468, "Token embeddings, position embeddings and their sum")
    for number, (title, vectors, names) in enumerate(rows):
        top = 48 + 142 * number
        sign = ("", "+ ", "= ")[number]
        picture.text(left, top - 16, f"{sign}{title}, ({T}, {vectors.size(1)})", anchor="start", bold=True)
        for t, name in enumerate(names):
            picture.text(left - 14, top + cell * (t + 0.5), name)
            for column, value in enumerate(vectors[t].tolist()):
                colour, strength = "s0" if value > 0 else "s1", 0.9 * abs(value) / most
                picture.box(left + cell * column + 1, top + cell * t + 1, cell - 2, cell - 2, colour, strength)
    picture.text(
        left, 452, f"One colour is positive, the other negative; the darkest is {most:.2f}.", "quiet", "start", 12
    )
    return picture


def attention() -> Picture:
    """Draw the scores of a head, the scores with the causal mask, and the weights that softmax makes of them."""
    model, idx = small_model()
    layer = model.transformer.h[0].attn
    layer.c_attn.weight.mul_(8)
    T = idx.size(1)
    x = model.transformer.h[0].ln_1(model.transformer.wte(idx) + model.transformer.wpe(torch.arange(T)))
    q, k, _ = (t.unflatten(2, (layer.n_head, -1))[0, :, 0] for t in layer.c_attn(x).split(x.size(2), dim=2))
    scores = q @ k.T / math.sqrt(q.size(1))
    weights = gpt2.attention_weights(model, idx)[0, 0, 0]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    picture = Picture(760, 328, "Scores, scores with the causal mask, and attention weights of one head")
    most, cell, top = float(scores.abs().max()), 42, 84
    for number, (title, values, is_score) in enumerate(
        (("scores", scores, True), ("with the mask", scores.masked_fill(future, -math.inf), True),
         ("weights (softmax)", weights, False))
    ):  # fmt: skip
        left = 44 + 246 * number
        picture.text(left, 26, title, anchor="start", bold=True)
        for i, row in enumerate(values.tolist()):
            picture.text(left - 14, top + cell * (i + 0.5), WORD[i])
            picture.text(left + cell * (i + 0.5), top - 14, WORD[i])
            for j, value in enumerate(row):
                colour = "s0" if value > 0 else "s1" if math.isfinite(value) and value else "rule"
                strength = 0.6 * abs(value) / (most if is_score else 1) if math.isfinite(value) else 0.1
                text = f"{value:.2f}" if value and math.isfinite(value) else "0" if not value else "−∞"
                picture.box(left + cell * j + 1, top + cell * i + 1, cell - 2, cell - 2, colour, strength)
                picture.text(left + cell * (j + 0.5), top + cell * (i + 0.5), text.replace("-", "−"), size=11)
    picture.text(
        44, 312, "Rows: the position that looks. Columns: the position that is looked at.", "quiet", "start", 12
    )
    return picture


def layer_norm() -> Picture:
    """Draw the numbers of four vectors before and after LayerNorm."""
    torch.manual_seed(0)
    cases = [(0, 1), (3, 1), (0, 3), (-4, 0.4)]
    picture = Picture(760, 306, "Four vectors before and after LayerNorm")
    norm = gpt2.GPT(gpt2.GPTConfig(n_layer=1, n_head=1, n_embd=32, vocab_size=1, block_size=1)).transformer.ln_f
    across, width, bottom = Scale(-8, 8), 290, 250
    for column, title in ((0, "before"), (1, "after LayerNorm")):
        left = 90 + 350 * column
        picture.text(left, 28, title, anchor="start", bold=True)
        for tick in across.ticks(9):
            x = left + width * across(tick)
            picture.line([(x, 46), (x, bottom)], "grid", 1)
            picture.text(x, bottom + 14, written(tick), "quiet", size=12)
    for row, (mean, deviation) in enumerate(cases):
        before = mean + deviation * torch.randn(32)
        at = 72 + 50 * row
        picture.text(20, at, f"vector {row}", anchor="start")
        for column, values in enumerate((before, norm(before))):
            for value in values.tolist():
                x = 90 + 350 * column + width * across(value)
                picture.line([(x, at - 12), (x, at + 12)], f"s{row}", 1.5)
    picture.text(90, 288, "Each stroke is one of the 32 numbers of a vector.", "quiet", "start", 12)
    return picture


def steps(make: Callable[[Tensor], torch.optim.Optimizer], count: int) -> Tensor:
    """Return the positions of an optimizer on the loss 10·a² + b², from (-1, -2): float64 (count + 1, 2)."""
    w = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer, found = make(w), [w.detach().clone()]
    for _ in range(count):
        optimizer.zero_grad()
        (10 * w[0] ** 2 + w[1] ** 2).backward()
        optimizer.step()
        found.append(w.detach().clone())
    return torch.stack(found)


def optimizers() -> Picture:
    """Draw steps of plain gradient descent and of AdamW on a loss of two weights."""
    picture = Picture(760, 400, "Steps of plain gradient descent and of AdamW on the same loss")
    across, up, count = Scale(-1.25, 1.25), Scale(-2.5, 2.5), 40
    angle = torch.linspace(0, 2 * math.pi, 73, dtype=torch.float64)
    for column, (title, colour, rate, make) in enumerate(
        (
            ("plain gradient descent", "s0", 0.085, lambda w: torch.optim.SGD([w], lr=0.085)),
            ("AdamW", "s1", 0.1, lambda w: adamw([("w", w)], 0.1, (0.9, 0.99), 0.0)),
        )
    ):
        area = (60 + 370 * column, 56, 290, 280)
        axes(picture, area, across, up, f"{title}, learning rate {rate}")
        for level in (0.25, 1, 2.25, 4, 6.25):
            ring = torch.stack([math.sqrt(level / 10) * angle.cos(), math.sqrt(level) * angle.sin()], dim=1)
            curve(picture, area, across, up, ring, "rule")
        found = steps(make, count)
        curve(picture, area, across, up, found, colour)
        for a, b in found.tolist():
            x, y = area[0] + area[2] * across(a), area[1] + area[3] * (1 - up(b))
            picture.box(x - 2.5, y - 2.5, 5, 5, colour, 1)
    start = f"{count} steps from a = −1 (across), b = −2 (up). On each ring the loss is the same."
    picture.text(60, 380, start, "quiet", "start", 12)
    return picture


PICTURES = {
    "learn-merges": merges,
    "learn-targets": targets,
    "learn-embeddings": embeddings,
    "learn-attention": attention,
    "learn-layernorm": layer_norm,
    "learn-adamw": optimizers,
}
"""Names of the files in docs/images, and what draws them."""
