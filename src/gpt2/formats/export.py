"""Exports of a model to any format: adapted to it, written atomically, read back and compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import Log, UserError, require
from gpt2.files import check_free, publish
from gpt2.formats import gguf, huggingface, llmc, nanogpt, safetensors_file
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Extras, Progress, Source
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import Tokenizer

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "q8_0": 1}
"""Number of bytes that a value of each dtype takes at least."""
DTYPES = tuple(BYTES)


@dataclass(frozen=True)
class Format:
    """Describes how a format is written, and what it can represent."""

    write: Callable[[GPT, Extras, Path], None]
    """Fills a new folder or writes a file. Raises UserError."""
    folder: bool
    """Whether the format is a folder and not a file."""
    dtypes: tuple[str, ...] = DTYPES[:1]
    """Dtypes that its matrices can have."""
    needs_tokenizer: bool = False
    """Whether a model without a tokenizer cannot be written."""
    bias: bool | None = True
    """Whether models of this format have biases; None where the file records it."""
    gelu: str | None = "tanh"
    """The only GELU that programs of this format compute; None where the file records it."""
    keeps_gelu: bool = False
    """Whether the file records the model's GELU for this program, although others ignore it."""
    keeps_padding: bool = False
    """Whether embedding rows beyond the tokenizer's ids are kept."""
    copies: Callable[[Progress], float] = lambda progress: 1.0
    """Returns how often all weights are written, in units of the requested dtype."""


FORMATS = {
    "hf": Format(huggingface.write, folder=True, dtypes=DTYPES[:3], gelu=None),
    "nanogpt": Format(
        nanogpt.write,
        folder=True,
        bias=None,
        gelu="erf",
        keeps_gelu=True,
        keeps_padding=True,
        copies=lambda progress: 3.0 if progress.optimizer else 1.0,
    ),
    "llmc": Format(llmc.write, folder=True, copies=lambda progress: 2.5),  # float32, bfloat16, the gradients
    "gguf": Format(gguf.write, folder=False, dtypes=DTYPES, needs_tokenizer=True),
    "safetensors": Format(safetensors_file.write, False, DTYPES[:3], bias=None, gelu=None, keeps_padding=True),
}


@dataclass(frozen=True)
class Exported:
    """Holds the result of an export."""

    out: Path
    difference: float
    """Largest absolute difference of a logit between the model and the exported file, read back."""
    scale: float
    """Largest absolute logit of the model."""


def export(
    source: Source,
    name: str,
    out: Path,
    note: Log,
    dtype: str = "float32",
    batch: tuple[Tensor, Tensor] | None = None,
) -> Exported:
    """Write the model of `source` in the format `name` to `out`, which must not exist yet.

    The result is read back before it is moved to `out`, which may therefore also be a pipe or a device. llm.c's debug
    state is computed for `batch` (inputs and targets, int64 (B, T) each), by default for random ids. `note` receives
    a line about everything that the conversion changes. Raises UserError.
    """
    known = ", ".join(FORMATS)
    require(isinstance(name, str) and name in FORMATS, f"there is no format {name!r:.80}; choose from {known}")
    form = FORMATS[name]
    if dtype not in form.dtypes:
        raise UserError(f"{name} has no {dtype} here; choose from {', '.join(form.dtypes)}")
    check_free(out, form.folder)
    tokenizer = None
    try:
        tokenizer = source.tokenizer
    except UserError as error:
        if form.needs_tokenizer:
            raise
        note(f"{out} has no tokenizer: {error}")
    for line in source.notes:
        note(line)
    model = build(source).eval()
    ids = probe(model.config, tokenizer)
    expected = logits_of(model, ids)
    model = fit(model, tokenizer, name, note)
    needed = int(model.get_num_params(non_embedding=False) * BYTES[dtype] * form.copies(source.progress))
    with publish(out, form.folder, needed) as temporary:
        form.write(model, Extras(tokenizer, out.stem, dtype, note, batch, source.progress), temporary)
        del model
        found = logits_of(build(open_model(str(temporary))).eval(), ids)
        require_finite(found, expected, source.origin, dtype)
    return Exported(out, difference(found, expected), expected.abs().max().item())


def fit(model: GPT, tokenizer: Tokenizer | None, name: str, note: Log) -> GPT:
    """Return the model as the format `name` can represent it; `note` receives a line about every change.

    The returned model shares the weights that do not change.
    """
    form, config = FORMATS[name], model.config
    if form.gelu not in (None, config.gelu):
        ids, other = probe(config, tokenizer), _changed(model, {"gelu": form.gelu})
        off = difference(logits_of(other, ids), logits_of(model, ids))
        note(f"{name} computes the {form.gelu} GELU, this model {config.gelu}: logits differ by up to {off:.2g}")
        model = model if form.keeps_gelu else other
    if form.bias and not config.bias:
        note(f"{name} always has biases: zeros are added, which change nothing")
        model = _changed(model, {"bias": True})
    if not form.keeps_padding and tokenizer and tokenizer.vocab_size < config.vocab_size:
        extra = config.vocab_size - tokenizer.vocab_size
        note(f"the last {extra} of {config.vocab_size} vocabulary rows stand for no token and are omitted")
        model = _changed(model, {"vocab_size": tokenizer.vocab_size})
    return model


def _changed(model: GPT, changes: dict[str, Any]) -> GPT:
    """Return the model with another GELU, fewer vocabulary rows, or biases of zero; other weights are shared."""
    with torch.device("meta"):
        other = GPT(replace(model.config, **changes))
    state = {name: p.detach() for name, p in model.named_parameters()}
    state["transformer.wte.weight"] = state["transformer.wte.weight"][: other.config.vocab_size]
    missing = {name: torch.zeros(p.shape) for name, p in other.named_parameters() if name not in state}
    other.load_state_dict(state | missing, assign=True)
    return other.requires_grad_().eval()


def probe(config: GPTConfig, tokenizer: Tokenizer | None) -> Tensor:
    """Return random token ids for a comparison of models, int64 (2, T) with T at most 64."""
    vocab_size = min(config.vocab_size, tokenizer.vocab_size if tokenizer else config.vocab_size)
    return torch.randint(vocab_size, (2, min(64, config.block_size)), generator=torch.Generator().manual_seed(0))


def require_finite(found: Tensor, expected: Tensor, origin: str, dtype: str) -> None:
    """Raise UserError for logits of an exported model that are not finite; `expected` are those of the model."""
    is_sound = bool(expected.isfinite().all())
    require(is_sound, f"{origin} gives logits that are not finite; its weights are damaged, and nothing is written")
    is_kept = bool(found.isfinite().all())
    require(is_kept, f"{dtype} cannot hold the weights of {origin}, which are too large; export with --dtype=float32")


@torch.no_grad()
def logits_of(model: GPT, ids: Tensor) -> Tensor:
    """Return the logits of every position, (B, T, V), for token ids (B, T)."""
    return model.head(model.hidden(ids))


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference of two tensors of logits over the vocabulary that both have."""
    width = min(found.size(-1), expected.size(-1))
    return (found[..., :width] - expected[..., :width]).abs().max().item()
