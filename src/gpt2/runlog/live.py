"""The report on a run, served while the run goes on: to this machine only, and only to be read."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.runlog.curves import Follower, name_of
from gpt2.runlog.local_server import HOST, Answer, LocalServer
from gpt2.runlog.report import RunReport, report_on
from gpt2.runlog.report_page import body, content_policy, frame

REST = 20
"""Times as long as a page took to make it is not made again, so that watching a long run costs it little."""


class LiveReport:
    """The report on a run, made again where somebody asks and the log has grown since."""

    def __init__(self, run: Path, defaults: dict[str, Any]) -> None:
        self.run, self.defaults = run, defaults
        self.name = name_of(run)
        self.lock = threading.Lock()
        self.log = Follower(run)
        self.not_before = 0.0
        self.content = body(RunReport(self.name, [], {}), defaults)

    def body(self) -> str:
        """What the page says now; that of an empty run until there is a log."""
        with self.lock:
            began = time.monotonic()
            try:
                if began >= self.not_before and self.log.look():
                    self.content = body(report_on(self.run, self.log.thinned.records), self.defaults)
                    self.not_before = time.monotonic() + REST * (time.monotonic() - began)
            except (OSError, UserError):
                pass  # there is no log yet, or it is being replaced: what was read before stands
            return self.content

    def page(self) -> str:
        """The whole page."""
        return frame(self.name, self.body(), live=True)


@contextmanager
def served(run: Path, defaults: dict[str, Any], port: int) -> Iterator[str]:
    """Serve the report on a run, which may have yet to begin, from a thread in the background; yields its address.

    port: 0 is any free one. Raises UserError where it cannot be had.
    """
    try:
        live = LiveReport(run, defaults)
        server = LocalServer(port, {"/": Answer(live.page, content_policy()), "/body": Answer(live.body)})
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "it must be 0 to 65535"
        raise UserError(f"port {port} of {HOST} cannot be served: {why}; choose another, or 0 for any free") from None
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
