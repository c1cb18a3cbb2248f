"""From a model to any format: made to fit, written whole, read back and compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError
from gpt2.files import publish
from gpt2.formats import bare, gguf, huggingface, llmc, nanogpt
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Extras, Source
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import CharTokenizer, Tokenizer

DTYPES = ("float32", "bfloat16", "float16", "q8_0")
Note = Callable[[str], None]


@dataclass(frozen=True)
class Format:
    """How a format is written, and what it can hold."""

    write: Callable[[GPT, Extras, Path], None]
    """Fills a new folder or makes a file. Raises UserError."""
    folder: bool
    """Written as a folder, or as a file."""
    dtypes: tuple[str, ...]
    """Formats of its numbers."""
    needs_tokenizer: bool = False
    always_bias: bool = True
    """Its programs know no model without biases."""
    gelu: str | None = "tanh"
    """The only GELU its programs compute; None where the file says which."""
    whole_vocabulary: bool = False
    """Keeps rows beyond the tokenizer's ids."""
    main_file: Callable[[GPTConfig], str] = lambda config: ""
    """What of a folder is read back."""


FORMATS = {
    "hf": Format(huggingface.write, folder=True, dtypes=DTYPES[:3], gelu=None),
    "nanogpt": Format(
        nanogpt.write, folder=True, dtypes=DTYPES[:1], always_bias=False, gelu=None, whole_vocabulary=True
    ),
    "llmc": Format(llmc.write, folder=True, dtypes=DTYPES[:1], main_file=lambda config: f"{llmc.stem(config)}.bin"),
    "gguf": Format(gguf.write, folder=False, dtypes=DTYPES, needs_tokenizer=True),
    "safetensors": Format(
        bare.write, folder=False, dtypes=DTYPES[:3], always_bias=False, gelu=None, whole_vocabulary=True
    ),
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
    """Write the model of `source` as format `name` to `out`, which must not be there yet, and read it back.

    `batch` is what llm.c's debug state is computed for; by default random ids. `note` receives what the conversion
    changes. Raises UserError.
    """
    form = FORMATS[name]
    if dtype not in form.dtypes:
        raise UserError(f"{name} has no {dtype} here; choose from {', '.join(form.dtypes)}")
    if out.exists() and not (form.folder and out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} already exists; choose another place, or delete it")
    tokenizer = source.tokenizer if form.needs_tokenizer else source.find_tokenizer()
    for line in source.notes:
        note(line)
    model = build(source).eval()
    ids = probe(model.config, tokenizer)
    expected = logits_of(model, ids)
    if name == "nanogpt" and model.config.gelu == "tanh":
        off = difference(logits_of(_changed(model, {"gelu": "erf"}), ids), expected)
        note(f"nanoGPT computes the erf GELU, this model the tanh one: its logits there differ by up to {off:.2g}")
    model = fit(model, tokenizer, name, note)
    extras = Extras(tokenizer, out.stem, dtype, batch or random_batch(model.config), source.progress)
    with publish(out) as temporary:
        if form.folder:
            temporary.mkdir()
        form.write(model, extras, temporary)
    for line in _advice(name, out, tokenizer):
        note(line)
    main_file = out / form.main_file(model.config)
    del model
    found = logits_of(build(open_model(str(main_file))).eval(), ids)
    return Exported(out, difference(found, expected), expected.abs().max().item())


def _advice(name: str, out: Path, tokenizer: Tokenizer | None) -> list[str]:
    """What the user must know about the tokenizer."""
    if tokenizer is None:
        return [f"{out} has no tokenizer, because none is known for this model; --tokenizer names one"]
    if name == "nanogpt" and isinstance(tokenizer, CharTokenizer):
        return [f"nanoGPT looks for {out / 'meta.pkl'} in its data folder, under the name of the dataset"]
    if name == "nanogpt" and tokenizer.kind != "gpt2":
        return [f"nanoGPT has no {tokenizer.kind} tokenizer: it can train this model and cannot sample from it"]
    return []


def fit(model: GPT, tokenizer: Tokenizer | None, name: str, note: Note) -> GPT:
    """The model as format `name` can hold it; `note` receives what that changes. Shares the weights it can."""
    form, config = FORMATS[name], model.config
    if form.always_bias and not config.bias:
        note(f"{name} has biases always: zeros are added, which change nothing")
        model = _changed(model, {"bias": True})
    if not form.whole_vocabulary and tokenizer and tokenizer.vocab_size < config.vocab_size:
        extra = config.vocab_size - tokenizer.vocab_size
        note(f"the last {extra} of {config.vocab_size} vocabulary rows stand for no token and are left out")
        model = _changed(model, {"vocab_size": tokenizer.vocab_size})
    if form.gelu not in (None, config.gelu):
        note(f"{name} computes the {form.gelu} GELU, this model the {config.gelu} one: logits differ, see below")
        model = _changed(model, {"gelu": form.gelu})
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


def random_batch(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Inputs and targets in the shape of llm.c's usual test batch, (4, 64)."""
    shape = (4, min(64, config.block_size) + 1)
    rows = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def logits_of(model: GPT, ids: Tensor) -> Tensor:
    """Logits of every position, (B, T, V)."""
    return model.head(model.hidden(ids))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of logits over the vocabulary both have."""
    width = min(found.size(-1), expected.size(-1))
    return (found[..., :width] - expected[..., :width]).abs().max().item()
