"""`gpt2 explain`."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag
from gpt2.cli.results import table
from gpt2.reporting.style import quantity
from gpt2.spelling import counted
from gpt2.training.setting import CONTEXT, PATH, SAMPLES

if TYPE_CHECKING:
    from gpt2.inside.anatomy import Anatomy, Part
    from gpt2.model import GPTConfig

SIZES = (
    "gpt2, gpt2-medium, gpt2-large or gpt2-xl, of which no weights are needed, or any model as gpt2 sample takes it."
)
REMARKS = {
    ".arange": ("positions",),
    "wte.embedding": ("a vector for each token",),
    "wpe.embedding": ("a vector for each position",),
    ".add": ("their sum begins the residual stream",),
    "ln_1.layer_norm": ("every position normalized, scaled and shifted",),
    "attn.c_attn.linear": ("queries, keys and values in one product",),
    "attn.split": ("queries, keys, values",),
    "attn.view": ("divided into heads",),
    "attn.transpose": ("heads first", "keys as columns", "positions first"),
    "attn.ones": ("all True",),
    "attn.tril": ("causal mask: True where attention is allowed",),
    "attn.matmul": ("scores: every query with every key", "averages of the values"),
    "attn.div": ("divided by the root of the head size",),
    "attn.invert": ("True where attention is forbidden",),
    "attn.masked_fill": ("minus infinity there",),
    "attn.softmax": ("weights; those of a query add up to 1",),
    "attn.reshape": ("heads next to each other",),
    "attn.c_proj.linear": ("mixes the heads",),
    "h.add": ("added to the residual stream", "added to the residual stream"),
    "ln_2.layer_norm": ("as ln_1",),
    "mlp.c_fc.linear": ("four times as wide",),
    "mlp.gelu": ("GELU of each number",),
    "mlp.c_proj.linear": ("back to the width of the stream",),
    "ln_f.layer_norm": ("the last LayerNorm",),
    "head.linear": ("logits: every position with every token's vector",),
    ".flatten": ("logits", "targets"),
    ".cross_entropy": ("the loss, one number",),
}
"""What the results of a module's operation are, for the first, second, … time that it has the operation."""

OTHER_WEIGHTS = {"transformer.h.0.attn": "none: two products", "head": "those of wte"}


def explain(
    model: Annotated[str, PATH, Parameter(help=SIZES)] = "gpt2",
    /,
    *,
    batch_size: Annotated[int, SAMPLES] = 1,
    block_size: Annotated[int | None, CONTEXT] = None,
    json_: JsonFlag = False,
) -> None:
    """Show the parts of a network with their shapes, parameters, FLOPs and bytes, and every tensor of a forward pass.

    The network runs without values on PyTorch's meta device, so that the largest one takes seconds and no memory.

    Parameters
    ----------
    batch_size
        Number of sequences in the batch.
    block_size
        Number of tokens in a sequence. Default: the model's context.
    """
    from gpt2.inside.anatomy import anatomy

    found = anatomy(config_of(model), batch_size, block_size)
    print(json.dumps({"model": model, **found.figures()}) if json_ else described(model, found))


def config_of(model: str) -> "GPTConfig":
    """Return the configuration of a size or of a model. A size needs no file; `./gpt2` is a folder of that name."""
    from gpt2.formats.open import check_shapes, open_model
    from gpt2.model import PRESETS, GPTConfig
    from gpt2.runlog.console import note

    if model in PRESETS:
        return GPTConfig.preset(model)
    source = open_model(model)
    check_shapes(source)
    for line in source.notes:
        note(line)
    return source.config


def described(model: str, found: "Anatomy") -> str:
    """Return a summary, the table of parts and the table of steps as lines of text."""
    return f"{summary(model, found)}\n\n{parts_table(found)}\n\n{steps_table(found)}"


