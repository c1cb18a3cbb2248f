"""Texts of many kinds through `prepare`, and back.

    python tests/data/test_texts.py COUNT [SEED]

Each text is drawn at random, written as a file of some kind, prepared with some tokenizer, and read back. The tokens
must be those of the complete documents, and a refusal one that the text deserves. Prints the number of each outcome.
"""

import csv
import functools
import gzip
import io
import json
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2 import long_runs
from gpt2.data import prepare as module
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.tokenizers import BPETokenizer, Tokenizer, gpt2_tokenizer, train_bpe

PROSE = "It's a text: they'll see 12 words, and  3 spaces.\n\n\tMore of it!\r\n" * 20
WORDS = ["the", "cat", "it's", "they'll", "'S", "’s", "12", "3.14", "a_b", "x=", "<|endoftext|>", ",,,", "naïve"]
SETS = {
    "letters": "abcdefgh",
    "digits": "0123456789٣½Ⅷ²",
    "punctuation": "!?.,;:'\"-_()[]{}<>|/\\&*#@~`^$%+=",
    "white space": " \n\t\r\x0b\x0c\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u3000",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f\u200b\u200e\u2060\ufeff\ufffe\uffff",
    "NULs": "ab \x00",
    "marks": "aé\u0301\u0308\u20dd\u0e49\u093f\u200d\ufe0f",
    "emojis": "😀👩🏽\u200d🚀🇩🇪❤\ufe0f1\u20e3",
    "right to left": "שלוםمرحبا ،؟\u200f\u202e",
    "Chinese": "的一是不了人我在有他，。！？「」、",
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd",
    "quotes and commas": 'a",\n\r;\t',
}
LINE_ENDS = ["\n", "\r\n", "\r", "\n\r", "\u2028", "\r\r\n"]


def a_text(rng: random.Random) -> str:
    """A text of one of many kinds."""
    chosen = rng.choice(list(SETS.values()))
    size = rng.choice([0, 1, 1, 2, 5, 30, 300, 3000])
    match rng.randrange(6):
        case 0:
            return "".join(rng.choices(chosen, k=size))
        case 1:  # long runs
            return "".join(rng.choice("".join(SETS.values())) * rng.choice([1, 2, 9, 40, 300]) for _ in range(8))
        case 2:  # runs of white space between words
            space = SETS["white space"]
            return "".join(
                rng.choice(WORDS) + rng.choice(space) * rng.choice([1, 2, 12, 90]) for _ in range(size % 40)
            )
        case 3:  # mixed line ends
            return "".join(rng.choice(WORDS) + rng.choice(LINE_ENDS) for _ in range(size % 400))
        case 4:  # anything but surrogates
            points = (rng.randrange(rng.choice([128, 0x800, 0x10000, 0x110000])) for _ in range(size))
            return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        case _:
            return "".join(rng.choices("".join(SETS.values()), k=size))


def as_text(documents: list[str | None]) -> bytes:
    return "".join(document or "" for document in documents).encode()


def as_json_lines(documents: list[str | None]) -> bytes:
    return "".join(json.dumps({"text": d, "id": i}) + "\n" for i, d in enumerate(documents)).encode()


def as_json(documents: list[str | None]) -> bytes:
    return json.dumps([{"id": i, "text": d} for i, d in enumerate(documents)], indent=1).encode()


def as_csv(documents: list[str | None], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *([i, d or ""] for i, d in enumerate(documents))])
    return out.getvalue().encode()


def as_parquet(documents: list[str | None]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(documents, pyarrow.string())}), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[str | None]], bytes]] = {
    ".txt": as_text,
    ".jsonl": as_json_lines,
    ".json": as_json,
    ".csv": as_csv,
    ".tsv": functools.partial(as_csv, delimiter="\t"),
    ".parquet": as_parquet,
}


@functools.cache
def tokenizers() -> list[str | Tokenizer]:
    chosen: list[str | Tokenizer] = ["char", "byte", "bpe", train_bpe([PROSE + " " * 50], 300)]
    try:
        return [*chosen * 6, gpt2_tokenizer()]  # which takes a second to write and read
    except UserError:
        return chosen


