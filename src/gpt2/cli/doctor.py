"""`gpt2 doctor`."""

import json
import shutil
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag


def doctor(*, quick: Annotated[bool, Parameter(negative=())] = False, json_: JsonFlag = False) -> int:
    """Check this machine: Python, PyTorch, GPUs, compiler, memory, disk, network and packages, with fixes.

    The exit status is 0 if there is no problem, though there may be warnings, and 1 if there is one. A problem stops
    something that most users need; a warning costs speed, or concerns an optional part.

    Parameters
    ----------
    quick
        Omit what takes long: a tiny torch.compile, and the imports of packages.
    """
    from gpt2.doctor.examine import examine
    from gpt2.doctor.finding import described

    findings = examine(quick)
    has_problem = any(finding.verdict == "problem" for finding in findings)
    if json_:
        print(json.dumps({"ok": not has_problem, "checks": [asdict(finding) for finding in findings]}))
    else:
        print(described(findings, shutil.get_terminal_size().columns))
    return int(has_problem)
