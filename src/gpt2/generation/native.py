"""Compiles `decode.c` with the system's C compiler and calls it, for the decoding steps of plain models on a CPU.

PyTorch takes 2 to 3 ms to start the operations of a step of the 124M model, and its products with few rows read
memory at half the speed that they could. Where there is no compiler, a model has layers of other kinds, or the code
that was compiled computes something else than PyTorch, the engine computes its steps with PyTorch.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.device import DTYPES
from gpt2.errors import first_line
from gpt2.generation.kv_cache import KVMemory
from gpt2.generation.steps import Chunk, TorchStep
from gpt2.generation.weights import Matrix, for_decoding
from gpt2.model import GPT, MLP, Block, CausalSelfAttention, Embedding, GPTConfig, LayerNorm

SOURCE = Path(__file__).with_name("decode.c")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-associative-math", "-ffp-contract=off", "-fopenmp", "-fPIC")
"""The compiler may not reorder sums, nor fuse products with them, because then it would do so differently for other
numbers of texts. Linking is without -ffast-math, which would change the arithmetic of the process."""
ALIGNED = 16
"""Number of floats in a cache line."""
COMPILE_SECONDS = 60
"""Maximum time of the compiler."""


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scales", "bias")]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ln_1_weight", "ln_1_bias", "ln_2_weight", "ln_2_bias")),
        *((name, _Matrix) for name in ("c_attn", "attn_c_proj", "c_fc", "mlp_c_proj")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("n_layer", "n_head", "n_embd", "vocab_size", "tanh_gelu")),
        ("ln_f_weight", ctypes.c_void_p),
        ("ln_f_bias", ctypes.c_void_p),
        ("wte", _Matrix),
        ("wpe", ctypes.c_void_p),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("layer", "slot", "head")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("slots", "positions")),
    ]


class NativeStep:
    """Computes the logits of new tokens of several texts, as `GPT.hidden` and `GPT.head` do.

    A row of the logits is the same, bit for bit, whatever else is computed with it. The step keeps pointers to the
    model's parameters, which therefore must stay where they are.
    """

    def __init__(self, model: GPT, memory: KVMemory, library: Any) -> None:
        config, transformer = model.config, model.transformer
        self.model, self.memory, self.decode = model, memory, library.decode
        blocks = (_Block * config.n_layer)(*(_block(block) for block in transformer.h))
        self.described = _Model(
            config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.gelu == "tanh",
            _pointer(transformer.ln_f.weight), _pointer(transformer.ln_f.bias),
            _matrix(transformer.wte), _pointer(transformer.wpe.weight), blocks,
        )  # fmt: skip
        self.cache = _Cache(memory.k.data_ptr(), memory.v.data_ptr(), *memory.k.stride()[:3], None, None)

    def logits(self, last: Tensor, starts: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """See `steps.Step`. Raises IndexError for an id that the model does not have."""
        n_decoded = len(starts)
        ids, slots, positions, wanted = last.tolist(), [*range(n_decoded)], [*starts], [*range(n_decoded)]
        for chunk in chunks:
            ids += chunk.tokens
            slots += [chunk.slot] * len(chunk.tokens)
            positions += range(chunk.start, chunk.start + len(chunk.tokens))
            wanted += range(len(ids) - chunk.n_wanted, len(ids))
        config, count, threads = self.model.config, len(ids), torch.get_num_threads()
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise IndexError(f"the token ids are {min(ids)} … {max(ids)}; the model has 0 … {config.vocab_size - 1}")
        n_scores = -(-(max(positions) + 1) // ALIGNED) * ALIGNED  # each thread's begin at a cache line
        memory = torch.empty(threads * n_scores + count * (12 * config.n_embd + 1))
        logits = torch.empty(len(wanted), config.vocab_size)
        # Arrays and addresses rather than tensors and their operations: in a step, whose weights displaced all other
        # code from the caches, each different operation of PyTorch takes 30 to 100 µs.
        self.cache.slots, self.cache.positions = _numbers(slots), _numbers(positions)
        tokens = count, _numbers(ids), len(wanted), _numbers(wanted)
        work = ctypes.c_void_p(memory.data_ptr()), n_scores, threads
        described = ctypes.byref(self.described), ctypes.byref(self.cache)
        self.decode(*described, *tokens, ctypes.c_void_p(logits.data_ptr()), *work)
        return logits


def _numbers(values: Sequence[int]) -> Any:
    """Return an array of C's int64_t."""
    return (ctypes.c_int64 * len(values))(*values)


