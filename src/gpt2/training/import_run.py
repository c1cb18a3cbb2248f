"""A model of any format as a run of ours, which can be sampled, resumed and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.files import write_text
from gpt2.formats.open import build
from gpt2.formats.source import Source
from gpt2.optim.optimizers import load_named_state, make_optimizers
from gpt2.training.config import TrainConfig, checked
from gpt2.training.recipes import dump_toml
from gpt2.training.weights import SHAPE

# Settings of another trainer that say where it ran, and not how it trained.
ELSEWHERE = ("out_dir", "init_from", "overwrite", "device", "dtype", "compile", "backend", "wandb_log", "eval_only")


def import_run(source: Source, out_dir: Path, note: Callable[[str], None]) -> Path:
    """Make a run folder of the model, its tokenizer and what is known of its training; returns its checkpoint.

    `note` receives what was assumed or is missing. Raises UserError, also where `out_dir` is not free.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} already exists; choose another place, or delete it")
    for line in source.notes:
        note(line)
    progress, tokenizer = source.progress, source.tokenizer
    model = build(source)
    shape = {name: getattr(model.config, name) for name in SHAPE}
    known: dict[str, Any] = {
        **_understood(progress.settings),
        **shape,
        "dropout": model.config.dropout,
        "out_dir": str(out_dir),
    }
    try:
        config = TrainConfig(**known).resolved()
    except UserError as error:
        note(f"its settings do not fit together here ({error}): the run has the defaults")
        config = TrainConfig(**shape, out_dir=str(out_dir), dataset=known.get("dataset", "")).resolved()
    optimizers = make_optimizers(model, config.learning_rate, (config.beta1, config.beta2), config.weight_decay)
    load_named_state(optimizers, progress.moments(note))
    state = checkpoint.TrainState(step=progress.step, tokens=progress.step * config.tokens_per_step)
    about = {"train": config.as_dict(), "dataset": {}}
    taken = checkpoint.snapshot(out_dir, state, model, optimizers, tokenizer, about)
    checkpoint.write(taken)
    write_text(out_dir / "config.toml", dump_toml({k: v for k, v in config.as_dict().items() if k != "overwrite"}))
    return taken.folder


def _understood(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are also ours and of the type ours take."""
    result = {}
    for name, value in settings.items():
        if name in TrainConfig.__dataclass_fields__ and name not in ELSEWHERE:
            try:
                result[name] = checked(name, value)
            except UserError:
                continue
    return result
