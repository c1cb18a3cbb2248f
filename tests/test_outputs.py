"""Outputs follow links, go into pipes and descriptors, and never replace anything but a file."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gpt2
from gpt2 import checkpoint
from gpt2.errors import UserError, WriteError
from gpt2.files import publish, write_text
from gpt2.formats.run_folder import folder_of
from gpt2.training.loop import train


@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_stays_and_what_it_points_to_is_written(before: str | None, relative: bool, tmp_path: Path) -> None:
    target, link, chain = tmp_path / "there" / "page.html", tmp_path / "link", tmp_path / "chain"
    target.parent.mkdir()
    if before is not None:
        target.write_text(before)
    link.symlink_to("there/page.html" if relative else target)
    chain.symlink_to(link)
    write_text(chain, "new")
    assert target.read_text() == "new"
    assert chain.is_symlink() and link.is_symlink() and not target.is_symlink()
    assert sorted(p.name for p in target.parent.iterdir()) == ["page.html"]


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_open_descriptor_is_written_on_where_it_is(tmp_path: Path) -> None:
    """As in `gpt2 report RUN -o /dev/fd/1 > file`, where the shell goes on to use the file."""
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from gpt2.files import write_text; print('before');"
        "write_text(Path('/dev/fd/1'), 'text\\n'); write_text(Path('/dev/fd/1'), 'more\\n'); print('after')"
    )
    with out.open("w") as stdout:
        subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True)
    assert out.read_text() == "before\ntext\nmore\nafter\n"


def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual_one(tiny, gpt2_command, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("x")
    old.chmod(0o640)
    write_text(old, "y")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    train(tiny(max_iters=1))
    assert gpt2_command("export", "safetensors", tmp_path / "run", tmp_path / "new.safetensors")[0] == 0
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.safetensors").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("form", ["safetensors", "hf", "nanogpt", "gguf", "llmc"])
def test_an_export_that_finds_no_room_is_one_line_and_leaves_nothing(form: str, tiny, tmp_path: Path) -> None:
    run = train(tiny(max_iters=1)).out_dir
    code = (  # files of at most 2,000 bytes, which the system refuses as it does on a full disk
        "import resource, sys; from gpt2.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY)); main(sys.argv[1:])"
    )
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, "export", form, str(run), str(out)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"cannot write {out.parent}" in done.stderr
    assert "File too large" in done.stderr
    assert [p for p in out.parent.rglob("*") if p.is_file()] == []


def test_a_full_disk_is_named_with_the_space_there_is(tmp_path: Path) -> None:
    message = (
        r"cannot write .*page\.html \(No space left on device\): it needs at least 10 bytes and [0-9,]+ are free"
    )
    with pytest.raises(WriteError, match=message), publish(tmp_path / "page.html", needed=10) as temporary:
        temporary.write_text("a part")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), publish(tmp_path / "page.html"):
        (tmp_path / "missing").read_text()


def test_an_import_that_fails_can_be_repeated(tiny, gpt2_command, tmp_path: Path, monkeypatch) -> None:
    train(tiny(max_iters=1))
    assert gpt2_command("export", "nanogpt", tmp_path / "run", tmp_path / "ckpt.pt")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_manifest", lambda folder: (_ for _ in ()).throw(OSError(28, "No space")))
        status, _, err = gpt2_command("import", tmp_path / "ckpt.pt", tmp_path / "again")
        assert (status, "No space" in err) == (2, True)
    assert not (tmp_path / "again").exists()
    assert gpt2_command("import", tmp_path / "ckpt.pt", tmp_path / "again")[0] == 0


def test_a_run_can_be_read_while_it_prunes(tiny, tmp_path: Path) -> None:
    """A thread saves and removes checkpoints as fast as it can, with only one kept."""
    run = train(tiny(max_iters=1)).out_dir
    model, tokenizer = gpt2.load(str(run))
    done = threading.Event()

    def train_on() -> None:
        step = 1
        while not done.is_set():
            step += 1
            state = checkpoint.TrainState(step)
            checkpoint.write(checkpoint.take(run, state, model, [], tokenizer, {"train": {}, "dataset": {}}))
            checkpoint.prune(run, 1, ())

    trainer = threading.Thread(target=train_on)
    trainer.start()
    try:
        for _ in range(60):
            gpt2.load(str(run))
    finally:
        done.set()
        trainer.join()


def test_a_checkpoint_that_vanishes_between_listing_and_reading_is_skipped(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2.formats import run_folder

    run = train(tiny(max_iters=4, eval_interval=2, keep_checkpoints=0)).out_dir
    check, gone = run_folder.manifest_problem, folder_of(run, 4)
    (run / "checkpoints" / "best.json").unlink()

    def vanishing(folder: Path, *required: object) -> str | None:
        if folder == gone and gone.exists():
            gone.rename(tmp_path / "moved")
        return check(folder, *required)

    monkeypatch.setattr(run_folder, "manifest_problem", vanishing)
    assert gpt2.load(str(run))
    (tmp_path / "moved").rename(gone)
    with pytest.raises(UserError, match="was removed by its run"):
        gpt2.load(str(gone))
