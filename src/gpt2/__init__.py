"""The complete GPT-2 toolkit.

    import gpt2
    model, tokenizer = gpt2.load("out")
    print(gpt2.generate(model, tokenizer, "def main"))

Names are imported when they are first used, so that `gpt2 --help` need not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.errors import UserError
    from gpt2.formats.open import load
    from gpt2.generation.engine import generate
    from gpt2.model import GPT, GPTConfig
    from gpt2.training.config import TrainConfig
    from gpt2.training.loop import train
    from gpt2.training.recipes import load_recipe, resume_config

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "GPTConfig",
    "TrainConfig",
    "UserError",
    "generate",
    "load",
    "load_recipe",
    "resume_config",
    "train",
]

_HOME = {
    "GPT": "gpt2.model",
    "GPTConfig": "gpt2.model",
    "TrainConfig": "gpt2.training.config",
    "UserError": "gpt2.errors",
    "generate": "gpt2.generation.engine",
    "load": "gpt2.formats.open",
    "load_recipe": "gpt2.training.recipes",
    "resume_config": "gpt2.training.recipes",
    "train": "gpt2.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
