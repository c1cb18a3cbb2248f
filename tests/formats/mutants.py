"""Opens model files named on stdin, one a line, by `gpt2 sample`, and says in JSON what each came to.

A process of its own, so that its memory can be measured and nothing it might run harms the tests.
"""

import contextlib
import io
import json
import resource
import sys

from gpt2.cli import main


def run(path: str) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(["sample", path, "--max_new_tokens=1", "--device=cpu"])
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        return {"path": path, "status": "traceback", "err": repr(error)}
    return {"path": path, "status": status, "err": err.getvalue()}


if __name__ == "__main__":
    first, *paths = sys.stdin.read().splitlines()
    assert run(first)["status"] == 0, run(first)  # an intact file, so that everything is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = [run(path) for path in paths]
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"results": results, "megabytes": kilobytes / 1024}, sys.stdout)
