"""Other projects' code, taken from the folders where it lies."""

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
    """The functions and classes of a script, which is not run otherwise; `names` is what they need."""
    tree = ast.parse(path.read_text(), str(path))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    space: dict[str, object] = {"torch": torch, "nn": nn, "F": F, "math": math, "dataclass": dataclass}
    space |= {"inspect": inspect, "os": os, "__name__": path.stem} | names
    exec(compile(tree, str(path), "exec"), space)
    return SimpleNamespace(**{name: value for name, value in space.items() if name != "__name__"})


def commit(folder: Path) -> str:
    """The commit that is checked out there, or nothing where git does not say."""
    asked = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True
    )
    return asked.stdout.strip()