def native_step(model: GPT, memory: KVMemory) -> NativeStep | None:
    """Return the native step of a model, or None if it has other layers than GPT-2's or there is no compiler.

    The memory is float32 or float16.
    """
    dtype, kept = _dtype(model), {torch.float32: "float32", torch.float16: "float16"}.get(memory.k.dtype)
    if memory.k.device.type != "cpu" or dtype is None or kept is None:
        return None
    library = compiled(dtype, kept)
    return None if library is None else NativeStep(model, memory, library)


def why_not_native(model: GPT) -> str:
    """Return one line that says why PyTorch computes the steps of a model on a CPU, or an empty text.

    It is empty where compiled code computes them, and on another device.
    """
    if model.transformer.wpe.weight.device.type != "cpu":
        return ""
    dtype = _dtype(model)
    found = "the model has other layers than GPT-2's" if dtype is None else attempt(dtype)
    return f"PyTorch computes the steps, which is slower: {found}" if isinstance(found, str) else ""


def kv_dtype(model: GPT, native: bool) -> torch.dtype:
    """Return the dtype in which the engine keeps the keys and values of a model, with native steps or without.

    It is float16 for native steps with matrices of less than 32 bits, whose rounding changes more. A step of many
    texts or of a long one takes up to a quarter less time then. Otherwise it is that of the position embeddings.
    """
    positions, dtype = model.transformer.wpe.weight, _dtype(model)
    if not native or positions.device.type != "cpu" or dtype in (None, "float32"):
        return positions.dtype
    return positions.dtype if compiled(dtype, "float16") is None else torch.float16


def _dtype(model: GPT) -> str | None:
    """Return the name of the dtype of all matrices of a model, or None if it is no plain GPT-2 in memory of a CPU."""
    config, transformer = model.config, model.transformer
    C = config.n_embd
    matrices: list[tuple[nn.Module, tuple[int, int]]] = [(transformer.wte, (config.vocab_size, C))]
    norms: list[nn.Module] = [transformer.ln_f]
    for block in transformer.h:
        if type(block) is not Block or type(block.attn) is not CausalSelfAttention or type(block.mlp) is not MLP:
            return None
        shapes = ((3 * C, C), (C, C), (4 * C, C), (C, 4 * C))
        layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        matrices += zip(layers, shapes, strict=True)
        norms += [block.ln_1, block.ln_2]
    kinds = {type(layer) for layer, _ in matrices}
    is_plain = (kinds == {Matrix} or kinds == {nn.Linear, Embedding}) and type(transformer.wpe) is Embedding
    if model.training and config.dropout:
        return None
    if type(model).hidden is not GPT.hidden or type(model).head is not GPT.head or not is_plain:
        return None
    if any(layer.weight.shape != shape for layer, shape in matrices) or any(type(n) is not LayerNorm for n in norms):
        return None
    if any(type(p.data) is not Tensor or not p.is_contiguous() for p in model.parameters()):
        return None
    others = {p.dtype for p in model.parameters() if p.dim() == 1}
    dtypes = {layer.weight.dtype for layer, _ in matrices}
    if others != {torch.float32} or len(dtypes) != 1 or any(hooks(module) for module in model.modules()):
        return None
    return str(dtypes.pop()).removeprefix("torch.")


