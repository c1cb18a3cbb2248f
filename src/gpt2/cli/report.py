"""`gpt2 report`."""

import json
import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import OUT
from gpt2.cli.results import results_stream
from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.streams import is_stream
from gpt2.training.config import TrainConfig
from gpt2.training.setting import OUTPUT, PORT


def report(
    *runs: Annotated[Path, Parameter(required=True)],
    out: Annotated[Path, OUTPUT, OUT] = Path("report.html"),
    serve: Annotated[bool, Parameter(negative=())] = False,
    port: Annotated[int, PORT] = 0,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write a report on one run, or on several next to each other, as one HTML page that needs no other file.

    Parameters
    ----------
    runs
        Run folders, or log.jsonl files.
    out
        Page to write, a file that ends in .html or a stream such as - for standard output.
    serve
        Write nothing; serve the page to this machine and keep it up to date, until Ctrl-C.
    port
        Port of that server; 0 is any free one.
    json_
        Also print the figures: one JSON object, or a list of objects for several runs.
    """
    from gpt2.files import write_text
    from gpt2.reporting.figures import report_on, unreadable_lines
    from gpt2.reporting.page import page

    if not serve:
        require_page(out)
    found, defaults = [report_on(run) for run in runs], TrainConfig().as_dict()
    for made in found:
        if made.unreadable:
            note(f"{made.name}: {unreadable_lines(made.unreadable)}")
    if json_:
        figures = [report.figures() for report in found]
        values = figures if len(figures) > 1 else figures[0]
        print(json.dumps(values), file=results_stream(None if serve else out), flush=True)
    if not serve:
        write_text(out, page(found, defaults))
        note(f"wrote {out}")
        return
    from gpt2.serve.live import served

    with served(runs, defaults, port, in_trainer=False) as address:
        note(f"{', '.join(report.name for report in found)}: {address} until Ctrl-C")
        threading.Event().wait()


def require_page(out: Path) -> None:
    """Raise UserError unless `out` can be an HTML page."""
    if not is_stream(out) and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"cannot write {out}: a report is an HTML page, so give a name that ends in .html; gpt2 plot draws "
            "pictures (.png, .svg, .pdf)"
        )
