"""Small files that claim or would make gigabytes: one line, little time and little memory."""

import json
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from test_mutants import is_one_line, open_all
from toys import characters, source_of, toy

from gpt2.errors import UserError
from gpt2.formats.export import export
from gpt2.formats.pickles import Reader
from gpt2.formats.tokenizer_files import read_meta
from gpt2.formats.tokenizer_writer import meta_bytes

PROTOCOL = b"\x80\x02"
COUNT = 2_000
"""Number of random pickles."""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ENCODE = b"c_codecs\nencode\nq\x00"
PICKLES = {
    "memo with a huge index": PROTOCOL + b"Nr\xff\xff\xff\x0f.",
    "memo with the largest index": PROTOCOL + b"Nr\xff\xff\xff\xff.",
    "bytes of 1 TiB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "text of 1 TiB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "text of 4 GiB": PROTOCOL + b"X\xff\xff\xff\xff.",
    "bytearray of 1 TiB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "frame of 1 EiB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
    "integer of 2 GB": PROTOCOL + b"\x8b\xff\xff\xff\x7f.",
    "integer of many digits": b"L" + b"9" * 200_000 + b"L\n.",
    "integer of many bits": PROTOCOL + b"\x8b" + struct.pack("<I", 10_000) + b"\x7f" * 10_000 + b".",
    "tuples of themselves": PROTOCOL + b")" + b"q\x00h\x00\x86" * 200 + b".",
    "short tuples of themselves": PROTOCOL + b")" + b"q\x00h\x00\x86" * 40 + b".",
    "list in itself": PROTOCOL + b"]q\x00h\x00a.",
    "deep lists": PROTOCOL + b"(" * 50_000 + b"l" * 50_000 + b".",
    "deep tuples": PROTOCOL + b")" + b"\x85" * 50_000 + b".",
    "deep tuple as a key": PROTOCOL + b"}" + b")" + b"\x85" * 50_000 + b"Ns.",
    "keys of one hash": PROTOCOL
    + b"}("
    + b"".join(b"\x8a\x0a" + (i * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for i in range(1, 20_000))
    + b"u.",
    "doubled in hexadecimal": PROTOCOL
    + ENCODE
    + text("a" * 1000)
    + text("latin1")
    + b"\x86R"
    + (b"q\x02h\x00h\x02" + text("hex") + b"\x86R") * 25
    + b".",
    "encoded again and again": PROTOCOL
    + ENCODE
    + text("a" * 50_000)
    + text("latin1")
    + b"\x86q\x03("
    + b"h\x00h\x03R" * 50_000
    + b"l.",
    "copied again and again": PROTOCOL
    + b"c__builtin__\nset\nq\x00("
    + b"".join(b"K%c" % (i % 256) for i in range(20_000))
    + b"lq\x01"
    + b"h\x00h\x01\x85R" * 20_000
    + b".",
    "vocabulary of 2^50": pickle.dumps({"vocab_size": 1 << 50, "itos": {}, "stoi": {}}),
}


def tensor_of(count: int, location: str = "cpu") -> bytes:
    """A pickle of a tensor of `count` numbers."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text(location) + number + b"tQ"
    return PROTOCOL + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + number + b"\x85K\x01\x85\x89NtR."


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    export(source_of(toy(n_embd=32), characters(33)), "safetensors", folder / "m.safetensors", lambda line: None)
    return folder


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", bytes(16))
    return path


def bombs(folder: Path) -> list[Path]:
    """Model files of every format that claim, or would make, much more than they have."""
    made = [archive(folder / f"{name}.pt", content) for name, content in PICKLES.items()]
    made += [archive(folder / "big.pt", tensor_of(1 << 40)), archive(folder / "meta.pt", tensor_of(1 << 40, "meta"))]
    made.append(archive(folder / "zip.pt", bytes(1 << 27), zipfile.ZIP_DEFLATED))
    start = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    (folder / "legacy.pt").write_bytes(start + tensor_of(1 << 40) + pickle.dumps(["0"], 2))

    def header(content: bytes, size: int | None = None) -> bytes:
        return struct.pack("<Q", len(content) if size is None else size) + content

    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    contents = {
        "length.safetensors": header(b"{}", 1 << 60) + bytes(100),
        "keys.safetensors": header(json.dumps({f"k{i}": entry for i in range(30_000)}).encode()),
        "more.safetensors": header(b"{" + b" " * (1 << 25) + b"}"),
        "shape.safetensors": header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
        "deep.safetensors": header(b'{"__metadata__":' + b'{"a":' * 20_000),
        "count.gguf": b"GGUF\x03\0\0\0" + struct.pack("<QQ", 1 << 60, 1 << 60),
        "nested.gguf": b"GGUF\x03\0\0\0" + struct.pack("<QQQ", 0, 1, 0) + (struct.pack("<IQ", 9, 1) * 50)[4:],
        "arrays.gguf": b"GGUF\x03\0\0\0" + struct.pack("<QQQIIQ", 0, 1, 0, 9, 9, 1 << 60) + bytes(64),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    made += [folder / "legacy.pt", *(folder / name for name in contents)]
    for name, content in {
        "deep": b"[" * 1_000_000,
        "large": b"[" + b"1," * 9_000_000 + b"1]",
        "digits": b'{"model_type":"gpt2","n_embd":' + b"9" * 4_000 + b"}",
        "inner": b'{"model_type":"gpt2","n_embd":[1],"n_inner":[1,1,1,1]}',
        "text": b'{"model_type":"' + b"x" * 1_000_000 + b'"}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(content)
        made.append(folder / name)
    return made


def test_small_files_take_little_memory(intact: Path, tmp_path: Path) -> None:
    paths = bombs(tmp_path)
    start = time.monotonic()
    outcome = open_all(intact, paths)
    assert [r for r in outcome["results"] if not is_one_line(r) or len(r["err"]) > 500 + len(r["path"])] == []
    assert outcome["megabytes"] < 150
    assert time.monotonic() - start < 60  # about 10 s on an idle machine


@pytest.mark.parametrize("name", PICKLES)
def test_a_small_meta_pkl_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(PICKLES[name])
    with pytest.raises(UserError, match=r"is not the meta\.pkl of a nanoGPT character dataset"):
        read_meta(tmp_path / "meta.pkl")


def test_random_pickles_end_in_a_value_or_an_exception_and_little_memory() -> None:
    """A process of its own, because it would crash or fill the memory where a bound is missing."""
    script = Path(__file__).with_name("random_pickles.py")
    done = subprocess.run([sys.executable, script, str(COUNT), "0"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["megabytes"] < 100


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_python_reads(protocol: int) -> None:
    rng = random.Random(protocol)

    def value(depth: int) -> object:
        plain = [
            None,
            True,
            False,
            0,
            -1,
            255,
            65536,
            -(1 << 40),
            1 << 70,
            1.5,
            "",
            "text ä 日",
            "x" * 300,
            b"",
            b"ab\xff",
        ]
        if depth == 0:
            return rng.choice(plain)
        items = [value(depth - 1) for _ in range(rng.randrange(5))]
        keyed = {rng.choice(("a", 1, 2.5, None, ("a", 1))): item for item in items}
        return rng.choice((items, tuple(items), keyed, {1, "a"}, frozenset((1, 2))))

    for _ in range(200):
        expected = value(3)
        assert Reader(pickle.dumps(expected, protocol)).load() == expected


def test_an_honest_meta_pkl_of_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    tokenizer = characters(20_000)
    (tmp_path / "meta.pkl").write_bytes(meta_bytes(tokenizer))
    assert read_meta(tmp_path / "meta.pkl").to_json() == tokenizer.to_json()
