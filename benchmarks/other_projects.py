"""Code of other projects, read from a checkout of each."""

import ast
import inspect
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


def definitions(path: Path, **names: object) -> SimpleNamespace:
    """Return the functions and classes of a script without running the rest of it.

    `names` are further names that they need.
    """
    tree = ast.parse(path.read_text(), str(path))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    space: dict[str, object] = {"torch": torch, "nn": nn, "F": F, "math": math, "dataclass": dataclass}
    space |= {"inspect": inspect, "os": os, "__name__": path.stem} | names
    exec(compile(tree, str(path), "exec"), space)
    return SimpleNamespace(**{name: value for name, value in space.items() if name != "__name__"})


def commit(folder: Path) -> str:
    """Return the commit that is checked out in a folder, or an empty text if git does not know it."""
    asked = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True
    )
    return asked.stdout.strip()
