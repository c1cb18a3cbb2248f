"""`gpt2 report`."""

import json
import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.results import results_stream
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig


def report(
    run: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
    serve: Annotated[bool, Parameter(negative=())] = False,
    port: int = 0,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write what there is to say about a run as one HTML page that needs nothing else.

    Parameters
    ----------
    run
        Run folder, or a log.jsonl.
    out
        Page to write.
    serve
        Write nothing; serve the page to this machine and keep it up to date, until Ctrl-C.
    port
        Of that server; 0 is any free one.
    json_
        Also print the figures as one JSON object.
    """
    from gpt2.files import write_text
    from gpt2.runlog.live import served
    from gpt2.runlog.report import report_on
    from gpt2.runlog.report_page import page

    found, defaults = report_on(run), TrainConfig().as_dict()
    if json_:
        print(json.dumps(found.figures()), file=results_stream(None if serve else out), flush=True)
    if not serve:
        write_text(out, page(found, defaults))
        note(f"wrote {out}")
        return
    with served(run, defaults, port) as address:
        note(f"{found.name} is at {address} until Ctrl-C")
        threading.Event().wait()