def summary(model: str, found: "Anatomy") -> str:
    """Return the sizes of the network and the FLOPs of the batch in a few lines."""
    from gpt2.accounting import components

    c, kinds = found.config, components(found.config)
    inside = found.parameters - kinds["token embedding"] - kinds["position embedding"]
    size = (
        f"{counted(c.n_layer, 'block')} · {counted(c.n_head, 'head')} of {c.n_embd // c.n_head} · width {c.n_embd} · "
        f"context {c.block_size:,} · vocabulary {c.vocab_size:,} · {'with' if c.bias else 'without'} biases · "
        f"{c.gelu} GELU"
    )
    work = (
        f"B × T = {found.batch_size} × {found.block_size} in float32: {quantity(found.flops, 'FLOPs')} forward, "
        f"{quantity(3 * found.flops, 'FLOPs')} forward and backward"
    )
    return "\n".join(
        [
            f"{model}: {found.parameters:,} parameters, {inside:,} without the embeddings",
            " · ".join(f"{kind} {count / found.parameters:.2%}" for kind, count in kinds.items()),
            size,
            work,
            f"matrix products alone: {found.matmul_flops:,} FLOPs forward, as PyTorch's FlopCounterMode counts",
        ]
    )


def parts_table(found: "Anatomy") -> str:
    """Return the modules that have parameters or FLOPs; of the blocks, which are alike, the first and a sum."""
    header = ("module", "weights", "parameters", "bytes", "FLOPs", "output", "its bytes")
    rows = []
    for is_repeated, parts in groupby(found.parts, lambda part: _is_repeated(part.name)):
        if is_repeated:
            rows.append((_others(found), "the same again", *_sums(parts), "", ""))
            continue
        for part in parts:
            weights = " + ".join(_shape(shape) for shape in part.weights.values())
            output = (_shape(part.output), quantity(part.output_bytes, "B"))
            rows.append((_name(part.name), weights or OTHER_WEIGHTS.get(part.name, ""), *_sums([part]), *output))
    rows.append(("total", "", *_sums(found.parts), "", ""))
    return table(header, rows, right=("parameters", "bytes", "FLOPs", "its bytes"))


def steps_table(found: "Anatomy") -> str:
    """Return the operations of the forward pass in their order; of the blocks, which are alike, the first."""
    from gpt2.inside.anatomy import merged

    shape = (found.batch_size, found.block_size)
    rows = [("", "input", _shape(shape), quantity(8 * math.prod(shape), "B"), "token ids, int64")]
    seen = Counter[str]()
    for is_repeated, steps in groupby(merged(found.steps), lambda step: _is_repeated(step.module)):
        if is_repeated:
            rows.append((_others(found), "the same again", "", "", ""))
            continue
        for step in steps:
            name = _name(step.module)
            key = re.sub(r"^h\.\d+(\.|$)", lambda match: "" if match[1] else "h", name) + f".{step.operation}"
            remarks = REMARKS.get(key, ())
            remark = remarks[seen[key]] if seen[key] < len(remarks) else ""
            seen[key] += 1
            times = f"{step.count} × " if step.count > 1 else ""
            size = "view" if step.is_view else quantity(step.bytes, "B")
            rows.append((name, step.operation, times + _shape(step.shape), size, remark))
    return table(("module", "operation", "result", "its bytes", "what it is"), rows, right=("its bytes",))


def _is_repeated(module: str) -> bool:
    """Return whether a module belongs to a block after the first one."""
    return re.match(r"transformer\.h\.(?!0\b)", module) is not None


def _others(found: "Anatomy") -> str:
    last = found.config.n_layer - 1
    return "h.1" if last == 1 else f"h.1 … h.{last}"


def _name(module: str) -> str:
    return module.removeprefix("transformer.")


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _sums(parts: "Iterable[Part]") -> tuple[str, str, str]:
    """Return the numbers of parameters, of their bytes and of FLOPs of all `parts` together."""
    listed = list(parts)
    size, flops = sum(part.weight_bytes for part in listed), sum(part.flops for part in listed)
    return f"{sum(part.parameters for part in listed):,}", quantity(size, "B"), quantity(flops, "").rstrip()
