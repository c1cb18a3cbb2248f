"""Runs the commands and Python programs of a document in their order, as a reader does, on small models and texts.

Every block is read from the file, so that what is added or changed there is run here. A command that would take a
network, a GPU or hours is made small by a table that the test of the document gives. A block `text` directly after a
block of commands or Python shows their output, and has to be equal to it. With `GPT2_TEST_UPDATE=1` the document gets
the new output.

The title of a block, which a reader of the page sees, says what differs from that:

    ```sh title="needs a GPU"         is not run; any title that begins with `needs` has this effect
    ```text title="for example"       is not compared, because it depends on the processor or on a trained model
    ```text title="within 5 %"        is compared, but its figures may differ by so much

Sybil and pytest-markdown-docs run Python blocks; for the commands, the tables of small commands and the outputs in
blocks of their own, they would need as much code of ours as there is here.

A block `toml` or `json` only has to be valid.
"""

import io
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from servers import ADDRESS, fetched, served

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r'\n+```text(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
PARSERS: dict[str, Callable[[str], object]] = {"toml": tomllib.loads, "json": json.loads}
"""The languages of blocks that are data."""
LONG = ("train", "sweep", "bench", "plan", "demo")
"""Commands that can take hours, and need an entry in `instead`."""


@dataclass
class Document:
    """A document whose blocks are run, and what is run in place of some of them."""

    path: Path
    skipped: dict[str, str] = field(default_factory=dict)
    """The first words of commands that are not run here, and why."""
    instead: dict[str, str] = field(default_factory=dict)
    """The first words of a command, and the small command that is run for it. The longest entry counts.

    {line} is the command in the document, and {rest} are its words after the first ones.
    """
    in_python: dict[str, str] = field(default_factory=dict)
    """Pieces of Python programs, and what is run for them."""
    is_compared: bool = True
    """Whether outputs are compared. False where the texts that the document is about are missing."""
    used: set[str] = field(default_factory=set)
    """The entries of the tables that were needed so far."""
    address: str = ""
    """Where the last `gpt2 serve` listens, which runs to the end of the document."""

    def small_command(self, words: list[str]) -> list[str] | None:
        """Return the command to run for one in the document; None for one that is skipped."""
        if skipped := longest(words, self.skipped):
            self.used.add(skipped)
            return None
        line = shlex.join(words)
        assert words[0] == "gpt2", f"this command is no gpt2 command and has no entry in SKIPPED: {line}"
        entry = longest(words, self.instead)
        assert entry or words[1] not in LONG, f"this command may take hours and has no entry in INSTEAD: {line}"
        if entry is None:
            return words
        self.used.add(entry)
        return shlex.split(self.instead[entry].format(line=line, rest=line.removeprefix(entry)))

    def small_program(self, block: str) -> str:
        """Return the Python program to run for one in the document."""
        for piece, instead in self.in_python.items():
            if piece in block:
                self.used.add(piece)
                block = block.replace(piece, instead)
        return ADDRESS.sub(self.address, block) if self.address else block

    def output(self, words: list[str], gpt2_command: Callable[..., tuple[int, str, str]], servers: ExitStack) -> str:
        """Run a command of the document and return what it prints."""
        if words[0] == "curl":
            return fetched(words, self.address)
        if words[:2] == ["gpt2", "serve"]:
            servers.close()
            self.address = servers.enter_context(served(words))
            return ""
        small = self.small_command(words)
        if small is None:
            return ""
        status, out, err = gpt2_command(*(ADDRESS.sub(self.address, word) for word in small[1:]))
        assert status == 0, f"{shlex.join(words)}, run as {shlex.join(small)}: {err}"
        return out

    def run(self, gpt2_command: Callable[..., tuple[int, str, str]]) -> None:
        """Run all blocks, in one Python namespace, and compare what they print with what the document shows."""
        with ExitStack() as servers:
            self._run(gpt2_command, servers)
        unused = set(self.skipped | self.instead | self.in_python) - self.used
        assert unused == set(), "entries of the tables that no command of the document needs"

    def _run(self, gpt2_command: Callable[..., tuple[int, str, str]], servers: ExitStack) -> None:
        text, namespace, wrong = self.path.read_text(encoding="utf-8"), dict[str, object](), []
        updated, end = "", 0
        for language, block, shown in blocks(text):
            printed = ""
            if language == "python":
                with redirect_stdout(io.StringIO()) as stream:
                    exec(compile(self.small_program(block), self.path.name, "exec"), namespace)
                printed = stream.getvalue()
            elif language == "sh":
                for words in commands(block):
                    printed += self.output(words, gpt2_command, servers)
            elif language in PARSERS:
                PARSERS[language](block)
            else:
                raise AssertionError(f"{self.path.name} has a block in {language}, which nothing runs")
            if self.is_compared and shown is not None and not is_shown(printed, shown[2], shown[1] or ""):
                wrong.append(f"{block}\nprints\n\n{printed}\nand the document shows\n\n{shown[2]}")
                updated += f"{text[end : shown.start(2)]}{plain(printed)}\n"
                end = shown.end(2)
        if os.environ.get("GPT2_TEST_UPDATE"):
            self.path.write_text(updated + text[end:], encoding="utf-8")
        assert not wrong, "\n".join(wrong)


def plain(text: str) -> str:
    """Return a text without white space at the ends of its lines and at its end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def is_shown(printed: str, shown: str, title: str) -> bool:
    """Return whether a document shows what was printed, as exactly as the title of its block says."""
    if title == "for example":
        return True
    percent = re.fullmatch(r"within ([\d.]+) %", title)
    assert percent or not title, f'the title of an output is "for example" or "within … %", not "{title}"'
    if percent is None:
        return plain(printed) == plain(shown)
    if FIGURE.sub("#", " ".join(printed.split())) != FIGURE.sub("#", " ".join(shown.split())):
        return False
    figures = [[float(figure.replace(",", "")) for figure in FIGURE.findall(text)] for text in (printed, shown)]
    share = float(percent[1]) / 100
    return all(abs(here - there) <= share * abs(there) for here, there in zip(*figures, strict=True))


def blocks(text: str) -> Iterator[tuple[str, str, re.Match[str] | None]]:
    """Yield the language and the text of each block of a document that is run, and where its output is shown."""
    end = 0
    for match in BLOCK.finditer(text):
        if match.start() < end:
            continue  # an output
        shown = SHOWN.match(text, match.end())
        end = shown.end() if shown else match.end()
        if not (match[2] or "").startswith("needs "):
            yield match[1], match[3], shown


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def longest(words: list[str], table: dict[str, str]) -> str | None:
    """Return the longest entry of a table with which a command begins."""
    line = f"{shlex.join(words)} "
    return max((entry for entry in table if line.startswith((f"{entry} ", f"{entry}/"))), key=len, default=None)
