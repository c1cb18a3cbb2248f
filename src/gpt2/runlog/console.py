"""The progress of a run on stderr: one line that changes on a terminal, plain lines elsewhere."""

import sys
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Stderr:
    """Writes to standard error and never fails: a line that nobody can read any more is dropped.

    A reader that dies (`| head`, a closed terminal) or a full disk must not end a run.
    """

    @property
    def stream(self) -> IO[str] | None:
        """Return where the text goes. While a progress bar is shown, rich prints it above the bar."""
        return sys.stderr

    @property
    def encoding(self) -> str:
        """Return the encoding of standard error, by which progress bars choose their characters."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write where that is possible; returns the number of characters of `text` in any case."""
        with suppress(OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: there is none
            self.stream.write(text)  # pyrefly: ignore[missing-attribute]
        return len(text)

    def flush(self) -> None:
        """Flush where that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()  # pyrefly: ignore[missing-attribute]

    def isatty(self) -> bool:
        """Return whether standard error is a terminal."""
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of standard error. Raises OSError where it has none."""
        if self.stream is None:
            raise OSError("there is no standard error")
        return self.stream.fileno()


class Terminal(Stderr):
    """Writes to standard error itself, also while a progress bar is shown, which is written through this class."""

    @property
    def stream(self) -> IO[str] | None:
        """Return standard error without the proxy that rich puts in its place, which would call this class again."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


STDERR = cast("IO[str]", Stderr())
TERMINAL = cast("IO[str]", Terminal())


def format_step(values: dict[str, Any]) -> str:
    """Return the figures of a `train` record in one line."""
    figures = [
        f"loss {values['loss']:.4f}",
        f"lr {values['lr']:.2e}",
        f"norm {values['grad_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tok/s",
        f"mfu {100 * values['mfu']:.1f}%",
    ]
    return " · ".join(figures)


def duration(seconds: float) -> str:
    """Return seconds as `4m12s`, `12s` or `3h05m`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"


def stderr_console(*, quiet: bool = False) -> "Console":
    """Return rich's console on standard error. It is a terminal only where standard error is one.

    FORCE_COLOR, which many programs that run others set, would make rich take a file for a terminal and fill it with
    all states of the bar. quiet: print nothing.
    """
    from rich.console import Console  # here, because every command imports this module and `--help` must be fast

    return Console(file=TERMINAL, highlight=False, quiet=quiet, force_terminal=TERMINAL.isatty())


class LiveConsole:
    """Prints lines that stay, above one that changes where there is a terminal."""

    console: "Console"
    live: "Progress | None"

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()


class RunConsole(LiveConsole):
    """Shows the progress of a run of `total` steps, of which `done` are made.

    speaks: whether anything is printed; False in all but one of several processes.
    """

    SECONDS = 10.0
    """Seconds between lines about work between two steps where there is no terminal."""

    def __init__(self, total: int, done: int, speaks: bool = True) -> None:
        self.console = stderr_console(quiet=not speaks)
        self.total = total
        self.reported = monotonic()
        self.figures = ""
        """Figures of the last step that are known."""
        self.live = None
        if self.console.is_terminal and speaks:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("eta"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                refresh_per_second=2,  # 10 per second would take a hundredth of a core from the training
            )
            self.task = self.live.add_task("train", total=total, completed=done, figures="")

    def advance(self, step: int) -> None:
        """Move the bar of a terminal to a step whose figures are not known yet."""
        if self.live is not None:
            self.live.update(self.task, completed=step)

    def working(self, what: str, done: int, total: int) -> None:
        """Show how far something between two steps is: in the bar of a terminal, else in a line every ten seconds."""
        if self.live is not None:
            self.live.update(self.task, figures=f"{what} {done:,}/{total:,}" if done < total else self.figures)
        elif monotonic() - self.reported > self.SECONDS:
            self.note(f"{what} {done:,}/{total:,}")
            self.reported = monotonic()

    def step(self, step: int, values: dict[str, Any], eta_seconds: float) -> None:
        """Show the figures of a step."""
        if self.live is not None:
            self.figures = format_step(values)
            self.live.update(self.task, completed=step, figures=self.figures)
        else:
            self.note(f"step {step}/{self.total} · {format_step(values)} · eta {duration(eta_seconds)}")
            self.reported = monotonic()


class WorkConsole(LiveConsole):
    """Shows the progress of work, most often through bytes, and the units made, with their rate and the time left."""

    SECONDS = 10.0
    """Seconds between lines where there is no terminal."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.console = stderr_console()
        self.started = self.reported = monotonic()
        self.at_start: tuple[int, int] | None = None
        """Bytes and units that an earlier process had done when the work began."""
        self.read = 0
        self.live = None
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TaskProgressColumn(),
                BarColumn(bar_width=20),
                TextColumn("eta"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self.task = self.live.add_task("work", total=None, figures="", visible=False)

    def progress(self, read: int, total: int, made: int) -> None:
        """Show that `read` of `total` bytes are read, and `made` units made of them."""
        now = monotonic()
        if self.at_start is None or read < self.read:  # the first pass over the data, or the next one
            self.at_start, self.started = (read, made), now
        self.read = read
        seconds = max(now - self.started, 1e-9)
        figures = f"{made:,} {self.unit} · {(made - self.at_start[1]) / seconds:,.0f} {self.unit}/s"
        if self.live is not None:
            self.live.update(self.task, completed=read, total=total, figures=figures, visible=True)
        elif now - self.reported >= self.SECONDS and read > self.at_start[0]:
            left = (total - read) * seconds / (read - self.at_start[0])
            self.note(f"{read / max(total, 1):.0%} · {figures} · eta {duration(left)}")
            self.reported = now


def note(line: str) -> None:
    """Print one line to stderr. Never fails."""
    print(line, file=STDERR, flush=True)
