"""Files appear completely or not at all, and nothing else is changed."""

import errno
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2.errors import UserError, WriteError
from gpt2.files import check_free, publish, temporary_of, write_bytes, write_text
from gpt2.streams import descriptor_of, is_stream

SPACE = r": it needs at least 12,345 bytes and [\d,]+ are free there; make room, or choose another place"
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EROFS: "; choose another place",
    errno.EFBIG: "; raise the limit that `ulimit -f` shows, or choose another place",
    errno.EIO: "; choose another place",
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_folder_is_made_where_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder")
    with publish(tmp_path / "link", folder=True) as temporary:
        (temporary / "file").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "new"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(WriteError, match=f"cannot write {tmp_path}/a .*symbolic links"):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == ["a", "b"]


def test_a_socket_receives_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is a short path
    received = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()

        def receive() -> None:
            with server.accept()[0] as connection, connection.makefile("rb") as file:
                received.append(file.read())

        reader = threading.Thread(target=receive, daemon=True)
        reader.start()
        write_bytes(Path("socket"), b"x" * 200_000)
        reader.join(60)
    assert received == [b"x" * 200_000]
    assert names(tmp_path) == ["socket"]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """On copies of /dev/null and /dev/full, so that a failing test does not harm the machine."""
    null, full = tmp_path / "null", tmp_path / "full"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        os.close(os.open(null, os.O_WRONLY))
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")
    write_text(null, "gone")
    with pytest.raises(WriteError, match=re.escape(f"cannot write {full} (No space left on device)")):
        write_text(full, "too much")
    assert all(path.is_char_device() for path in (null, full))
    assert names(tmp_path) == ["full", "null"]


