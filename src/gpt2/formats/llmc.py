"""llm.c's files: the model in float32 and bfloat16, the debug state with which its tests compare, the tokenizer."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gpt2.accounting import num_params, parameter_shapes
from gpt2.errors import UserError
from gpt2.files import publish
from gpt2.formats.source import Extras, Source, StoredTensor
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.formats.tokenizer_writer import write_llmc
from gpt2.model import GPT, PRESETS, GPTConfig
from gpt2.special_tokens import END_OF_TEXT, SpecialTokens

TENSOR_ORDER = (
    "wte.weight",
    "wpe.weight",
    "h.{}.ln_1.weight",
    "h.{}.ln_1.bias",
    "h.{}.attn.c_attn.weight",
    "h.{}.attn.c_attn.bias",
    "h.{}.attn.c_proj.weight",
    "h.{}.attn.c_proj.bias",
    "h.{}.ln_2.weight",
    "h.{}.ln_2.bias",
    "h.{}.mlp.c_fc.weight",
    "h.{}.mlp.c_fc.bias",
    "h.{}.mlp.c_proj.weight",
    "h.{}.mlp.c_proj.bias",
    "ln_f.weight",
    "ln_f.bias",
)
"""Our names of the tensors in the order of a file, which has no names. A name with {} stands for all layers."""
HEADER_BYTES = 1024
MODEL_MAGIC, STATE_MAGIC = 20240326, 20240327
STATE_VERSION = 2
DTYPES = {3: torch.float32, 5: torch.bfloat16}
"""Versions of a model file, and the dtype of its numbers in each."""
ROWS, COLUMNS = 4, 64
"""Shape (B, T) of llm.c's usual batch for the debug state."""
OTHER_MAGICS = {
    STATE_MAGIC: "a debug state",
    20240328: "a tokenizer",
    20240520: "tokens",
    20240522: "multiple-choice questions",
    20240527: "an optimizer state",
    20240801: "tokens for Llama 3",
    20240803: "a Llama 3 model",
}
MAGICS = frozenset({MODEL_MAGIC, *OTHER_MAGICS})
"""First numbers of all of llm.c's files."""
SIZE_NAMES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


def open_folder(folder: Path) -> Source:
    """Open the only model in a folder, in float32 if it is stored in both dtypes. Raises UserError."""
    path = model_in(folder)
    assert path is not None
    return open_file(path)


def model_in(folder: Path) -> Path | None:
    """Return the file of the only model in a folder; None where there is none or more than one."""
    found: dict[int, list[Path]] = {version: [] for version in DTYPES}
    for path in sorted(folder.glob("*.bin")):
        magic, version = _magic_and_version(path)
        if magic == MODEL_MAGIC and version in found:
            found[version].append(path)
    candidates = next((paths for paths in found.values() if paths), [])
    return candidates[0] if len(candidates) == 1 else None


def is_model(path: Path) -> bool:
    """Return whether a file is a model, and not one of llm.c's other files."""
    return _magic_and_version(path)[0] == MODEL_MAGIC


