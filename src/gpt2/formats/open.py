"""`MODEL` on a command line: any path or name, recognised by what it holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gpt2.accounting import parameter_shapes
from gpt2.errors import UserError, first_line
from gpt2.formats import bare, gguf, huggingface, llmc, nanogpt, native, torch_file
from gpt2.formats.source import Source, Stored
from gpt2.formats.tokenizer_files import open_tokenizer
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

FOLDERS = (
    (native.is_checkpoint, native.open_checkpoint),
    (native.is_run, native.open_run),
    (huggingface.is_folder, huggingface.open_folder),
    (lambda path: (path / "ckpt.pt").is_file(), lambda path: nanogpt.open_file(path / "ckpt.pt")),
    (llmc.is_folder, llmc.open_folder),
)
FILES = (
    # told by their first bytes and their size
    (lambda start, size: torch_file.is_torch_file(start), nanogpt.open_file),
    (lambda start, size: gguf.is_gguf(start), gguf.open_file),
    (llmc.is_llmc, llmc.open_file),
    (bare.is_safetensors, bare.open_file),
)
KINDS = "run, checkpoint, Hugging Face folder, nanoGPT or build-nanogpt checkpoint, llm.c .bin, GGUF or .safetensors"


def open_model(name: str, tokenizer: str | None = None) -> Source:
    """Open a run folder, a checkpoint, a model file of any known format, or a model of Hugging Face's hub.

    `tokenizer` names one to use instead of the model's own. Raises UserError for what is none of these, or is
    damaged.
    """
    source = _open(name)
    if tokenizer is None:
        return source
    given = named_tokenizer(tokenizer)
    if given.vocab_size > source.config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer} has {given.vocab_size} ids, more than the {source.config.vocab_size} of "
            f"{source.origin}"
        )
    return replace(source, find_tokenizer=lambda: given)


def named_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a user names: `gpt2`, `byte`, a tokenizer's file, or the folder of a dataset or a model.

    Raises UserError for what is none of these.
    """
    is_model = any(recognises(Path(name)) for recognises, _ in FOLDERS)
    return _open(name).tokenizer if is_model else open_tokenizer(name)


def _open(name: str) -> Source:
    path = Path(name)
    if path.name in ("model.safetensors", "pytorch_model.bin") and huggingface.is_folder(path.parent):
        path = path.parent  # config.json beside it knows what the weights alone do not tell
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(64)
        for recognises, read in FILES:
            if recognises(start, path.stat().st_size):
                return read(path)
    for recognises, read in FOLDERS:
        if recognises(path):
            return read(path)
    if huggingface.is_hub_name(name) and (not path.exists() or name in huggingface.OFFICIAL):
        return huggingface.open_hub(name)
    if path.exists():
        raise UserError(f"{name} is no model: no {KINDS}")
    raise UserError(f"no model {name!r}: no such {KINDS}")


def build(source: Source, **config_changes: Any) -> GPT:
    """The float32 model of an opened file, with fields of its configuration that are no shapes changed.

    Tensors are read one at a time and leave the source as they come, so that it builds one model only. Raises
    UserError where they are damaged or not those of the configuration; that is looked at before anything is read.
    """
    assert source.tensors, "a source builds one model"
    tensors = source.tensors
    seen = set()
    for name, shape in parameter_shapes(source.config):
        _check(source, name, tensors.get(name), shape)
        seen.add(name)
    for name in tensors.keys() - seen:
        _check(source, name, tensors[name], None)
    with torch.device("meta"):
        model = GPT(replace(source.config, **config_changes))
    state = {}
    try:
        for name in seen:
            # a copy, because the file may be mapped, and a trainer may write over it at any time
            state[name] = tensors.pop(name).read().to(torch.float32, copy=True)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights of {source.origin} cannot be read ({first_line(error)}); fetch them again"
        ) from None
    model.load_state_dict(state, assign=True)
    return model.requires_grad_()


def _check(source: Source, name: str, tensor: Stored | None, wanted: tuple[int, ...] | None) -> None:
    """Raise UserError unless a parameter is there with the shape the configuration gives it."""
    found = None if tensor is None else tensor.shape
    if found != wanted:
        raise UserError(
            f"the weights of {source.origin} do not fit its configuration: {name[:80]} is {found or 'missing'}, not "
            f"{wanted or 'unknown'}"
        )


def load(name: str, tokenizer: str | None = None) -> tuple[GPT, Tokenizer]:
    """Load any model by path or name, ready to evaluate: `model, tokenizer = gpt2.load("out")`.

    `tokenizer` names one for a file that brings none. Raises UserError.
    """
    source = open_model(name, tokenizer)
    return build(source).eval(), source.tokenizer
