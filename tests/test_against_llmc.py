"""llm.c's own C programs on our files."""

import filecmp
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.formats.source import Source, StoredTensor
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer

PEER = os.environ.get("GPT2_PEER_LLMC", "")
pytestmark = pytest.mark.skipif(
    not PEER, reason="set GPT2_PEER_LLMC to a folder with llm.c's test_gpt2 and train_gpt2"
)
SHARDS = ("dev/data/tinyshakespeare/tiny_shakespeare_train.bin", "dev/data/tinyshakespeare/tiny_shakespeare_val.bin")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with our export of a model, under the names the programs look for."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=257, n_layer=3, n_head=4, n_embd=64))
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    source = Source(model.config, tensors, ByteTokenizer, "a toy")
    folder = export(source, "llmc", tmp_path / "files", lambda line: None).out
    (folder / "gpt2_d3.bin").rename(folder / "gpt2_124M.bin")
    (folder / "gpt2_d3_debug_state.bin").rename(folder / "gpt2_124M_debug_state.bin")
    return folder


def run(program: str, folder: Path) -> str:
    done = subprocess.run([Path(PEER).resolve() / program], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_test_finds_logits_loss_and_gradients_right(files: Path) -> None:
    """Not its ten losses: those are numbers of OpenAI's weights, written into the program."""
    lines = run("test_gpt2", files).splitlines()
    assert sum(line.startswith("TENSOR OK") for line in lines) == 16
    assert sum(line.startswith("OK (LOGITS)") for line in lines) == 1
    assert sum(line.startswith("LOSS OK") for line in lines) == 1
    assert not [line for line in lines if "NOT OK" in line or "MISMATCH" in line]


def test_its_test_notices_a_wrong_gradient(files: Path) -> None:
    state = files / "gpt2_124M_debug_state.bin"
    data = bytearray(state.read_bytes())
    data[-4:] = np.float32(5).tobytes()  # of the last bias
    state.write_bytes(data)
    assert sum(line.startswith("TENSOR OK") for line in run("test_gpt2", files).splitlines()) == 15


def test_it_trains_from_our_export(files: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    tokens = np.frombuffer(Path(__file__).read_bytes() * 20, dtype=np.uint8).astype("<u2")
    header[:3] = 20240520, 1, len(tokens)
    for name in SHARDS:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(header.tobytes() + tokens.tobytes())
    losses = [float(x) for x in re.findall(r"^val loss ([\d.]+)", run("train_gpt2", files), re.MULTILINE)]
    assert losses[0] == pytest.approx(np.log(257), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


def test_what_its_python_script_writes_opens_here_and_is_written_the_same(
    tmp_path: Path, gpt2_vocabulary: None
) -> None:
    """Where the folder also has the files of its `train_gpt2.py --write_tensors 1`."""
    found = [p for p in Path(PEER).glob("gpt2_*.bin") if re.fullmatch(r"gpt2_(\d+M|d\d+)(_bf16)?\.bin", p.name)]
    if not found:
        pytest.skip(f"no model files in {PEER}")
    for path in found:
        source = open_model(str(path))
        assert source.tokenizer.kind == "gpt2"
        assert source.notes == ()
        again = export(source, "llmc", tmp_path / path.stem, lambda line: None).out
        [same] = again.glob("gpt2_*M_bf16.bin" if path.stem.endswith("bf16") else "gpt2_*M.bin")
        assert filecmp.cmp(path, same, shallow=False)
        assert filecmp.cmp(path.with_name("gpt2_tokenizer.bin"), again / "gpt2_tokenizer.bin", shallow=False)
