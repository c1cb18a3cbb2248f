"""Opening a model to decode with takes the memory of the converted model and little more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2.api import export
from gpt2.formats.open import build, open_model
from gpt2.generation.kv_cache import KVMemory
from gpt2.generation.weights import Quantize, for_decoding, read_for_decoding
from gpt2.model import GPT, GPTConfig

FORMATS: list[tuple[str, Quantize]] = [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")]
PROGRAM = """
import sys, torch
from gpt2.formats.open import open_model
from gpt2.generation.weights import read_for_decoding, stored_bytes
from gpt2.system import peak_memory

source, before = open_model(sys.argv[1]), peak_memory()
model = read_for_decoding(source, torch.device("cpu"), sys.argv[2], sys.argv[3])
print(peak_memory() - before, stored_bytes(model))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 113 MB in Hugging Face's format, whose matrices are transposed when they are read."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model") / "hf"
    export(GPT(GPTConfig(block_size=64, vocab_size=500, n_layer=4)), "hf", out)
    return out


@pytest.mark.parametrize(("dtype", "quantize"), FORMATS)
def test_a_model_that_is_converted_while_it_is_read_is_the_same(folder: Path, dtype: str, quantize: Quantize) -> None:
    source = open_model(folder)
    expected = for_decoding(build(source), dtype, quantize)
    found = read_for_decoding(source, torch.device("cpu"), dtype, quantize)
    pairs = zip(found.named_parameters(), expected.named_parameters(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
    idx = torch.arange(20)[None]
    assert torch.equal(found(idx)[0], expected(idx)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="pages of files are given back on Linux")
@pytest.mark.parametrize(("dtype", "quantize"), FORMATS)
def test_memory_holds_a_model_once(folder: Path, dtype: str, quantize: Quantize) -> None:
    command = [sys.executable, "-c", PROGRAM, str(folder), dtype, quantize]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown, stored = map(int, done.stdout.split())
    assert grown < stored + 40e6  # the largest matrix has 9 MB in float32


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the memory in use")
def test_a_slot_takes_the_memory_of_its_text() -> None:
    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    config = GPTConfig(block_size=8192, vocab_size=10, n_layer=2, n_head=4, n_embd=128)
    before, memory = used(), KVMemory(config, 8, torch.device("cpu"), torch.float32)
    size = 2 * memory.k.nbytes
    assert size == 2 * 2 * 8 * 8192 * 128 * 4
    for tensor in (memory.k, memory.v):
        tensor[:, :, :, :100] = 1.0
        assert tensor.data_ptr() % 64 == 0 and not tensor[:, :, :, 100].any()
    assert used() - before < 0.1 * size  # a text of 100 positions of 8,192
