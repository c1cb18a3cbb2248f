"""300 damaged datasets: one clear line each before training starts, and everything stays as it was."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_shards import save_bare, save_llmc, save_npy

from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.formats.tokenizer_writer import meta_bytes
from gpt2.tokenizers import CharTokenizer

COUNT = int(os.environ.get("GPT2_TEST_DAMAGED", "300"))
VOCAB = 30
SAVERS = {"bare": save_bare, "llmc": save_llmc, "npy": save_npy}
TRAIN = [
    "--n_layer=1",
    "--n_head=1",
    "--n_embd=8",
    "--block_size=8",
    "--max_iters=1",
    "--eval_iters=1",
    "--batch_size=2",
    "--no-compile",
    "--device=cpu",
    "--out_dir=run",
]


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, 12, 2)])  # nobody can tell a bare file cut between tokens


def odd(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def gone(path: Path, rng: random.Random) -> None:
    for sibling in path.parent.glob("*val*" if "val" in path.name else "*train*"):
        sibling.unlink()


def loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def foreign_dtype(path: Path, rng: random.Random) -> None:
    kind = rng.choice(["<f4", "<i8", ">u2", "<c8", "?"])
    with path.open("wb") as file:
        np.save(file, np.ones(500, dtype=kind))


def strange_id(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = len(data) - 2 * rng.randrange(1, 400)
    data[at : at + 2] = rng.randrange(VOCAB, 1 << 16).to_bytes(2, "little")
    path.write_bytes(data)


def wrong_magic(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    magic = rng.choice([20240326, 20240327, 20240328, 20240522, 20240801]).to_bytes(4, "little")
    path.write_bytes(magic + data[4:] if len(data) > 1024 else magic + bytes(1020) + data)


def wrong_count(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, rng.choice([0, -1, 1, 1 << 30, 399, 401, len(data)])
    path.write_bytes(header.tobytes() + data[-800:])


def rubbish(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(200, 3000)))


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    truncate, odd, empty, gone, loop, folder, foreign_dtype, strange_id, wrong_magic, wrong_count, rubbish,
)  # fmt: skip


def contents(place: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@pytest.fixture
def intact(tmp_path: Path) -> Path:
    """One dataset in each format, with the characters of its tokens."""
    rng = np.random.default_rng(0)
    for name, save in SAVERS.items():
        place = tmp_path / "intact" / name
        place.mkdir(parents=True)
        for part in ("train_0", "train_1", "val_0"):
            save(place / f"x_{part}", rng.integers(0, VOCAB, 400))
        (place / "meta.pkl").write_bytes(meta_bytes(CharTokenizer("abcdefghijklmnopqrstuvwxyz.,!?")))
    return tmp_path / "intact"


def test_every_intact_format_trains(intact: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(intact)
    for name in SAVERS:
        status, _, err = gpt2_command("train", f"--dataset={name}", *TRAIN, "--overwrite")
        assert status == 0, err


def damaged(intact: Path, number: int, rng: random.Random) -> Path:
    """A copy of a dataset with the `number`-th damage."""
    place = Path(shutil.copytree(intact / rng.choice(list(SAVERS)), intact / f"damaged{number}"))
    DAMAGES[number % len(DAMAGES)](rng.choice(sorted(place.glob("x_*"))), rng)
    return place


def test_each_damage_ends_the_command_with_one_line(intact: Path, gpt2_command, monkeypatch) -> None:
    monkeypatch.chdir(intact)
    rng = random.Random(0)
    for number in range(len(DAMAGES)):
        place = damaged(intact, number, rng)
        before = contents(place)
        status, out, err = gpt2_command("train", f"--dataset={place}", *TRAIN)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("gpt2: ")
        assert contents(place) == before
        assert not Path("run").exists()


def test_damaged_datasets_are_refused_in_one_line(intact: Path) -> None:
    rng = random.Random(1)
    for number in range(COUNT):
        place = damaged(intact, number, rng)
        with pytest.raises(UserError) as refusal:
            data = open_dataset(str(place))
            for split in ("train", "val"):
                data.split(split, 8)
        assert str(refusal.value).isprintable(), DAMAGES[number % len(DAMAGES)]
        assert "damaged" in str(refusal.value)  # the file is named