def outcome(rng: random.Random, folder: Path) -> str:
    """Prepare one text, and return what came of it; `wrong …` where it is not what it must be."""
    suffix, chosen = rng.choice(list(WRITERS)), rng.choice(tokenizers())
    separator = rng.choice([None, "\n\n", "<|endoftext|>", "a", "\r\n"]) if suffix == ".txt" else None
    documents: list[str | None] = [a_text(rng) for _ in range(1 if suffix == ".txt" else rng.randint(1, 6))]
    if suffix != ".txt":
        documents = [None if rng.random() < 0.1 else document for document in documents]
    has_surrogate = suffix in (".jsonl", ".json") and rng.random() < 0.1
    if has_surrogate:
        documents.append("a\ud800b")
    content = WRITERS[suffix](documents)
    is_compressed = suffix != ".parquet" and rng.random() < 0.3
    file = folder / f"text{suffix}{'.gz' if is_compressed else ''}"
    file.write_bytes(gzip.compress(content) if is_compressed else content)
    (folder / "val.txt").write_text("some held-out text")
    chunk, run = rng.choice([7, 50, 1 << 20]), rng.choice([10, 100_000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(long_runs, "LONG_RUN", run)
        size = 260 if chosen == "bpe" else None
        try:
            prepare(
                file,
                val=[folder / "val.txt"],
                out=folder / "d",
                tokenizer=chosen,
                vocab_size=size,
                separator=separator,
            )
        except UserError as error:
            return refusal(str(error), documents, content, has_surrogate)
    if has_surrogate:
        return "wrong: half a surrogate pair was taken"
    expected = expected_documents(documents, suffix, separator)
    data = open_dataset(str(folder / "d"))
    end = [] if data.tokenizer.eot is None else [data.tokenizer.eot]
    found = data.splits["train"][:].tolist()
    name = f"{suffix} {data.tokenizer.kind}"
    if found != [i for document in expected for i in [*data.tokenizer.encode(document), *end]]:
        return f"wrong tokens: {name}"
    if data.tokenizer.decode_bytes(found) != b"".join(d.encode() + b"<|endoftext|>" * len(end) for d in expected):
        return f"wrong text: {name}"
    return f"read back: {name}"


def expected_documents(documents: list[str | None], suffix: str, separator: str | None) -> list[str]:
    """The documents that a file of them has."""
    if suffix != ".txt":
        return [d for d in documents if d is not None and (d or suffix not in (".csv", ".tsv"))]
    text = (documents[0] or "").removeprefix("\ufeff")
    if separator is None:
        return [text]
    *ended, last = text.split(separator)
    return [d + ("" if separator == "<|endoftext|>" else separator) for d in ended] + [last] * bool(last)


def refusal(message: str, documents: list[str | None], content: bytes, has_surrogate: bool) -> str:
    """Return what a refusal is about; `wrong …` where the text does not deserve it."""
    nothing = not any(document and document != "\ufeff" for document in documents)
    deserved = {
        "half a surrogate pair": has_surrogate,
        "binary data": content.count(0) > 0.2 * len(content),
        "UTF-": content.count(0) > 0.2 * len(content),
        "too few": nothing,
        "no other row has text": nothing,
        "contains no": nothing,
    }
    about = next((words for words in deserved if words in message), None)
    return f"refused: {about}" if about and deserved[about] else f"wrong refusal: {message}"


def run(count: int, seed: int = 0) -> Counter[str]:
    """Return the number of each outcome of `count` texts."""
    outcomes = Counter[str]()
    for i in range(count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes[outcome(random.Random(f"{seed} {i}"), Path(folder))] += 1
            except BaseException as error:  # a panic of Rust is no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcomes[f"wrong: traceback of text {i}: {error!r}"] += 1
                traceback.print_exc()
    return outcomes


def test_texts_of_many_kinds_are_read_back() -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    outcomes = run(40)
    assert {name: n for name, n in outcomes.items() if name.startswith("wrong")} == {}
    assert sum(n for name, n in outcomes.items() if name.startswith("read back")) > 20


def test_the_chosen_tokenizers_are_of_all_kinds() -> None:
    assert {"char", "byte", "bpe"} <= set(map(str, tokenizers()[:3]))
    assert isinstance(tokenizers()[3], BPETokenizer)


if __name__ == "__main__":
    found = run(int(sys.argv[1]), *map(int, sys.argv[2:3]))
    for name, n in sorted(found.items()):
        print(f"{n:6} {name}")
    print(f"{sum(found.values()):6} texts, {sum(n for k, n in found.items() if k.startswith('wrong'))} wrong")
