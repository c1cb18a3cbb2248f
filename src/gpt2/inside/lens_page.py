"""The page of `gpt2 lens`: one HTML file with the views of one text, which needs no network and no other file."""

import base64
import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from gpt2.reporting.markup import frame
from gpt2.reporting.style import about
from gpt2.runlog.curves import printable
from gpt2.spelling import counted

MODULES = (
    "shared",
    "read",
    "compare",
    "curve",
    "attention",
    "logit_lens",
    "attribution",
    "patching",
    "analysis",
    "main",
)
"""ES modules of the page, each after those that it imports."""


def page(values: dict[str, Any]) -> str:
    """Return the page about a finished `Analysis`.

    The values may have more parts: `compared`, the losses of the text under another model; and `curve`, the losses at
    the steps of a run, of which `step` is the one that was analysed. Texts are JSON in an element that the browser
    does not run, and the script writes them as text and never as HTML.
    """
    name, size, config = values["model"], len(values["ids"]), values["config"]
    facts = [
        counted(size, "token"),
        counted(config["n_layer"], "layer"),
        f"{counted(config['n_head'], 'head')} per layer",
    ]
    facts += [f"{config['n_embd']} channels", f"{about(config['vocab_size'])} ids"]
    if "compared" in values:
        name, facts = f"{name} and {values['compared']['model']}", []
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    text = as_json(values).replace("<", "\\u003c")
    content = (
        f"<h1>{escape(printable(name))}</h1><ul class=facts>{items}</ul><div id=analysis></div>"
        "<noscript><p>This page draws with JavaScript, which is switched off here.</p></noscript>"
        f"<script type=application/json id=data>{text}</script>"
    )
    return frame(name, content, styles=_file("page.css"), module=script())


def as_json(values: dict[str, Any]) -> str:
    """Return the values as JSON text, with arrays as `packed` has them."""
    return json.dumps(for_page(values), default=packed)


def for_page(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with attention weights as bytes, in steps of 1/255: each head's lower triangle by rows."""
    if "attention" not in values:
        return values
    attention = values["attention"]
    rows, columns = np.tril_indices(attention["tokens"])
    triangles = np.rint(attention["weights"][:, :, rows, columns] * 255).astype(np.uint8)
    return values | {"attention": attention | {"weights": triangles}}


def packed(value: object) -> dict[str, Any]:
    """Return an array as its dtype, its shape and its bytes in base64, for `json.dumps(…, default=packed)`."""
    assert isinstance(value, np.ndarray)
    array = value.astype(np.int32) if value.dtype == np.int64 else value
    content = base64.b64encode(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": content}


@cache
def script() -> str:
    """Return all modules as one, without their imports and exports, because a file has no other files to import."""
    joined = "\n".join(_file(f"{name}.js") for name in MODULES)
    return re.sub(r"^import .*;\n|^export ", "", joined, flags=re.MULTILINE)


def _file(name: str) -> str:
    return (resources.files("gpt2.inside") / "page" / name).read_text(encoding="utf-8")