def hooks(module: nn.Module) -> bool:
    """Return whether something else happens when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def compiled(dtype: str, kept: str = "float32") -> Any | None:
    """Return the library for matrices of a dtype, compiled once per machine; None if that is not possible.

    kept: the dtype of keys and values, float32 or float16. A library that computes something else than PyTorch, as
    after a fault of the compiler, is not used.
    """
    found = attempt(dtype, kept)
    return None if isinstance(found, str) else found


@functools.cache
def attempt(dtype: str, kept: str = "float32") -> Any:
    """Return the library of `compiled`, or a text that says why there is none."""
    compiler = os.environ.get("CC", "").strip() or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "there is no C compiler on PATH"
    command = compiler.split()
    if shutil.which(command[0]) is None:
        return f"CC is {compiler}, which is not on PATH"
    try:
        library = ctypes.CDLL(str(_compile(command, dtype, kept)))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or [""]
        return f"{compiler} fails: {next((line for line in lines if 'error' in line), lines[0])}"
    except subprocess.TimeoutExpired:
        return f"{compiler} took longer than {COMPILE_SECONDS} s"
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return f"its code cannot be kept: {first_line(error)}; set XDG_CACHE_HOME to a folder that can be written"
    library.decode.restype = None
    if not computes_the_model(library, dtype, kept):
        return f"the code that {compiler} makes computes something else than PyTorch"
    return library


@torch.inference_mode()
def computes_the_model(library: Any, dtype: str, kept: str = "float32") -> bool:
    """Return whether a library gives PyTorch's logits for six texts and a tiny model. It takes milliseconds.

    Five texts get one token each, and the sixth gets eight, so that each number of tokens that `decode.c`
    computes together occurs.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # a new model draws initial weights
        model = GPT(GPTConfig(block_size=20, vocab_size=37, n_layer=1, n_head=2, n_embd=40)).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    stored = for_decoding(model, *(("float32", "int8") if dtype == "int8" else (dtype, "none")))
    for name, layer in stored.named_modules():
        if isinstance(layer, Matrix):  # the model gets the values that are stored
            weight = layer.weight.float() if layer.scales is None else layer.weight * layer.scales[:, None]
            model.get_submodule(name).weight.copy_(weight)  # type: ignore[operator,union-attr]
    last, starts = torch.arange(5), [0, 3, 19, 7, 16]
    chunk = Chunk(slot=5, start=2, tokens=range(8), wants_all=True)
    cpu, kv = torch.device("cpu"), DTYPES[kept]
    memory, expected_memory = (KVMemory(model.config, 6, cpu, kv) for _ in range(2))
    for tensor, other in ((memory.k, expected_memory.k), (memory.v, expected_memory.v)):
        other.copy_(tensor.copy_(torch.randn(tensor.shape, generator=generator)))
    expected = TorchStep(model, expected_memory, size=8).logits(last, starts, [chunk])
    step = NativeStep(stored, memory, library)
    found = step.logits(last, starts, [chunk])
    alone = torch.cat([step.logits(last[:n], starts[:n], [])[-1:] for n in range(1, 6)])
    pairs = ((found, expected), (memory.k, expected_memory.k), (memory.v, expected_memory.v))
    error = 1e-4 if kept == "float32" else 2e-3  # a key may be rounded to the next number of float16
    is_close = all(torch.allclose(a, b, rtol=0, atol=error * float(b.abs().max())) for a, b in pairs)
    return is_close and torch.equal(alone, found[:5])


def _compile(compiler: Sequence[str], dtype: str, kept: str) -> Path:
    """Return the compiled file in the cache of this user. The name depends on the source and the processor.

    compiler: the command and its first options.
    """
    key = hashlib.sha256(SOURCE.read_bytes())
    key.update(
        " ".join((*compiler, dtype, kept, *FLAGS, torch.backends.cpu.get_cpu_capability(), _processor())).encode()
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2"
    file = folder / f"decode-{dtype}-{kept}-{key.hexdigest()[:16]}.so"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unlinked, linked = Path(temporary) / "decode.o", Path(temporary) / "decode.so"
        for command in (
            [*compiler, "-c", *FLAGS, f"-DWEIGHT_{dtype}", f"-DKEPT_{kept}", "-o", unlinked, SOURCE],
            [*compiler, "-shared", "-fopenmp", "-o", linked, unlinked, "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        linked.replace(file)
    return file


def _processor() -> str:
    """Return what the processor supports, as far as the system lists it."""
    from gpt2.device import CPU_INFO

    try:
        return next(line for line in CPU_INFO.read_text().splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return ""


def _block(block: Any) -> _Block:
    norms = (block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias)
    layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return _Block(*map(_pointer, norms), *map(_matrix, layers))


def _matrix(layer: Any) -> _Matrix:
    tensors = (layer.weight, getattr(layer, "scales", None), getattr(layer, "bias", None))
    return _Matrix(*map(_pointer, tensors))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
