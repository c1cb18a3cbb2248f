"""Damaged and hostile files of every format: one line each, nothing run, no memory beyond what is there."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toys import characters, source_of, toy

from gpt2.formats.export import export

COUNT = int(os.environ.get("GPT2_TEST_MUTANTS", "500"))
FILES = (
    "ckpt.pt",
    "build.pt",
    "legacy.bin",
    "gpt2_d2.bin",
    "gpt2_d2_bf16.bin",
    "m.gguf",
    "q.gguf",
    "m.safetensors",
    "hf",
)
ABSURD = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 0x40000000)


class GPTConfig:
    """What build-nanogpt's script pickles, with the script as its module."""


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in every format."""
    folder = tmp_path_factory.mktemp("intact")
    model, tokenizer = toy(n_embd=32), characters(33)
    for name in ("hf", "nanogpt", "llmc"):
        export(source_of(model, tokenizer), name, folder / name, lambda line: None)
    for path in (*(folder / "llmc").iterdir(), *(folder / "nanogpt").iterdir()):
        path.rename(folder / path.name)
    export(source_of(model, tokenizer), "gguf", folder / "m.gguf", lambda line: None)
    export(source_of(model, tokenizer), "gguf", folder / "q.gguf", lambda line: None, "q8_0")
    export(source_of(model, tokenizer), "safetensors", folder / "m.safetensors", lambda line: None)
    state = torch.load(folder / "ckpt.pt")["model"]
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    save_build_nanogpt(state, folder / "build.pt")
    return folder


def save_build_nanogpt(state: dict[str, torch.Tensor], path: Path) -> None:
    """A checkpoint as build-nanogpt's script saves it: with its own dataclass, of the module `__main__`."""
    config = GPTConfig()
    config.__dict__ = {"block_size": 16, "vocab_size": 33, "n_layer": 2, "n_head": 2, "n_embd": 32}
    main = sys.modules["__main__"]
    GPTConfig.__module__, GPTConfig.__qualname__ = "__main__", "GPTConfig"
    main.GPTConfig = GPTConfig
    try:
        torch.save({"model": state, "config": config, "step": 5000, "val_loss": 3.2}, path)
    finally:
        del main.GPTConfig


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One of the ways a file goes wrong."""
    kind = rng.randrange(8)
    near = rng.choice((64, 512, 4096, len(data)))  # headers are where it matters
    at = rng.randrange(min(near, len(data)))
    word = at // 4 * 4
    changed = bytearray(data)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 2:  # swapped header fields
        other = rng.randrange(min(near, len(data))) // 4 * 4
        changed[word : word + 4], changed[other : other + 4] = data[other : other + 4], data[word : word + 4]
    elif kind == 3:  # absurd sizes
        changed[word : word + 4] = rng.choice(ABSURD).to_bytes(4, "little")
    elif kind == 4:
        changed[word : word + 8] = rng.choice((1 << 63, (1 << 64) - 1, 1 << 40, 1 << 32)).to_bytes(8, "little")
    elif kind == 5:
        changed[at : at + 64] = rng.randbytes(64)
    elif kind == 6:
        changed[:4] = rng.randbytes(4)  # wrong magic
    else:
        changed += rng.randbytes(rng.randrange(1, 5000))
    return bytes(changed)


def mutants(intact: Path, folder: Path) -> Iterator[Path]:
    rng = random.Random(0)
    for number in range(COUNT):
        name = FILES[number % len(FILES)]
        place = folder / f"{number:04d}"
        place.mkdir()
        if name == "hf":
            shutil.copytree(intact / "hf", place / "hf")
            victim = place / "hf" / rng.choice(("config.json", "model.safetensors", "tokenizer.json"))
            victim.write_bytes(mutate(victim.read_bytes(), rng))
            yield place / "hf"
            continue
        shutil.copy(intact / rng.choice(("meta.pkl", "gpt2_tokenizer.bin")), place)
        (place / name).write_bytes(mutate((intact / name).read_bytes(), rng))
        if rng.random() < 0.1:
            other = next(p for p in place.iterdir() if p.name != name)
            other.write_bytes(mutate(other.read_bytes(), rng))
        yield place / name


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def hostile(intact: Path, folder: Path, mark: Path) -> Iterator[tuple[Path, str]]:
    """Pickles that would leave `mark` if anything in them ran, or claim what is not there."""
    calls = {
        "posix.system": Calls(os.system, f"touch {mark}"),
        "builtins.exec": Calls(exec, f"open({str(mark)!r}, 'w')"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(mark)]),
        "builtins.open": Calls(open, str(mark), "w"),
        "builtins.getattr": Calls(getattr, {}, "clear"),
        "pathlib.Path.write_text": Calls(Path.write_text, Path(mark), "x"),
        "shutil.rmtree": Calls(shutil.rmtree, str(folder / "nothing")),
    }
    for name, call in calls.items():
        for where in ("whole", "inside", "config", "legacy"):
            state = torch.load(intact / "ckpt.pt")
            value = call if where == "whole" else {**state, "config" if where == "config" else "more": call}
            path = folder / f"{name}-{where}.pt"
            torch.save(value, path, _use_new_zipfile_serialization=where != "legacy")
            yield path, name
        (folder / name).mkdir()
        shutil.copy(intact / "gpt2_d2.bin", folder / name)
        (folder / name / "meta.pkl").write_bytes(pickle.dumps(call))
        yield folder / name / "gpt2_d2.bin", name

    # what PyTorch's restricted reader would let through
    torch.save({"a": Calls(bytearray, 1 << 32)}, folder / "bytes.pt")
    yield folder / "bytes.pt", "builtins.bytearray"
    torch.save({"a": Calls(bytearray, 1 << 32)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    yield folder / "old.pt", "builtins.bytearray"
    (folder / "nested").mkdir()
    (folder / "nested" / "config.json").write_text("[" * 200_000)
    yield folder / "nested", "cannot be read as a GPT-2 configuration"
    for number, change in enumerate(({"eot": -5}, {"eot": 10**12}, {"eot": 40}, {"tokens": "YQ== YQ=="})):
        tokenizer = {"kind": "bpe", "pattern": ".", "tokens": "YQ== Yg=="} | change
        values = {"config": {"n_embd": 32, "n_head": 2, "n_layer": 2, "block_size": 16, "vocab_size": 33}}
        metadata = {"gpt2": json.dumps(values | {"tokenizer": tokenizer})}
        path = folder / f"tokenizer{number}.safetensors"
        save_file({name: p.detach() for name, p in toy(n_embd=32).named_parameters()}, path, metadata)
        yield path, "tokenizer description cannot be read"
    big = toy(n_embd=32).state_dict()
    one = torch.zeros(1)
    big["transformer.wte.weight"] = one.expand(1 << 20, 32 << 10)  # a view of one number as 128 GiB
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32 << 10, "block_size": 16, "vocab_size": 1 << 20, "bias": True}
    torch.save({"model": big, "model_args": args}, folder / "stretched.pt")
    yield folder / "stretched.pt", "no tensor of weights"
    args = {"n_layer": 1 << 40, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 33, "bias": True}
    (folder / "deep").mkdir()
    shutil.copy(intact / "meta.pkl", folder / "deep")
    torch.save({"model": toy(n_embd=32).state_dict(), "model_args": args}, folder / "deep" / "deep.pt")
    yield folder / "deep" / "deep.pt", "h.2.ln_1.weight is missing"
    torch.save(OrderedDict(a=torch.zeros(3, dtype=torch.int64)), folder / "integers.pt")
    yield folder / "integers.pt", "no tensor of weights"
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 30))
        archive.writestr("bomb/version", "3\n")
    yield folder / "bomb.pt", "unpacks to more"
    buffer = io.BytesIO(b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little"))  # an array of 2^60 bytes
    buffer.seek(0, 2)
    key = b"a"
    buffer.write(len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little") + (0).to_bytes(4, "little"))
    buffer.write((1 << 60).to_bytes(8, "little"))
    (folder / "endless.gguf").write_bytes(buffer.getvalue())
    yield folder / "endless.gguf", "in the middle of its header"


def open_all(intact: Path, paths: list[Path]) -> dict:
    lines = "\n".join(str(p) for p in [intact / "m.safetensors", *paths])
    script = Path(__file__).with_name("mutants.py")
    done = subprocess.run([sys.executable, script], input=lines, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def is_one_line(result: dict) -> bool:
    last = result["err"].rstrip("\n").split("\n")[-1]
    return (
        result["status"] == 2
        and last.startswith("gpt2: ")
        and last.isprintable()
        and result["err"].count("gpt2:") == 1
    )


def test_every_intact_file_opens(intact: Path) -> None:
    results = open_all(intact, [intact / name for name in FILES])["results"]
    assert [r for r in results if r["status"] != 0] == []


def test_damaged_files_give_one_line_and_little_memory(intact: Path, tmp_path: Path) -> None:
    outcome = open_all(intact, list(mutants(intact, tmp_path)))
    wrong = [r for r in outcome["results"] if r["status"] != 0 and not is_one_line(r)]
    assert wrong == []
    refused = sum(r["status"] == 2 for r in outcome["results"])
    assert refused > COUNT / 3  # the others changed a weight, a name or nothing that is read
    assert outcome["megabytes"] < 200


def test_hostile_pickles_are_refused_by_name_and_not_run(intact: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    cases = list(hostile(intact, tmp_path, mark))
    outcome = open_all(intact, [path for path, _ in cases])
    wrong = [
        r for r, (_, name) in zip(outcome["results"], cases, strict=True) if not (is_one_line(r) and name in r["err"])
    ]
    assert wrong == []
    assert not mark.exists()
    assert outcome["megabytes"] < 200
