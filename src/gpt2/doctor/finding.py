"""What a check found out, and how the findings are shown."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2.errors import first_line

Verdict = Literal["ok", "warning", "problem"]
WIDEST_NAME = 18
"""Width of the column of names."""


@dataclass(frozen=True)
class Finding:
    """A finding is the result of one check."""

    name: str
    """What was checked."""
    verdict: Verdict
    """`problem` stops something that most users need, and `warning` costs speed or an optional part."""
    found: str
    fix: str = ""
    """What to do about it; empty where there is nothing to do."""


def ok(name: str, found: str) -> Finding:
    """Return a finding without anything to do."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, fix: str = "") -> Finding:
    """Return a finding about a loss of speed, or about an optional part that does not work."""
    return Finding(name, "warning", found, fix)


def problem(name: str, found: str, fix: str) -> Finding:
    """Return a finding about something that does not work."""
    return Finding(name, "problem", found, fix)


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """Return the finding of a check, or a warning where the check itself fails."""
    try:
        return check()
    except Exception as error:  # an odd machine must not hide the other findings
        return warning(name, f"this check failed: {type(error).__name__}: {first_line(error)}")


def described(findings: Sequence[Finding], width: int) -> str:
    """Return the findings as a table of `width` columns, or 47 if that is more, and a line that counts them."""
    indent = " " * (9 + WIDEST_NAME)
    lines = []
    for finding in findings:
        texts = [finding.found, *[f"fix: {finding.fix}"] * bool(finding.fix)]
        wrapped = [
            line
            for text in texts
            for line in textwrap.wrap(text, max(20, width - len(indent)), break_on_hyphens=False)
        ]
        lines.append(f"{finding.verdict:9}{finding.name:{WIDEST_NAME}}{wrapped[0] if wrapped else ''}")
        lines += [indent + line for line in wrapped[1:]]
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("problem", "warning")}
    words = [f"{count or 'no'} {verdict}{'s' * (count != 1)}" for verdict, count in counts.items()]
    return "\n".join([*(line.rstrip() for line in lines), "", " and ".join(words)])
