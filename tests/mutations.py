"""Ways in which files go wrong: damaged bytes, and JSON, TOML and logs that a careless hand edited."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

EXTREMES: tuple[Callable[[], Any], ...] = tuple(
    lambda value=value: value
    for value in (
        None, True, False, 0, -1, 1, 2, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 10**300, 10**4200, 0.5,
        -0.0, 1e-320, 1e308, -1e308, 1e18, float("nan"), float("inf"), -float("inf"), "", "x", "\ud800", "\0", "3",
        "../../etc/passwd", "x" * 300, "$x_1^2$", r"\alpha", "<script>", "%s", [], {}, [[]], [1, "x"], {"": 0},
        [None], ["train"], {"train": {}}, {"kind": "byte"},
    )
)  # fmt: skip
HUGE_DIGITS, DEEP = "9" * 5000, 100_000
JUNK = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"{", b"]", b'"', b"-", b"NaN", b"1e999", b"\n", b",")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one damage that no editor makes."""
    at = rng.randrange(min(len(data), rng.choice((16, 128, 1024, len(data)))) or 1)
    match rng.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else b"\0"
        case 2:
            return data[:at] + rng.choice(JUNK) + data[at:]
        case 3:
            return data[:at] + rng.randbytes(rng.randrange(1, 64)) + data[at + rng.randrange(64) :]
        case 4:
            word = at // 4 * 4
            return (
                data[:word]
                + rng.choice((0, 1 << 31, (1 << 32) - 1, 1 << 20)).to_bytes(4, "little")
                + data[word + 4 :]
            )
        case 5:
            return b""
        case 6:
            return data[:at] + b"[" * DEEP + data[at:]
        case 7:
            return bytes(len(data))
        case _:
            return data + data[at:]


def positions(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to all values inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from positions(inner, (*path, key))


def mutate_json(text: str, rng: random.Random) -> str:
    """Return a JSON text in which one value is missing, changed, moved, repeated or nested."""
    value = json.loads(text)
    path = rng.choice(list(positions(value)) or [()])
    if not path:
        return json.dumps(rng.choice(EXTREMES)())
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.randrange(8)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        other = rng.choice(list(positions(value)))
        taken = value
        for key in other:
            taken = taken[key]
        parent[path[-1]] = json.loads(json.dumps(taken))
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(("", "x", "\ud800", "__class__", "0"))] = parent.pop(path[-1])
    else:
        parent[path[-1]] = rng.choice(EXTREMES)()
    indent = 1 if rng.random() < 0.9 else None
    if kind < 6:
        return json.dumps(value, indent=indent)
    marker = "8315027461"
    parent[path[-1]] = int(marker)
    deep = rng.choice(("[", '{"a":')) * rng.choice((900, 3000, DEEP))
    new = rng.choice(
        (HUGE_DIGITS, "-" + HUGE_DIGITS, deep, "[" * 900 + "]" * 900, "1e999", f'{{"a": 1, "a": {HUGE_DIGITS[:20]}}}')
    )
    return json.dumps(value, indent=indent).replace(marker, new)


def mutate_toml(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].split(" = ")[0]
    values = (
        "1979-05-27", "[1, [2]]", "{a = 1}", "nan", "-inf", HUGE_DIGITS, "0x" + "f" * 5000, "[" * 2000, '"\\u0000"',
        "-1", "0", "9223372036854775808", "true", '""', '"x"', "0.5", "1e300", "['x']", "2",
    )  # fmt: skip
    lines[at] = rng.choice(
        (f"{name} = {rng.choice(values)}", "", f"[{name}]", f"{name}.x = 1", lines[at] * 2, f"{name}x = 1")
    )
    return "\n".join(lines) + "\n"


def mutate_log(text: str, rng: random.Random) -> bytes:
    """Return a log in which some lines are damaged, moved, repeated or added."""
    lines = [line.encode() for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                with contextlib.suppress(ValueError, RecursionError):
                    lines[at] = mutate_json(lines[at].decode(), rng).replace("\n", " ").encode(errors="replace")
            case 1:
                lines[at] = mutate_bytes(lines[at], rng)
            case 2:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 3:
                lines.insert(at, hostile_record(rng))
            case 4:
                del lines[at]
                lines = lines or [b""]
            case _:
                lines[at] = hostile_record(rng)
    return b"\n".join(lines) + b"\n" * (rng.random() < 0.9)


def hostile_record(rng: random.Random) -> bytes:
    """Return a record whose values may all be absurd."""
    keys = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory", "seconds", "val_loss", "acc",
            "text", "because", "rank", "host", "times", "data", "device", "parameters", "train_tokens", "stopped",
            "count", "extremes", "time", "order", "segment", "processes")  # fmt: skip
    absurd = (
        1e308,
        1e59,
        -1e59,
        1e-320,
        0,
        -1,
        (1 << 63) - 1,
        99999999999,
        5,
        {"data": 1e10},
        {"data": -1e300},
        "x",
        None,
    )
    record = {
        "event": rng.choice(("train", "train", "eval", "skip", "resume", "start", "end", "straggler", "sample", "x")),
        "step": rng.choice((0, 1, 3, 4, 1 << 62, (1 << 63) - 1, 10**9)),
    }
    for key in rng.sample(keys, rng.randrange(len(keys))):
        record[key] = rng.choice(absurd) if rng.random() < 0.6 else rng.choice(EXTREMES)()
    return json.dumps(record).encode()
