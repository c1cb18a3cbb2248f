"""The complete GPT-2 toolkit.

    import gpt2
    model, tokenizer = gpt2.load("out")
    print(gpt2.generate(model, tokenizer, "def main"))

Names are imported when they are first used, so that `gpt2 --help` need not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.api import evaluate, export, plot, report
    from gpt2.data.prepare import prepare
    from gpt2.errors import UserError
    from gpt2.formats.open import load
    from gpt2.generation.text import generate
    from gpt2.inside.attention import attention_weights
    from gpt2.model import GPT, GPTConfig
    from gpt2.training.config import TrainConfig
    from gpt2.training.loop import TrainResult, train
    from gpt2.training.recipes import load_recipe, resume_config

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "GPTConfig",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "attention_weights",
    "evaluate",
    "export",
    "generate",
    "load",
    "load_recipe",
    "plot",
    "prepare",
    "report",
    "resume_config",
    "train",
]

_MODULE_OF = {
    "GPT": "gpt2.model",
    "GPTConfig": "gpt2.model",
    "TrainConfig": "gpt2.training.config",
    "TrainResult": "gpt2.training.loop",
    "UserError": "gpt2.errors",
    "attention_weights": "gpt2.inside.attention",
    "evaluate": "gpt2.api",
    "export": "gpt2.api",
    "generate": "gpt2.generation.text",
    "load": "gpt2.formats.open",
    "load_recipe": "gpt2.training.recipes",
    "plot": "gpt2.api",
    "prepare": "gpt2.data.prepare",
    "report": "gpt2.api",
    "resume_config": "gpt2.training.recipes",
    "train": "gpt2.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
