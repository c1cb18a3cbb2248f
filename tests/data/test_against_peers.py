"""The files of `prepare` against those of the scripts of nanoGPT, llm.c and build-nanogpt, on the same text.

They are run where `GPT2_PEER_NANOGPT`, `GPT2_PEER_LLMC` and `GPT2_PEER_BUILD_NANOGPT` name their folders, on the
first `GPT2_TEST_MEGABYTES` (1) of the real text; what they would download is put there for them.
"""

import itertools
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.data.prepare import prepare

MEGABYTES = float(os.environ.get("GPT2_TEST_MEGABYTES", "1"))
WORKERS = 2
LOCAL_DATASETS = """
import runpy, sys, datasets
load = datasets.load_dataset
rows = sys.argv.pop(1)
def load_dataset(_, split=None, **options):
    return load("json", data_files={"train": rows}, split=split)
datasets.load_dataset = load_dataset
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script with rows of a file where it would download a dataset of Hugging Face's."""


def peer(name: str) -> Path:
    folder = os.environ.get(f"GPT2_PEER_{name}")
    if not folder:
        pytest.skip(f"GPT2_PEER_{name} does not say where it is")
    return Path(folder)


@pytest.fixture(scope="module")
def documents(shared_data: Path) -> list[str]:
    with lzma.open(shared_data / "docs" / "docs.jsonl.xz", "rt") as file:
        texts = (json.loads(line)["text"].replace("\r", "") for line in file)  # their text files have no \r\n
        sizes = itertools.accumulate((len(text.encode()) for text in texts), initial=0)
        count = sum(1 for size in sizes if size < MEGABYTES * 1e6)
    with lzma.open(shared_data / "docs" / "docs.jsonl.xz", "rt") as file:
        return [json.loads(line)["text"].replace("\r", "") for line in itertools.islice(file, count)]


@pytest.fixture
def rows(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def text(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("\n\n\n".join(documents).rstrip())  # llm.c's script makes a document of nothing at an end of text
    return path


def run(script: Path, folder: Path, *arguments: str, rows: Path | None = None) -> None:
    """Run a copy of a script of the other program, which writes next to itself."""
    folder.mkdir(exist_ok=True)
    shutil.copy(script, folder)
    own = ["-c", LOCAL_DATASETS, str(rows)] if rows else []
    subprocess.run(
        [sys.executable, *own, str(folder / script.name), *arguments],
        check=True,
        cwd=folder,
        env=os.environ | {"HF_HOME": str(folder / "hf")},
    )


def changed(script: Path, old: str, new: str, tmp_path: Path) -> Path:
    """A copy of a script with another value of something that it has no option for."""
    assert script.read_text().count(old) == 1
    copy = tmp_path / "changed" / script.name
    copy.parent.mkdir()
    copy.write_text(script.read_text().replace(old, new))
    return copy


def files(folder: Path, pattern: str = "*.bin") -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.glob(pattern)}
    assert found
    return found


def need_datasets() -> None:
    pytest.importorskip("datasets", reason="needs datasets")
    pytest.importorskip("transformers", reason="needs transformers")


@pytest.mark.parametrize("name", ["shakespeare", "shakespeare_char"])
def test_nanogpts_text_scripts(name: str, text: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    script = peer("NANOGPT") / "data" / name / "prepare.py"
    (tmp_path / "script").mkdir()
    shutil.copy(text, tmp_path / "script" / "input.txt")
    run(script, tmp_path / "script")
    kind = "char" if name == "shakespeare_char" else "gpt2"
    prepared = prepare(text, out=tmp_path / "prepared", tokenizer=kind, workers=WORKERS)
    assert files(prepared) == files(tmp_path / "script")
    if kind == "char":
        assert files(prepared, "meta.pkl") == files(tmp_path / "script", "meta.pkl")


def test_nanogpts_openwebtext_script(rows: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    """Which shuffles documents before it splits them: here its splits are given, in its order.

    It writes in 1,024 portions, more than there are documents for validation here.
    """
    need_datasets()
    script = peer("NANOGPT") / "data" / "openwebtext" / "prepare.py"
    run(changed(script, "total_batches = 1024", "total_batches = 1", tmp_path), tmp_path / "script", rows=rows)
    import datasets

    table = datasets.load_dataset("json", data_files=str(rows), cache_dir=str(tmp_path / "cache"))["train"]
    parts = table.train_test_split(test_size=0.0005, seed=2357, shuffle=True)  # as the script has it
    parts["train"].to_json(tmp_path / "train.jsonl")
    parts["test"].to_json(tmp_path / "val.jsonl")
    prepared = prepare(
        tmp_path / "train.jsonl", val=[tmp_path / "val.jsonl"], out=tmp_path / "prepared", workers=WORKERS
    )
    assert files(prepared) == files(tmp_path / "script")


def test_llmcs_shakespeare_script(text: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    scripts = peer("LLMC") / "dev" / "data"
    (tmp_path / "script" / "tinyshakespeare").mkdir(parents=True)
    shutil.copy(text, tmp_path / "script" / "tinyshakespeare" / "tiny_shakespeare.txt")
    shutil.copy(scripts / "data_common.py", tmp_path / "script")
    run(scripts / "tinyshakespeare.py", tmp_path / "script")
    prepared = prepare(
        text,
        out=tmp_path / "prepared",
        format="llmc",
        name="tiny_shakespeare",
        separator="\n\n",
        val_tokens=32_768,
        shard_size=0,
        workers=WORKERS,
    )
    assert files(prepared) == files(tmp_path / "script" / "tinyshakespeare")


def test_llmcs_fineweb_script(rows: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    need_datasets()
    scripts = peer("LLMC") / "dev" / "data"
    size = int(MEGABYTES * 50_000)
    (tmp_path / "script").mkdir()
    shutil.copy(scripts / "data_common.py", tmp_path / "script")
    run(scripts / "fineweb.py", tmp_path / "script", f"--shard_size={size}", "--type=edu", rows=rows)
    settings = {"format": "llmc", "name": "edu_fineweb", "shard_size": size, "val_tokens": size}
    prepared = prepare(rows, out=tmp_path / "prepared", **settings, workers=WORKERS)
    assert len(files(prepared)) > 5
    assert files(prepared) == files(tmp_path / "script" / "edu_fineweb10B")


def test_build_nanogpts_fineweb_script(rows: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    need_datasets()
    script = peer("BUILD_NANOGPT") / "fineweb.py"
    size = int(MEGABYTES * 50_000)
    run(changed(script, "shard_size = int(1e8)", f"shard_size = {size}", tmp_path), tmp_path / "script", rows=rows)
    settings = {"format": "npy", "name": "edufineweb", "shard_size": size, "val_tokens": size}
    prepared = prepare(rows, out=tmp_path / "prepared", **settings, workers=WORKERS)
    assert files(prepared, "*.npy") == files(tmp_path / "script" / "edu_fineweb10B", "*.npy")
