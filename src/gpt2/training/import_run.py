"""Imports a model in any file format as a run of this program, which can be sampled, resumed and exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.distributed.world import ALONE
from gpt2.errors import Log, UserError
from gpt2.files import check_free, publish
from gpt2.formats.open import build
from gpt2.formats.run_folder import folder_of
from gpt2.formats.source import Source
from gpt2.optim.optimizers import load_named_state, make_optimizers
from gpt2.training.config import TrainConfig, checked
from gpt2.training.session import write_config
from gpt2.training.setup import muon_settings
from gpt2.training.weights import MODEL_SETTINGS

ENVIRONMENT = ("out_dir", "init_from", "overwrite", "device", "backend", "wandb_log", "eval_only")
"""Settings of another trainer that describe its environment and not its training, and are not imported."""


def import_run(source: Source, out_dir: Path, log: Log) -> Path:
    """Make a run folder from the model, its tokenizer and what is known of its training; return its checkpoint.

    The folder appears when it is complete. `log` receives a line about everything that was assumed or is missing.
    Raises UserError if `out_dir` exists or cannot be written, or if the model has no usable tokenizer or weights.
    """
    check_free(out_dir, folder=True)
    for line in source.notes:
        log(line)
    progress, tokenizer = source.progress, source.tokenizer
    model = build(source)
    shape = {name: getattr(model.config, name) for name in MODEL_SETTINGS}
    known: dict[str, Any] = {
        **_understood(progress.settings),
        **shape,
        "dropout": model.config.dropout,
        "out_dir": str(out_dir),
    }
    try:
        config = TrainConfig(**known).resolved()
    except UserError as error:
        log(f"the settings of the training contradict each other ({error}): the run gets the default settings")
        config = TrainConfig(**shape, out_dir=str(out_dir), dataset=known.get("dataset", "")).resolved()
    muon = muon_settings(config, ALONE) if config.optimizer == "muon" else None
    betas = config.beta1, config.beta2
    optimizers = make_optimizers(model, config.learning_rate, betas, config.weight_decay, muon=muon)
    load_named_state(optimizers, progress.optimizer_state(log))
    state = checkpoint.TrainState(step=progress.step, tokens=progress.step * config.tokens_per_step)
    about = {"train": config.as_dict(), "dataset": {}}
    taken = checkpoint.take(out_dir, state, model, optimizers, tokenizer, about)
    needed = sum(shard.values.nbytes for shard in (*taken.weights.values(), *taken.optimizer_state.values()))
    with publish(out_dir, folder=True, needed=needed) as temporary:
        try:
            checkpoint.write(replace(taken, folder=folder_of(temporary, state.step)))
        except UserError as error:
            raise error.__cause__ or error from None  # the system's error, which `publish` reports for `out_dir`
        write_config(temporary, config)
    return taken.folder


def _understood(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that exist in TrainConfig and have the type that it requires."""
    result = {}
    for name, value in settings.items():
        if name in TrainConfig.__dataclass_fields__ and name not in ENVIRONMENT:
            try:
                result[name] = checked(name, value)
            except UserError:
                continue
    return result