def test_a_link_to_an_open_descriptor_is_that_descriptor(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with target.open("w") as file:
        file.write("before ")
        file.flush()
        (tmp_path / "link").symlink_to(f"/dev/fd/{file.fileno()}")
        before = target.stat().st_ino
        assert is_stream(tmp_path / "link")
        write_text(tmp_path / "link", "inside ")
        file.write("after")
    assert target.read_text() == "before inside after"
    assert target.stat().st_ino == before
    assert names(tmp_path) == ["file", "link"]


def test_the_names_of_open_descriptors(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stderr")
    found = [descriptor_of(Path(p)) for p in ("/dev/stdout", "/dev/stderr", "/dev/fd/63", tmp_path / "link")]
    assert found == [1, 2, 63, 2]
    assert descriptor_of(tmp_path / "1") is None
    if Path("/proc/self/fd").exists():
        assert descriptor_of(Path("/proc/self/fd/7")) == 7
        assert descriptor_of(Path(f"/proc/{os.getpid()}/fd/7")) == 7


def test_a_closed_descriptor_gives_one_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(WriteError, match=rf"cannot write /dev/fd/{writing} \(Bad file descriptor\)"):
        write_text(Path(f"/dev/fd/{writing}"), "new")


def test_a_stream_takes_no_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a folder"):
        check_free(tmp_path / "pipe", folder=True)
    with pytest.raises(UserError, match="pipe is not a folder"), publish(tmp_path / "pipe", folder=True):
        pytest.fail("the output was to be made")


def test_a_replaced_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path, umask: None) -> None:
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o604)
    for name in ("secret", "new"):
        write_text(tmp_path / name, "content")
    with publish(tmp_path / "folder", folder=True) as temporary:
        (temporary / "file").write_text("content")
    paths = ("secret", "new", "folder", "folder/file")
    modes = {path: stat.S_IMODE((tmp_path / path).stat().st_mode) for path in paths}
    assert modes == {"secret": 0o604, "new": 0o640, "folder": 0o750, "folder/file": 0o640}


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("linked", ["mine", "mine/precious"])
def test_a_link_with_the_temporary_name_is_removed_and_not_followed(
    linked: str, folder: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("precious")
    temporary_of(tmp_path / "target").symlink_to(linked)
    with publish(tmp_path / "target", folder=folder) as temporary:
        (temporary / "file" if folder else temporary).write_text("new")
    assert names(tmp_path) == ["mine", "target"]
    assert names(tmp_path / "mine") == ["precious"]
    assert (tmp_path / "mine" / "precious").read_text() == "precious"


def test_a_foreign_folder_with_the_temporary_name_is_left_alone(tmp_path: Path) -> None:
    foreign = temporary_of(tmp_path / "target")
    foreign.mkdir()
    (foreign / "precious").write_text("precious")
    with pytest.raises(UserError, match=re.escape(f"the folder {foreign} is in the way of target; move it")):
        write_text(tmp_path / "target", "new")
    assert (foreign / "precious").read_text() == "precious"
    assert names(tmp_path) == [foreign.name]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_process_left_is_replaced(there: bool, tmp_path: Path) -> None:
    temporary_of(tmp_path / "file").write_text("half")
    write_text(tmp_path / "file", "complete")
    left = tmp_path / "folder" / ".folder.tmp" if there else tmp_path / ".folder.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    check_free(tmp_path / "folder", folder=True)
    with publish(tmp_path / "folder", folder=True) as temporary:
        (temporary / "complete").write_text("complete")
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == ["complete"]


def test_an_empty_folder_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount point, or the folder in which the user's shell is."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with publish(Path(), folder=True) as temporary:
        (temporary / "file").write_text("new")
        (temporary / "inner").mkdir()
        assert temporary.parent == tmp_path  # on the same disk
    assert tmp_path.stat().st_ino == before
    assert names(tmp_path) == ["file", "inner"]


@pytest.mark.parametrize(
    ("target", "folder", "reason"),
    [
        ("folder", False, "Is a directory"),
        ("folder", True, "Directory not empty"),
        ("folder/file", True, "Not a directory"),
        ("folder/file/beyond", False, "Not a directory"),
    ],
)
def test_a_target_that_is_taken_is_refused_before_anything_is_made(
    target: str, folder: bool, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("precious")
    with pytest.raises(WriteError, match=rf"{target} \({reason}\)"), publish(tmp_path / target, folder):
        pytest.fail("the output was to be made")
    assert (names(tmp_path), names(tmp_path / "folder")) == (["folder"], ["file"])
    assert (tmp_path / "folder" / "file").read_text() == "precious"


@pytest.mark.parametrize("number", REMEDIES)
@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_names_the_file_and_the_reason_and_leaves_nothing(
    number: int, folder: bool, tmp_path: Path
) -> None:
    with pytest.raises(WriteError) as raised, publish(tmp_path / "target", folder, needed=12_345) as temporary:
        (temporary / "part" if folder else temporary).write_text("a part of it")
        raise OSError(number, os.strerror(number))  # without the name of a file, as write(2) has none
    reason = re.escape(f"cannot write {tmp_path}/target ({os.strerror(number)})")
    assert re.fullmatch(reason + REMEDIES[number], str(raised.value))
    assert (raised.value.errno, raised.value.strerror) == (number, os.strerror(number))
    assert names(tmp_path) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(WriteError), publish(tmp_path / "target") as temporary:
        temporary.write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "target").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_a_failure_inside_a_folder_names_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=f"^cannot write {tmp_path}/folder .No space"),
        publish(tmp_path / "folder", folder=True) as outer,
        publish(outer / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO, errno.ENOSPC])
def test_a_failure_of_another_file_is_passed_on(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="source") as raised, publish(tmp_path / "target"):
        raise OSError(number, os.strerror(number), str(tmp_path / "source"))
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize("kind", [ConnectionResetError, TimeoutError, BrokenPipeError])
def test_a_broken_connection_is_not_a_failed_write(kind: type[OSError], tmp_path: Path) -> None:
    with pytest.raises(kind), publish(tmp_path / "target"):
        raise kind(errno.EPIPE, "broken")
