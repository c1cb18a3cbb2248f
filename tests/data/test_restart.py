"""A preparation that is killed anywhere and run again gives the files of one that was left alone."""

import errno
import gzip
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from processes import environment, members, remaining

from gpt2.data import staging, tokenise
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.data.writers import SplitWriter
from gpt2.errors import UserError

SETTINGS = {
    "nanogpt": {"format": "nanogpt"},
    "llmc": {"format": "llmc", "shard_size": 700, "val_tokens": 1000},
    "npy": {"format": "npy", "shard_size": 900, "val_fraction": 0.1},
}


class Killed(BaseException):
    """What ends the process here, and is no error that anything could handle."""


@pytest.fixture
def corpus(tmp_path: Path, text: str) -> list[Path]:
    """Three files of different kinds."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = text.split("\n")
    for i in range(2):
        rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[i::3])
        (folder / f"{i}.jsonl").write_text(rows)
    (folder / "2.txt").write_text("\n".join(lines[2::3]))
    return sorted(folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_goes_on_where_it_was(kind: str, corpus: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokenise, "BATCH", 300)
    monkeypatch.setattr(tokenise, "RECORD_SECONDS", 0.0)
    settings = {"tokenizer": "bpe", "vocab_size": 280, **SETTINGS[kind]}
    undisturbed = content(prepare(*corpus, out=tmp_path / "undisturbed", **settings))
    out, rng = tmp_path / "killed", random.Random(kind)
    furthest, kills = 0, 0
    while not (out / "dataset.json").exists():
        begun_at: list[int] = []

        def progress(read: int, total: int, tokens: int, begun_at: list[int] = begun_at) -> None:
            if tokens:
                begun_at.append(tokens)
                if rng.random() < 0.15:
                    raise Killed

        try:
            prepare(*corpus, out=out, **settings, progress=progress)
        except Killed:
            kills += 1
            with pytest.raises(UserError, match="interrupted"):
                open_dataset(str(out))
        assert not begun_at or begun_at[0] >= furthest, "what had been done was done again"
        furthest = max([furthest, *begun_at[:-1]])
    assert kills >= 3
    assert content(out) == undisturbed


def test_another_text_or_setting_begins_anew(corpus: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokenise, "BATCH", 300)
    monkeypatch.setattr(tokenise, "RECORD_SECONDS", 0.0)

    def stop_late(read: int, total: int, tokens: int) -> None:
        if tokens and read > total // 2:
            raise Killed

    for change in ("text", "setting", "journal", "file"):
        out, settings = tmp_path / change, {"tokenizer": "byte", "val_fraction": 0.1}
        with pytest.raises(Killed):
            prepare(*corpus, out=out, **settings, progress=stop_late)
        if change == "text":
            corpus[0].write_text(corpus[0].read_text().replace("cat", "rat"))
        elif change == "setting":
            settings["val_fraction"] = 0.2
        elif change == "journal":
            (out / ".new" / "journal.json").write_text("{")
        else:
            os.truncate(out / ".new" / "train.bin", 10)
        prepare(*corpus, out=out, **settings)
        fresh = prepare(*corpus, out=tmp_path / f"{change} afresh", **settings)
        assert content(out) == content(fresh)


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_while_files_are_moved_is_made_good(
    moved: int, corpus: list[Path], tmp_path: Path, monkeypatch
) -> None:
    """With an older dataset in the place, of other files; nothing is tokenised again."""
    monkeypatch.setattr(tokenise, "RECORD_SECONDS", 0.0)
    out = prepare(*corpus, out=tmp_path / "out", tokenizer="char", format="nanogpt")
    settings = {"tokenizer": "byte", "format": "npy", "val_fraction": 0.1, "overwrite": True}
    undisturbed = content(prepare(*corpus, out=tmp_path / "undisturbed", **settings))
    replace, left = Path.replace, [moved]

    def dying(self: Path, target: Path) -> Path:
        if self.parent.name == ".new" and Path(target).parent == out:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        if moved < 3:
            with pytest.raises(Killed):
                prepare(*corpus, out=out, **settings)
            with pytest.raises(UserError, match="interrupted"):
                open_dataset(str(out))
    begun: list[int] = []
    prepare(*corpus, out=out, **settings, progress=lambda read, total, tokens: begun.append(tokens))
    assert any(begun) == (moved == 3)
    assert content(out) == undisturbed


def test_what_another_dataset_moved_before_it_was_killed_goes(
    corpus: list[Path], tmp_path: Path, monkeypatch
) -> None:
    settings = {"tokenizer": "byte", "format": "npy"}
    replace, moves = Path.replace, itertools.count()

    def dying(self: Path, target: Path) -> Path:
        if Path(target).parent == tmp_path / "out" and next(moves) == 4:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            prepare(*corpus, out=tmp_path / "out", **settings, shard_size=500)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4
    prepare(*corpus, out=tmp_path / "out", **settings, shard_size=5000)
    assert content(tmp_path / "out") == content(prepare(*corpus, out=tmp_path / "alone", **settings, shard_size=5000))


def test_the_estimate_does_not_mix_kinds_of_files(corpus: list[Path], tmp_path: Path, monkeypatch) -> None:
    """A compressed file stands for much more text than others of its size."""
    monkeypatch.setattr(tokenise, "BATCH", 1000)
    size = 50 * corpus[0].stat().st_size + sum(path.stat().st_size for path in corpus[1:])
    (corpus[0].parent / "0.jsonl.gz").write_bytes(gzip.compress(corpus[0].read_bytes() * 50))
    corpus[0].unlink()
    files = sorted(corpus[0].parent.iterdir())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3 * size))
    prepare(*files, out=tmp_path / "out", tokenizer="byte", val_fraction=0.01)


def test_an_impatient_ctrl_c_leaves_no_worker_behind(tmp_path: Path, text: str) -> None:
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(1500)))
    for gap in (0.02, 0.1, 0.3):
        command = [
            sys.executable,
            "-m",
            "gpt2",
            "prepare",
            str(rows),
            f"--out={tmp_path / 'out'}",
            "--tokenizer=byte",
        ]
        process = subprocess.Popen(
            [*command, "--workers=2"],
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            start_new_session=True,
            # a shell in the background has its children ignore Ctrl-C, and so may have had this one
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 60
        while len(members(tmp_path)) < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)  # two workers, and what watches over what they share
        for _ in range(3):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(gap)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT)  # the second where Python was leaving already
        assert b"Traceback" not in err
        assert not remaining(tmp_path)


def test_two_processes_do_not_prepare_one_dataset(corpus: list[Path], tmp_path: Path) -> None:
    def meanwhile(read: int, total: int, tokens: int) -> None:
        with pytest.raises(UserError, match="another process"):
            prepare(*corpus, out=tmp_path / "out", tokenizer="byte")

    out = prepare(*corpus, out=tmp_path / "out", tokenizer="byte", progress=meanwhile)
    assert content(out) == content(prepare(*corpus, out=tmp_path / "alone", tokenizer="byte"))


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    corpus: list[Path], tmp_path: Path, monkeypatch
) -> None:
    size = sum(len(text) for text in (p.read_bytes() for p in corpus))
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, size))  # a byte is a token of two
        with pytest.raises(
            UserError, match=rf"out needs about [\d,]+ bytes for [\d,]+ tokens, and {size:,} are free there"
        ):
            prepare(*corpus, out=tmp_path / "out", tokenizer="byte")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3 * size))
    prepare(*corpus, out=tmp_path / "out", tokenizer="byte")


def test_a_full_disk_keeps_what_is_done(corpus: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokenise, "BATCH", 300)
    monkeypatch.setattr(tokenise, "RECORD_SECONDS", 0.0)
    append, calls = SplitWriter.append, [0]

    def failing(self: SplitWriter, tokens) -> bool:
        calls[0] += 1
        if calls[0] == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "append", failing)
        with pytest.raises(UserError, match=r"disk of .*out is full after [\d,]+ tokens; make room and run the same"):
            prepare(*corpus, out=tmp_path / "out", tokenizer="byte")
    seen: list[int] = []
    prepare(*corpus, out=tmp_path / "out", tokenizer="byte", progress=lambda read, total, tokens: seen.append(tokens))
    assert min(tokens for tokens in seen if tokens) > 1000
    assert content(tmp_path / "out") == content(prepare(*corpus, out=tmp_path / "undisturbed", tokenizer="byte"))


def test_kill_9(tmp_path: Path, text: str) -> None:
    """The real signal to the real command with its workers, `GPT2_TEST_KILLS` times; none of them stays behind."""
    kills = int(os.environ.get("GPT2_TEST_KILLS", "3"))
    rng = random.Random(0)
    source = tmp_path / "text.jsonl"
    with source.open("w") as file:
        for i in range(3000):
            words = text.split()
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=rng.randrange(4000)))}) + f" {'':{i % 3}}\n")
    options = ["--tokenizer=byte", "--format=llmc", "--shard_size=2000000", "--val_tokens=3000000"]

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gpt2", "prepare", str(source), f"--out={out}", "--workers=2", *options]
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(out))

    began = time.monotonic()
    undisturbed = start(tmp_path / "undisturbed")
    assert undisturbed.wait(120) == 0
    usual = time.monotonic() - began
    done = 0
    for _ in range(20 * kills):
        process = start(out := tmp_path / f"killed{rng.random()}")
        time.sleep(usual * rng.uniform(0.1, 1.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (out / "dataset.json").exists():
            continue  # it had come to the end
        assert not remaining(out), "a worker outlived the process that was killed"
        again = start(out)
        assert again.wait(120) == 0, again.stderr.read() if again.stderr else ""
        assert content(out) == content(tmp_path / "undisturbed")
        shutil.rmtree(out)
        done += 1
        if done == kills:
            return
    raise AssertionError(f"only {done} processes were alive when they were to be killed")


def test_leftovers_of_a_staging_folder_are_no_dataset(corpus: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out" / staging.STAGING / "x").mkdir(parents=True)
    with pytest.raises(UserError, match="interrupted"):
        open_dataset(str(tmp_path / "out"))
    out = prepare(*corpus, out=tmp_path / "out", tokenizer="byte")
    assert sorted(content(out)) == ["dataset.json", "train.bin", "val.bin"]
