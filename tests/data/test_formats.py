"""The files that `prepare` writes, against those that nanoGPT, llm.c and build-nanogpt would."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import encode
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.tokenizers import ByteTokenizer

EOT = 256
LLMC_SHA256 = {
    "tiny_shakespeare_train.bin": "8a70606be574040c26d225694f5f9759973b419852d22f7fe5c118e1b359dcc8",
    "tiny_shakespeare_val.bin": "fe99db720dc7c83e694806d4e047a952909411da1daccde4ccc2e55f40882a62",
}


def test_shakespeare_shards_are_llmcs(shared_data: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    text = shared_data / "shakespeare" / "input.txt"
    out = prepare("shakespeare", out=tmp_path / "d", given=text, format="llmc")
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("*.bin")}
    assert found == LLMC_SHA256


def llmc_file(tokens: list[int]) -> bytes:
    """As dev/data/data_common.py of llm.c writes it."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240520, 1, len(tokens)
    return header.tobytes() + np.array(tokens, dtype=np.uint16).tobytes()


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("format", ["llmc", "npy"])
def test_shards_are_filled_one_after_the_other(format: str, tmp_path: Path) -> None:
    texts = [f"document {i} " * (i % 5) for i in range(50)]
    stream = [t for text in texts for t in (EOT, *text.encode())]
    rows = write_rows(tmp_path / "rows.jsonl", texts)
    out = prepare(rows, out=tmp_path / "d", tokenizer="byte", format=format, shard_size=100, val_tokens=150)
    parts = [stream[:100], stream[100:150], *(stream[i : i + 100] for i in range(150, len(stream), 100))]
    suffix = "bin" if format == "llmc" else "npy"
    names = [f"rows_{'val' if i < 2 else 'train'}_{i:06d}.{suffix}" for i in range(len(parts))]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "dataset.json"])
    for name, tokens in zip(names, parts, strict=True):
        if format == "llmc":
            assert (out / name).read_bytes() == llmc_file(tokens)
        else:
            np.save(tmp_path / "reference.npy", np.array(tokens, dtype=np.uint16))
            assert (out / name).read_bytes() == (tmp_path / "reference.npy").read_bytes()
    data = open_dataset(str(out))
    assert [*data.splits["val"][:], *data.splits["train"][:]] == stream


def test_nanogpts_files_end_each_document(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(50)]
    out = prepare(write_rows(tmp_path / "a.jsonl", texts), out=tmp_path / "d", tokenizer="byte", val_fraction=0.04)
    split = {"val": [texts[24], texts[49]], "train": [t for i, t in enumerate(texts) if i not in (24, 49)]}
    for name, expected in split.items():
        stream = np.array([t for text in expected for t in (*text.encode(), EOT)], dtype=np.uint16)
        assert (out / f"{name}.bin").read_bytes() == stream.tobytes()


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(alphabet="ab é\n", max_size=12), min_size=2, max_size=30),
    format=st.sampled_from(["nanogpt", "llmc", "npy"]),
    shard_size=st.integers(1, 40),
    val_tokens=st.integers(1, 30),
)
def test_every_token_is_there_once_and_in_order(
    texts: list[str], format: str, shard_size: int, val_tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("once")
    rows = write_rows(folder / "rows.jsonl", texts)
    size = None if format == "nanogpt" else shard_size
    eot_first = format != "nanogpt"
    stream = [t for x in texts for t in ([EOT, *x.encode()] if eot_first else [*x.encode(), EOT])]
    settings = {"format": format, "shard_size": size, "val_tokens": val_tokens}
    if len(stream) <= val_tokens:
        with pytest.raises(UserError, match="too few"):
            prepare(rows, out=folder / "d", tokenizer="byte", **settings)
        return
    data = open_dataset(str(prepare(rows, out=folder / "d", tokenizer="byte", **settings)))
    assert data.splits["val"][:].tolist() == stream[:val_tokens]
    assert data.splits["train"][:].tolist() == stream[val_tokens:]
    if size:
        assert all(shard.count <= size for tokens in data.splits.values() for shard in tokens.shards)
    description = json.loads((folder / "d" / "dataset.json").read_text())
    assert sum(description["bytes"].values()) == len("".join(texts).encode())
    assert description["documents"] == len(texts)


def test_validation_text_can_be_given(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    out = prepare(files[0], files[2], val=[files[1]], out=tmp_path / "d", tokenizer="byte")
    data = open_dataset(str(out))
    texts = {s: data.tokenizer.decode(data.splits[s][:].tolist()) for s in ("train", "val")}
    assert texts == {"train": "text a<|endoftext|>text c<|endoftext|>", "val": "text b<|endoftext|>"}


def test_documents_can_be_separated_inside_a_text(tmp_path: Path, gpt2_command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stories.txt").write_text("one<|endoftext|>\ntwo\n\n<|endoftext|>three")
    options = ("--tokenizer=byte", "--val_tokens=3", "--format=llmc")
    assert gpt2_command("prepare", "stories.txt", "--separator=<|endoftext|>", "--out=a", *options)[0] == 0
    assert gpt2_command("prepare", "stories.txt", "--separator=\\n\\n", "--out=b", *options)[0] == 0
    for name, documents in (
        ("a", ["one", "\ntwo\n\n", "three"]),
        ("b", ["one<|endoftext|>\ntwo\n\n", "<|endoftext|>three"]),
    ):
        data = open_dataset(name)
        found = [*data.splits["val"][:], *data.splits["train"][:]]
        assert found == [t for d in documents for t in (EOT, *d.encode())]


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [f"some words of document {i} " * (i % 7) for i in range(300)])
    monkeypatch.setattr("gpt2.data.tokenise.BATCH", 200)
    monkeypatch.setattr(encode, "WORTH_A_POOL", 3)
    outs = [
        prepare(
            rows, out=tmp_path / f"d{n}", tokenizer="bpe", vocab_size=300, format="npy", shard_size=500, workers=n
        )
        for n in (1, 3)
    ]
    files = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outs]
    assert len(files[0]) > 10
    assert files[0] == files[1]


def test_a_text_whose_vocabulary_does_not_fit_takes_four_bytes_a_token(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode_array(self, text: str, specials: bool = False) -> np.ndarray:
            return super().encode_array(text, specials) + 69_000

        def decode_bytes(self, ids) -> bytes:
            return bytes(i - 69_000 for i in ids if 69_000 <= i < 69_256)

    rows = write_rows(tmp_path / "rows.jsonl", ["abc"] * 40)
    with pytest.raises(UserError, match=r"70000 ids does not fit nanoGPT's uint16.*--format=npy"):
        prepare(rows, out=tmp_path / "a", tokenizer=Wide())
    for format, pattern in (("npy", "*.npy"), ("llmc", "*.bin")):
        out = prepare(rows, out=tmp_path / format, tokenizer=Wide(), format=format, val_tokens=10)
        first = next(iter(sorted(out.glob(pattern))))
        content = np.load(first) if format == "npy" else np.frombuffer(first.read_bytes()[1024:], dtype="<u4")
        assert content.dtype == np.uint32
        assert content.max() == 69_000 + ord("c")
