"""Files written by `torch.save`, read without executing anything in them."""

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats import pickles
from gpt2.formats.pickled_values import Foreign, Global, Refused
from gpt2.formats.source import MASKS, StoredTensor

MAGIC = 0x1950A86A20F9469CFC6C
"""Number with which the files from before PyTorch 1.6 begin."""
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""PyTorch's classes of storages, and the dtype of their elements."""
Storages = Callable[[str, int], torch.UntypedStorage]
"""A function that returns the storage with a key and a size in bytes."""


def load(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the object in the file, and lines about objects of which only the attributes were read.

    Its tensors stay on the disk until they are used; only those of a file from before PyTorch 1.6, which cannot be
    mapped, are read into memory at once. Tensors come to the CPU. Objects of other classes become `Foreign`.
    Raises UserError for a pickle that would call functions of Python's library, by name and without executing it,
    and for damaged files.
    """
    try:
        value, foreign = _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)
    except Refused as error:
        raise UserError(
            f"{path} asks to run {error}, which no model needs; nothing was run, do not trust this file"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise UserError(
            f"{path} is damaged, or no model saved by PyTorch ({first_line(error)}); fetch or save it again"
        ) from None
    names = sorted(name for name in foreign if not name.startswith(("numpy.", "torch.")))
    if not names:
        return value, ()
    shown = ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return value, (f"{path}: read only the attributes of its objects of {shown}, and executed nothing",)


def save(values: object, path: Path) -> None:
    """Write a file that `load` reads. Raises OSError where the disk does not take it."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer hides the system's error behind its own
            raise error.__context__ from None
        raise


def _load_zip(path: Path) -> tuple[Any, set[str]]:
    """Read a file of PyTorch 1.6 or later: an archive with a pickle, and one entry for each storage."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > size:
            raise UserError(f"{path} unpacks to more bytes than it has; torch.save writes no such file")
        if "data.pkl" not in entries or entries["data.pkl"].file_size > pickles.MAX_BYTES:
            raise ValueError("it has no data.pkl that can be read")
        if "byteorder" in entries and archive.read(entries["byteorder"])[:8] != b"little":
            raise ValueError("its numbers are big-endian")
        data = archive.read(entries["data.pkl"])
    mapped = torch.UntypedStorage.from_file(str(path), False, size)

    def storage(key: str, count: int) -> torch.UntypedStorage:
        start = _start(path, entries[f"data/{key}"], count)
        return mapped[start : start + count]

    reader = _reader(data, storage)
    return reader.load(), reader.foreign


def _start(path: Path, entry: zipfile.ZipInfo, count: int) -> int:
    """Return the offset in the file of an entry's content, which must have at least `count` bytes."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        signature, name, extra = struct.unpack("<4s22xHH", file.read(30))
    start = entry.header_offset + 30 + name + extra
    is_intact = signature == b"PK\x03\x04" and entry.compress_type == zipfile.ZIP_STORED
    if not is_intact or count > entry.file_size or start + count > path.stat().st_size:
        raise ValueError(f"it ends before {entry.filename[:80]} does")
    return start


def _load_legacy(path: Path) -> tuple[Any, set[str]]:
    """Read a file of an earlier PyTorch: five pickles, then the storages in the order of the last pickle.

    The pickle of the object is read twice: the first time for the sizes of the storages, whose offsets depend on
    them.
    """
    with path.open("rb") as file:
        data = file.read(pickles.MAX_BYTES)
    sizes: dict[str, int] = {}

    def remember(key: str, count: int) -> torch.UntypedStorage:
        sizes[key] = max(count, sizes.get(key, 0))
        return torch.UntypedStorage(0)

    reader = _reader(data, remember)
    if reader.load() != MAGIC:
        raise ValueError("it does not begin as PyTorch's files do")
    reader.load(), reader.load()  # the version, and properties of the computer
    start = reader.file.tell()
    reader.load()
    keys = reader.load()
    at = reader.file.tell()
    offsets: dict[str, int] = {}
    for key in keys:
        offsets[key] = at + 8  # after the number of elements
        at += 8 + sizes[key]
    if at > path.stat().st_size:
        raise ValueError("it ends before its weights do")
    storages: dict[str, torch.UntypedStorage] = {}

    def read(key: str, count: int) -> torch.UntypedStorage:
        if key not in storages:
            with path.open("rb") as file:
                file.seek(offsets[key])
                storages[key] = torch.frombuffer(
                    bytearray(file.read(sizes[key])), dtype=torch.uint8
                ).untyped_storage()
        return storages[key]

    reader = _reader(data[start:], read)
    return reader.load(), reader.foreign


def _reader(data: bytes, storages: Storages) -> pickles.Reader:
    """Return a reader of pickles with tensors, whose storages come from `storages`."""

    def persistent(reference: Any) -> Any:
        kind, *rest = reference
        if kind == "module":  # a class, with its source code
            return rest[0]
        if kind != "storage" or len(rest) not in (4, 5) or not isinstance(rest[1], str):
            raise ValueError("a reference to something unknown")
        storage_class, key, location, count, *view = rest
        if any(view):
            raise ValueError("a view of a storage, which PyTorch has not written since version 0.4")
        name = storage_class.name.rpartition(".")[2]
        dtype = STORAGES.get(name)
        if dtype is None or not isinstance(count, int) or count < 0:
            return Foreign(f"a storage of class {name[:40]}")
        if location == "meta":
            return Foreign("a storage on the meta device")
        needed = count * dtype.itemsize
        return Storage(dtype, storages(key, needed), needed)

    return pickles.Reader(data, CALLS, persistent)


class Storage:
    """Holds the elements of tensors, as the file describes them."""

    def __init__(self, dtype: torch.dtype, content: torch.UntypedStorage, size: int) -> None:
        self.dtype, self.content = dtype, content
        self.size = size
        """Size in bytes that the file records."""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a tensor of PyTorch's `_rebuild_tensor_v2`. Raises ValueError where it goes beyond its storage."""
    if not isinstance(storage, Storage):
        return storage
    dtype = dtype or storage.dtype
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 60 for n in numbers):
        raise ValueError("a tensor of no shape")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if all(shape) and (last + 1) * dtype.itemsize > storage.size:
        raise ValueError("a tensor that goes beyond its storage")
    if not storage.content.nbytes():  # the first pass over a file of an earlier PyTorch
        return torch.empty(0, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(storage.content, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, kind: Global) -> Any:
    """Return a tensor of `_rebuild_tensor_v3`, whose storage has no dtype of its own."""
    dtype = getattr(torch, kind.name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor of no dtype")
    return _tensor(storage, offset, shape, strides, dtype=dtype)


def _subclass(function: Global, kind: Global, arguments: tuple[Any, ...], state: Any) -> Any:
    """Return the plain tensor of an object of a subclass of Tensor."""
    return CALLS[function.name](*arguments)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": lambda *arguments: _typed_tensor(*arguments[:7]),
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *rest: Foreign("a tensor on the meta device"),
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": lambda shape=(): tuple(shape),
}
"""The functions with which PyTorch's pickles make tensors."""


def state_dict(values: Any, where: object) -> list[tuple[str, StoredTensor]]:
    """Return the tensors of a state dict with their names. Raises UserError where `values` is not a state dict."""
    if isinstance(values, Foreign):
        raise UserError(
            f"{where} holds a complete {values.kind[:80]} and not weights; save its state_dict() with torch.save"
        )
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{where} holds no weights")
    for name, tensor in values.items():
        if not isinstance(name, str) or not (name.endswith(MASKS) or is_dense(tensor)):
            raise UserError(f"{where} holds {str(name)[:80]!r}, which is no tensor of weights{_reason(tensor)}")
    return [(name, StoredTensor.of(tensor)) for name, tensor in values.items() if not name.endswith(MASKS)]


def _reason(value: Any) -> str:
    if isinstance(value, Foreign):
        return f" but {value.kind[:80]}"
    if isinstance(value, Tensor) and not value.is_floating_point():
        return f" but has dtype {str(value.dtype).removeprefix('torch.')}"
    return ""


def is_dense(tensor: object) -> bool:
    """Return whether the object is a floating-point tensor whose elements are all in the file."""
    return (
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
