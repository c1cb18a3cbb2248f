"""Every command that writes a file: to full disks, into pipes, through links."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from gpt2.errors import UserError, WriteError
from gpt2.files import temporary_of
from gpt2.formats.export import FORMATS, export
from gpt2.formats.open import build, load, open_model
from gpt2.tensor_file import write_tensors
from gpt2.training import import_run as module
from gpt2.training.import_run import import_run
from gpt2.training.loop import train

TINY = "--n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --device=cpu --no-compile --dtype=float32"
RAISE_THE_LIMIT = "raise the limit that `ulimit -f` shows, or choose another place"
WRITERS = [
    *((f"export {name} r o/x", "o/x") for name in FORMATS),
    ("import r o/x", "o/x"),
    ("report r -o o/x.html", "o/x.html"),
    ("plot r -o o/x.png", "o/x.png"),
    ("plot r -o o/x.svg", "o/x.svg"),
    ("inspect d --html=o/x.html", "o/x.html"),
    ("eval loss r d --plot=o/x.png --device=cpu", "o/x.png"),
    ("eval hellaswag r --data=h.jsonl --out=o/x.jsonl --device=cpu", "o/x.jsonl"),
    ("tokenizer train t.txt --vocab_size=280 --out=o/x.json", "o/x.json"),
    ("prepare t.txt --tokenizer=byte --out=o/x", "o/x/.new/train.bin"),
    ("prepare t.txt --tokenizer=byte --format=llmc --out=o/x", "o/x/.new/t_train_000000.bin"),
    ("prepare t.txt --tokenizer=byte --format=npy --out=o/x", "o/x/.new/t_train_000000.npy"),
]
"""Command lines, and the file or folder that the error of each must name."""
LIMITED = """
import json, os, resource, shutil, sys
from gpt2.cli import main
os.dup2(os.open("stderr.txt", os.O_RDWR | os.O_CREAT | os.O_APPEND), 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # maximum bytes in a file
found = []
for line in json.load(sys.stdin):
    os.truncate("stderr.txt", 0)
    try:
        main(line.split())
    except SystemExit as error:
        found.append([error.code, open("stderr.txt").read().splitlines()[-1], os.listdir("o")])
    except BaseException as error:
        found.append([repr(error)])
    shutil.rmtree("o")
    os.mkdir("o")
print(json.dumps(found))
"""


@pytest.fixture
def run(dataset: Path, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset `d`, a run `r`, tasks `h.jsonl`, a text `t.txt`, and a folder `o` for outputs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "d")
    train(tiny(out_dir="r", dataset="d", max_iters=2, n_embd=32))
    task = {"ctx": "the cat sat", "endings": ["on a mat", "and saw", "two dogs", "the hill"], "label": 0}
    Path("h.jsonl").write_text((json.dumps(task) + "\n") * 100)
    Path("t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    Path("o").mkdir()
    return tmp_path


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def quiet(line: str) -> None:
    pass


def full_disk(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_refused_write_is_one_line_with_the_file_and_the_reason_and_leaves_nothing(run: Path) -> None:
    """A limit on the size of files stands in for a full disk, which only root can make."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED],
        input=json.dumps([line for line, _ in WRITERS]),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for (line, name), result in zip(WRITERS, json.loads(done.stdout), strict=True):
        expected = f"gpt2: cannot write {name} ({os.strerror(errno.EFBIG)}); {RAISE_THE_LIMIT}"
        assert result == [2, expected, []], line


@pytest.mark.parametrize("line", ["export safetensors r o/x", "export hf r o/x", "import r o/x"])
def test_a_full_disk_is_reported_with_the_bytes_that_are_needed_and_free(
    line: str, run: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 4 * sum(p.numel() for p in load("r")[0].parameters())
    monkeypatch.setattr(os, "pwrite", full_disk)
    monkeypatch.setattr("gpt2.files.free_bytes", lambda path: 1234)
    status, out, err = gpt2_command(*line.split())
    needed = r"\d\d\d,\d\d\d" if "import" in line else f"{weights:,}"  # with the optimizer's state
    message = rf"gpt2: cannot write o/x \(No space left on device\): it needs at least {needed} bytes and 1,234 are "
    assert (status, out) == (2, "")
    assert re.fullmatch(message + "free there; make room, or choose another place", err.splitlines()[-1])
    assert names("o") == []


def test_a_profile_that_was_cut_short_is_refused(run: Path, gpt2_command, monkeypatch) -> None:
    def cut_short(self: torch.profiler.profile, path: str) -> None:
        Path(path).write_text('{"traceEvents": [')

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", cut_short)
    line = f"bench train {TINY} --dataset=d --batch_size=2 --steps=2 --trace=o/x.json"
    status, out, err = gpt2_command(*line.split())
    assert (status, out) == (2, "")
    assert "PyTorch cannot write its profile to" in err.splitlines()[-1]
    assert names("o") == []


@pytest.mark.parametrize("name", FORMATS)
def test_exported_files_follow_the_umask(name: str, run: Path) -> None:
    before = os.umask(0o022)
    try:
        export(open_model("r"), name, Path("o/x"), quiet)
    finally:
        os.umask(before)
    for path in (p for p in Path("o").rglob("*") if p.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.folder])
def test_an_export_of_a_folder_into_a_pipe_is_one_line(name: str, run: Path, gpt2_command) -> None:
    os.mkfifo("pipe")
    status, out, err = gpt2_command("export", name, "r", "pipe")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "gpt2: pipe is not a folder, and this output is one; choose another place"


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if not form.folder])
def test_an_export_of_a_file_into_a_pipe_is_read_back(name: str, run: Path, gpt2_command) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()), daemon=True)
    reader.start()
    status, out, err = gpt2_command("export", name, "r", "pipe")
    assert status == 0, err
    reader.join(60)
    assert out.startswith("wrote pipe · read back: largest logit difference 0 ")
    Path("copy").write_bytes(received[0])
    for found, expected in zip(build(open_model("copy")).parameters(), load("r")[0].parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("line", "start", "end"),
    [
        ("export gguf r /dev/fd/1", b"GGUF", b""),
        ("export gguf r /dev/fd/1 --json", b"GGUF", b""),
        ("report r --out=/dev/fd/1 --json", b"<!doctype html>", b"</html>\n"),
        ("inspect d --html=/dev/fd/1", b"<!doctype html>", b"</html>\n"),
        ("eval hellaswag r --data=h.jsonl --out=/dev/fd/1 --device=cpu", b'{"task": 0', b"]}\n"),
        ("tokenizer train t.txt --vocab_size=280 --out=/dev/fd/1", b'{\n "version"', b"\n}\n"),
    ],
)
def test_standard_output_gets_the_file_and_nothing_else(line: str, start: bytes, end: bytes, run: Path) -> None:
    with Path("o/x").open("wb") as file:
        command = [sys.executable, "-m", "gpt2", *line.split()]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    content = Path("o/x").read_bytes()
    assert content.startswith(start) and content.endswith(end)
    assert names("o") == ["x"]
    if "gguf" in line:
        size = export(open_model("r"), "gguf", Path("o/y"), quiet).out.stat().st_size
        assert len(content) == size  # the file contains its name, which has one letter here too