def _magic_and_version(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little"), int.from_bytes(file.read(4), "little")


def padded(vocab_size: int) -> int:
    """Return the number of rows that the token embedding has in a file."""
    return -(-vocab_size // 128) * 128


def file_order(config: GPTConfig) -> Iterator[str]:
    """Yield our parameter names in the order of the file."""
    for name in TENSOR_ORDER:
        layers = range(config.n_layer) if "{}" in name else (None,)
        yield from (f"transformer.{name.format(layer)}" for layer in layers)


def open_file(path: Path) -> Source:
    """Open a model file of version 3 or 5. Raises UserError."""
    header = np.fromfile(path, dtype="<i4", count=256).tolist()
    magic, version, block_size, vocab_size, n_layer, n_head, n_embd, rows = header[:8]
    if magic != MODEL_MAGIC:
        raise UserError(f"{path} is {OTHER_MAGICS[magic]} of llm.c's, not a model")
    if version not in DTYPES:
        raise UserError(f"{path} has version {version}; llm.c's models have 3 (float32) or 5 (bfloat16)")
    try:
        config = GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd)
    except UserError as error:
        raise UserError(f"{path} describes no GPT-2: {error}") from None
    dtype = DTYPES[version]
    if not vocab_size <= rows:
        raise UserError(f"{path} has {rows} embedding rows for {vocab_size} tokens; it is damaged")
    expected = HEADER_BYTES + dtype.itemsize * (num_params(config) + (rows - vocab_size) * n_embd)
    if path.stat().st_size != expected:
        raise UserError(f"{path} has {path.stat().st_size} bytes where its header asks for {expected}; it is damaged")

    offset = HEADER_BYTES
    shapes = dict(parameter_shapes(config))
    tensors = {}
    for name in file_order(config):
        tensors[name] = _stored(path, offset, shapes[name], dtype)
        offset += dtype.itemsize * (rows * n_embd if name == "transformer.wte.weight" else _count(shapes[name]))
    padding = _stored(path, HEADER_BYTES + dtype.itemsize * vocab_size * n_embd, (rows - vocab_size, n_embd), dtype)
    notes = (f"{path}: omitted {rows - vocab_size} padding rows that are not zero",) if padding.read().any() else ()
    origin = f"{path} (llm.c, {str(dtype).removeprefix('torch.')})"
    return Source(config, tensors, find_tokenizer(path, vocab_size), origin, notes)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _stored(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    def read() -> Tensor:
        numbers = np.fromfile(path, dtype=f"<i{dtype.itemsize}", count=_count(shape), offset=offset)
        return torch.from_numpy(numbers).view(dtype).view(shape)

    return StoredTensor(shape, read, is_own=True)


def _header(*words: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[: len(words)] = words
    return header.tobytes()


def _write_numbers(file: BinaryIO, tensor: Tensor) -> None:
    """Write the numbers of a tensor, little-endian and in row-major order."""
    file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _write_tensors(file: BinaryIO, config: GPTConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write parameters or gradients, given in the order of the file; the token embedding gets padding of zeros."""
    for name, tensor in tensors:
        _write_numbers(file, tensor)
        if name == "transformer.wte.weight":
            # llm.c's CUDA classifier multiplies by these rows: anything but zeros would corrupt its gradients
            _write_numbers(file, tensor.new_zeros(padded(config.vocab_size) - config.vocab_size, config.n_embd))


def stem(config: GPTConfig) -> str:
    """Return llm.c's name of the model: `gpt2_124M`, or by depth `gpt2_d6` for a size that has no name."""
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    size = next((label for name, label in SIZE_NAMES.items() if PRESETS[name] == shape), f"d{config.n_layer}")
    return f"gpt2_{size}"


def write_model(model: GPT, path: Path, dtype: torch.dtype) -> None:
    """Write a model that has biases and computes the tanh GELU."""
    config = model.config
    version = next(v for v, d in DTYPES.items() if d == dtype)
    sizes = (config.block_size, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    parameters = dict(model.named_parameters())
    with path.open("wb") as file:
        file.write(_header(MODEL_MAGIC, version, *sizes, padded(config.vocab_size)))
        _write_tensors(file, config, ((n, parameters[n].detach().to(dtype)) for n in file_order(config)))


def write_state(model: GPT, x: Tensor, y: Tensor, path: Path) -> None:
    """Write the debug state with which llm.c's test programs compare their results.

    It holds the inputs `x` and targets `y` (int64 (B, T) each), and logits, loss and gradients in float32.
    """
    model.zero_grad(set_to_none=True)
    logits, loss = model(x, y)
    assert loss is not None
    loss.backward()
    parameters = dict(model.named_parameters())
    with path.open("wb") as file:
        file.write(_header(STATE_MAGIC, STATE_VERSION, *x.shape))
        for tensor in (x.to(torch.int32), y.to(torch.int32), logits.float(), loss.float()):
            _write_numbers(file, tensor.cpu())
        gradients = ((n, gradient_of(parameters[n])) for n in file_order(model.config))
        _write_tensors(file, model.config, gradients)
    model.zero_grad(set_to_none=True)


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter, in float32 on the CPU."""
    assert parameter.grad is not None
    return parameter.grad.float().cpu()


def write(model: GPT, extras: Extras, folder: Path) -> None:
    """Fill `folder` with the four files that llm.c's `--write_tensors` writes. Raises UserError."""
    name = stem(model.config)
    special = extras.tokenizer.special if extras.tokenizer else SpecialTokens()
    if lost := [text for text in special.ids if text != END_OF_TEXT]:
        extras.note(
            f"llm.c's tokenizer file records no special token but {END_OF_TEXT}: {', '.join(lost)} become ordinary "
            "tokens there"
            + (", and its texts end at no token" if special.named(special.eos) != END_OF_TEXT else "")
            + "; keep the model itself, or an export as hf or gguf, to train on or to chat"
        )
    if extras.tokenizer is not None:
        with publish(folder / "gpt2_tokenizer.bin") as path:
            write_llmc(extras.tokenizer, path)
    with publish(folder / f"{name}.bin") as path:
        write_model(model, path, torch.float32)
    with publish(folder / f"{name}_bf16.bin") as path:
        write_model(model, path, torch.bfloat16)
    x, y = extras.batch or random_batch(model.config.vocab_size, ROWS, min(COLUMNS, model.config.block_size))
    with publish(folder / f"{name}_debug_state.bin") as path:
        write_state(model, x, y, path)


def random_batch(vocab_size: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return random inputs and their targets, int64 (rows, columns) each."""
    ids = torch.randint(vocab_size, (rows, columns + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]
