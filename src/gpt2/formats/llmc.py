"""llm.c's files: the model in float32 and bfloat16, the debug state its tests compare with, the tokenizer."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gpt2.accounting import BLOCK, num_params, parameter_shapes
from gpt2.errors import UserError
from gpt2.files import publish
from gpt2.formats.source import Extras, Source, Stored
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.formats.vocabulary import all_tokens, llmc_bytes
from gpt2.model import GPT, PRESETS, GPTConfig
from gpt2.tokenizers import BPETokenizer, Tokenizer

HEADER_BYTES = 1024
MODEL_MAGIC, STATE_MAGIC = 20240326, 20240327
STATE_VERSION = 2
DTYPES = {3: torch.float32, 5: torch.bfloat16}
"""Version of a model file: the format of all its numbers."""
ROWS, COLUMNS = 4, 64
"""Shape of llm.c's usual batch for the debug state."""
OTHER_MAGICS = {
    STATE_MAGIC: "a debug state",
    20240328: "a tokenizer",
    20240520: "tokens",
    20240522: "multiple-choice questions",
    20240527: "an optimizer state",
    20240801: "tokens for Llama 3",
    20240803: "a Llama 3 model",
}
SIZE_NAMES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


def is_llmc(start: bytes, size: int) -> bool:
    """Whether a file that begins with `start` is one of llm.c's."""
    return size >= HEADER_BYTES and int.from_bytes(start[:4], "little") in {MODEL_MAGIC, *OTHER_MAGICS}


def is_folder(folder: Path) -> bool:
    return _model_in(folder) is not None


def open_folder(folder: Path) -> Source:
    """The one model in a folder, in float32 where it is there in both formats. Raises UserError."""
    path = _model_in(folder)
    assert path is not None
    return open_file(path)


def _model_in(folder: Path) -> Path | None:
    found: dict[int, list[Path]] = {version: [] for version in DTYPES}
    for path in sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            magic, version = (int.from_bytes(file.read(4), "little") for _ in range(2))
        if magic == MODEL_MAGIC and version in found:
            found[version].append(path)
    candidates = next((paths for paths in found.values() if paths), [])
    return candidates[0] if len(candidates) == 1 else None


def padded(vocab_size: int) -> int:
    """Rows of the token embedding in a file."""
    return -(-vocab_size // 128) * 128


def file_order(config: GPTConfig) -> Iterator[str]:
    """Our parameter names in the order of the file: one kind of a block's tensor after the other, all layers each."""
    yield from ("transformer.wte.weight", "transformer.wpe.weight")
    for module in BLOCK:
        for part in ("weight", "bias"):
            yield from (f"transformer.h.{layer}.{module}.{part}" for layer in range(config.n_layer))
    yield from ("transformer.ln_f.weight", "transformer.ln_f.bias")


def open_file(path: Path) -> Source:
    """A model file of version 3 or 5. Raises UserError."""
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
        raise UserError(f"{path} says {vocab_size} tokens and {rows} rows for them; it is damaged")
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
    notes = (f"{path}: left out {rows - vocab_size} padding rows that are not zero",) if padding.read().any() else ()
    origin = f"{path} (llm.c, {str(dtype).removeprefix('torch.')})"
    return Source(config, tensors, find_tokenizer(path, vocab_size), origin, notes)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _stored(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
    def read() -> Tensor:
        numbers = np.fromfile(path, dtype=f"<i{dtype.itemsize}", count=_count(shape), offset=offset)
        return torch.from_numpy(numbers).view(dtype).view(shape)

    return Stored(shape, read)


def _header(*words: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[: len(words)] = words
    return header.tobytes()


def _write_numbers(file: BinaryIO, tensor: Tensor) -> None:
    """The tensor's numbers, little-endian and in row-major order."""
    file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _write_tensors(file: BinaryIO, config: GPTConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Parameters or their gradients in the order of the file, the token embedding padded with zero rows."""
    for name, tensor in tensors:
        _write_numbers(file, tensor)
        if name == "transformer.wte.weight":
            # llm.c's CUDA classifier multiplies by these rows: anything but zeros would corrupt its gradients
            _write_numbers(file, tensor.new_zeros(padded(config.vocab_size) - config.vocab_size, config.n_embd))


def stem(config: GPTConfig) -> str:
    """What llm.c would call the model: `gpt2_124M`, or `gpt2_d6` by depth for a size that has no name."""
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
    """Write what llm.c's tests compare with: a batch (int64 (B, T) each), its logits, loss and gradients, float32."""
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
    """A parameter's gradient on the CPU."""
    assert parameter.grad is not None
    return parameter.grad.float().cpu()


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write the vocabulary llm.c decodes with. Raises UserError for a token it cannot hold.

    Where there is no end-of-text, samples start from a newline, or from id 0.
    """
    tokens = all_tokens(tokenizer)
    if any(len(t) > 255 for t in tokens):
        raise UserError(f"a token of {max(map(len, tokens))} bytes does not fit llm.c's tokenizer file (255 at most)")
    start = tokens.index(b"\n") if b"\n" in tokens else 0
    path.write_bytes(llmc_bytes(tokens, start if tokenizer.eot is None else tokenizer.eot))


def write(model: GPT, extras: Extras, folder: Path) -> None:
    """Fill `folder` with the four files of llm.c's `--write_tensors`. Raises UserError."""
    name = stem(model.config)
    if isinstance(extras.tokenizer, BPETokenizer) and extras.tokenizer.specials:
        extras.note(
            f"llm.c's tokenizer file does not say which tokens are special: {', '.join(extras.tokenizer.specials)} "
            "are ordinary ones for who reads it"
        )
    if extras.tokenizer is not None:
        with publish(folder / "gpt2_tokenizer.bin") as path:
            write_tokenizer(extras.tokenizer, path)
    with publish(folder / f"{name}.bin") as path:
        write_model(model, path, torch.float32)
    with publish(folder / f"{name}_bf16.bin") as path:
        write_model(model, path, torch.bfloat16)
    x, y = extras.batch or random_batch(model.config.vocab_size, ROWS, min(COLUMNS, model.config.block_size))
    with publish(folder / f"{name}_debug_state.bin") as path:
        write_state(model, x, y, path)


def random_batch(vocab_size: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Random inputs and their targets, int64 (rows, columns) each."""
    ids = torch.randint(vocab_size, (rows, columns + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]
