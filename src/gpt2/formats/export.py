"""From a model to any format: made to fit, written whole, read back and compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.files import check_free, publish
from gpt2.formats import bare, gguf, huggingface, llmc, nanogpt
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Extras, Note, Progress, Source
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import Tokenizer

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "q8_0": 1}
"""Of a number in each format, at least."""
DTYPES = tuple(BYTES)


@dataclass(frozen=True)
class Format:
    """How a format is written, and what it can hold."""

    write: Callable[[GPT, Extras, Path], None]
    """Fills a new folder or makes a file. Raises UserError."""
    folder: bool
    """Written as a folder, or as a file."""
    dtypes: tuple[str, ...] = DTYPES[:1]
    """Formats of its numbers."""
    needs_tokenizer: bool = False
    bias: bool | None = True
    """Whether its programs' models have biases; None where they may or may not."""
    gelu: str | None = "tanh"
    """The only GELU its programs compute; None where the file says which."""
    keeps_gelu: bool = False
    """The file nevertheless tells us which it was."""
    whole_vocabulary: bool = False
    """Keeps rows beyond the tokenizer's ids."""
    copies: Callable[[Progress], float] = lambda progress: 1.0
    """How often all weights are written, in the format of the numbers that is asked for."""


FORMATS = {
    "hf": Format(huggingface.write, folder=True, dtypes=DTYPES[:3], gelu=None),
    "nanogpt": Format(
        nanogpt.write,
        folder=True,
        bias=None,
        gelu="erf",
        keeps_gelu=True,
        whole_vocabulary=True,
        copies=lambda progress: 3.0 if progress.optimizer else 1.0,
    ),
    "llmc": Format(llmc.write, folder=True, copies=lambda progress: 2.5),  # float32, bfloat16, the gradients
    "gguf": Format(gguf.write, folder=False, dtypes=DTYPES, needs_tokenizer=True),
    "safetensors": Format(bare.write, False, DTYPES[:3], bias=None, gelu=None, whole_vocabulary=True),
}


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    out: Path
    difference: float
    """Largest absolute difference of a logit between the model and the file read back."""
    scale: float
    """Largest absolute logit of the model."""


def export(
    source: Source,
    name: str,
    out: Path,
    note: Note,
    dtype: str = "float32",
    batch: tuple[Tensor, Tensor] | None = None,
) -> Exported:
    """Write the model of `source` as format `name` to `out`, which must not be there yet.

    What was written is read back before it comes into its place, so that `out` may also be a pipe or a device.
    `batch` is what llm.c's debug state is computed for; by default random ids. `note` receives what the conversion
    changes. Raises UserError.
    """
    form = FORMATS[name]
    if dtype not in form.dtypes:
        raise UserError(f"{name} has no {dtype} here; choose from {', '.join(form.dtypes)}")
    check_free(out, form.folder)
    tokenizer = source.tokenizer if form.needs_tokenizer else source.known_tokenizer
    for line in source.notes:
        note(line)
    if tokenizer is None:
        note(f"{source.origin} has no tokenizer that can be read, so {out} has none; --tokenizer names one")
    model = build(source).eval()
    ids = probe(model.config, tokenizer)
    expected = logits_of(model, ids)
    model = fit(model, tokenizer, name, note)
    needed = int(model.get_num_params(non_embedding=False) * BYTES[dtype] * form.copies(source.progress))
    with publish(out, form.folder, needed) as temporary:
        form.write(model, Extras(tokenizer, out.stem, dtype, note, batch, source.progress), temporary)
        del model
        found = logits_of(build(open_model(str(temporary))).eval(), ids)
    return Exported(out, difference(found, expected), expected.abs().max().item())


def fit(model: GPT, tokenizer: Tokenizer | None, name: str, note: Note) -> GPT:
    """The model as format `name` can hold it; `note` receives what that changes. Shares the weights it can."""
    form, config = FORMATS[name], model.config
    if form.gelu not in (None, config.gelu):
        ids, other = probe(config, tokenizer), _changed(model, {"gelu": form.gelu})
        off = difference(logits_of(other, ids), logits_of(model, ids))
        differ = f"logits there differ by up to {off:.2g}"
        note(f"{name} computes the {form.gelu} GELU, this model {config.gelu}: {differ}")
        model = model if form.keeps_gelu else other
    if form.bias and not config.bias:
        note(f"{name} has biases always: zeros are added, which change nothing")
        model = _changed(model, {"bias": True})
    if not form.whole_vocabulary and tokenizer and tokenizer.vocab_size < config.vocab_size:
        extra = config.vocab_size - tokenizer.vocab_size
        note(f"the last {extra} of {config.vocab_size} vocabulary rows stand for no token and are left out")
        model = _changed(model, {"vocab_size": tokenizer.vocab_size})
    return model


def _changed(model: GPT, changes: dict[str, Any]) -> GPT:
    """The model with another GELU, fewer vocabulary rows, or biases of zero; it shares its other weights."""
    with torch.device("meta"):
        other = GPT(replace(model.config, **changes))
    state = {name: p.detach() for name, p in model.named_parameters()}
    state["transformer.wte.weight"] = state["transformer.wte.weight"][: other.config.vocab_size]
    missing = {name: torch.zeros(p.shape) for name, p in other.named_parameters() if name not in state}
    other.load_state_dict(state | missing, assign=True)
    return other.requires_grad_().eval()


def probe(config: GPTConfig, tokenizer: Tokenizer | None) -> Tensor:
    """Random token ids to compare models with, int64 (2, T), T at most 64."""
    vocab_size = min(config.vocab_size, tokenizer.vocab_size if tokenizer else config.vocab_size)
    return torch.randint(vocab_size, (2, min(64, config.block_size)), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: GPT, ids: Tensor) -> Tensor:
    """Logits of every position, (B, T, V)."""
    return model.head(model.hidden(ids))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of logits over the vocabulary both have."""
    width = min(found.size(-1), expected.size(-1))
    return (found[..., :width] - expected[..., :width]).abs().max().item()