def test_symbolic_links_are_kept(run: Path, gpt2_command) -> None:
    Path("there.html").write_text("old")
    Path("there.html").chmod(0o600)
    links = {"l.html": "there.html", "l.gguf": "new.gguf", "l.folder": "new_folder", "l.data": "new_data"}
    for link, target in links.items():
        Path(link).symlink_to(target)
    for line in (
        "report r -o l.html",
        "export gguf r l.gguf",
        "export hf r l.folder",
        "prepare t.txt --tokenizer=byte --out=l.data",
    ):
        status, _, err = gpt2_command(*line.split())
        assert status == 0, err
    assert all(Path(link).is_symlink() for link in links)
    assert Path("there.html").read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(Path("there.html").stat().st_mode) == 0o600
    assert Path("new_data/train.bin").is_file()
    load("new.gguf")
    load("new_folder")


def test_a_disk_that_fills_up_while_text_is_prepared_is_reported(run: Path, gpt2_command, monkeypatch) -> None:
    """This also holds for a mount point, which cannot be removed."""

    def busy(self: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("gpt2.data.writers.os.fsync", full_disk)
    monkeypatch.setattr(Path, "rmdir", busy)
    status, out, err = gpt2_command("prepare", "t.txt", "--tokenizer=byte", "--out=o")
    assert (status, out) == (2, "")
    assert "gpt2: the disk of o is full after" in err.splitlines()[-1]
    assert "o/.new/train.bin: No space left on device" in err.splitlines()[-1]
    assert names("o") == []


@pytest.mark.parametrize("out", ["new", "o"])
def test_an_import_that_failed_or_was_killed_can_be_repeated(
    out: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import into a new folder, and into an existing empty one."""
    target = Path(out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_config", full_disk)
        with pytest.raises(WriteError, match=rf"cannot write {out} \(No space left on device\)"):
            import_run(open_model("r"), target, quiet)
    assert not temporary_of(target).exists()
    assert not target.exists() or names(target) == []
    if (pid := os.fork()) == 0:
        module.write_config = lambda folder, config: os._exit(9)  # with a checkpoint, and without config.toml
        import_run(open_model("r"), target, quiet)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    import_run(open_model("r"), target, quiet)
    assert names(target) == ["checkpoints", "config.toml"]
    assert not temporary_of(target).exists()
    load(out)


@pytest.mark.parametrize("name", [".new.tmp", "checkpoints", "mine"])
def test_an_import_refuses_a_folder_with_something_in_it(name: str, run: Path) -> None:
    Path("new", name).mkdir(parents=True)
    Path("new", "precious").write_text("precious")
    with pytest.raises(UserError, match="new already exists; choose another place, or delete it"):
        import_run(open_model("r"), Path("new"), quiet)
    assert names("new") == sorted([name, "precious"])


def test_tensors_come_back_from_a_file_as_the_library_reads_it(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = {"b": torch.randn(3, 5).t(), "a": torch.arange(7).bfloat16(), "c": torch.tensor(2.5).half()}
    write_tensors(tmp_path / "x", tensors, {"format": "pt"})
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
