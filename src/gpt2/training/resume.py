"""Resuming a run: which checkpoint it continues from, and what has changed since."""

import shlex
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.data.dataset import Dataset
from gpt2.errors import Log, UserError
from gpt2.formats.open import newest_model_in
from gpt2.formats.run_folder import saved_steps
from gpt2.training.config import TrainConfig
from gpt2.training.ownership import CONFIG, require_own_files

NANOGPT_FILE = "ckpt.pt"
"""Name of the file in which nanoGPT keeps a run."""


def checkpoint_to_resume(config: TrainConfig, out_dir: Path, log: Log) -> Path | None:
    """Return the checkpoint to resume; None for a run that begins, whose files must not exist yet."""
    if not out_dir.exists() and config.init_from != "resume":
        return None
    if config.overwrite and config.init_from == "resume":
        raise UserError(
            f"overwrite would delete the run in {out_dir}, and init_from=resume continues it; leave one of them out"
        )
    has_checkpoints = bool(saved_steps(out_dir))
    if config.init_from in ("resume", "auto") and not has_checkpoints:
        _require_no_other_program(config, out_dir)
    if config.init_from == "resume" or (config.init_from == "auto" and has_checkpoints):
        return checkpoint.latest(out_dir, log)
    if config.eval_only:
        if has_checkpoints and config.init_from == "scratch":
            log(f"evaluating a new model with random weights; --init_from=resume evaluates the run in {out_dir}")
        return None
    if has_checkpoints and not config.overwrite:
        raise UserError(
            f"{out_dir} already holds a run; continue it with --init_from=resume, choose another --out_dir, or "
            "delete it with --overwrite"
        )
    require_own_files(out_dir, config, keep_history=not config.overwrite and config.init_from != "auto")
    return None


def _require_no_other_program(config: TrainConfig, out_dir: Path) -> None:
    """Raise UserError where the run to be continued is another program's, and say how its weights are used."""
    if (out_dir / NANOGPT_FILE).is_file():
        raise UserError(_how_to_import(config, out_dir))
    if not (out_dir / CONFIG).is_file() and (inside := newest_model_in(out_dir)):
        raise UserError(
            f"{out_dir} holds models of another program; start from the weights of one with --init_from={inside} and "
            "another --out_dir"
        )


def _how_to_import(config: TrainConfig, out_dir: Path) -> str:
    """Return how to continue a run of nanoGPT in `out_dir`."""
    imported = f"{out_dir}-imported"
    line = ["gpt2", "train", "--init_from=resume", f"--out_dir={imported}"]
    line += [f"--dataset={config.dataset}"] if config.dataset else []
    first = shlex.join(["gpt2", "import", str(out_dir), imported])
    return f"{out_dir} holds a run of nanoGPT; import it with: {first}, and continue it with: {shlex.join(line)}"


def log_changed_settings(config: TrainConfig, last: int, dataset: Dataset, before: dict[str, Any], log: Log) -> None:
    """Log what differs from the settings and data of the checkpoint whose `state.json` is `before`.

    last: the optimizer step at which the run ends.
    """
    settings, defaults = before["train"], TrainConfig().as_dict()
    for name, value in config.as_dict().items():
        earlier = settings.get(name, defaults.get(name, "not set"))
        if name not in ("init_from", "overwrite", "out_dir") and earlier not in (value, "auto"):
            log(f"changed for this resume: {name}={value} (was {earlier})")
    if config.decay_lr and config.lr_schedule != "constant":
        log_other_decay(config, before["step"], last, log)
    earlier = before["dataset"]  # empty for an imported run, and without the hashes of contents for an older one
    if any(earlier[key] != value for key, value in dataset.fingerprint.items() if key in earlier):
        log(f"changed for this resume: the tokens in {dataset.path} are not those the run began with")


def log_other_decay(config: TrainConfig, step: int, last: int, log: Log) -> None:
    """Log it if the learning rate of a run, resumed at `step`, reaches min_lr before or after its end, `last`."""
    if last > config.decay_end:
        log(
            f"the learning rate reaches min_lr={config.min_lr:g} at step {config.decay_end} (lr_decay_iters) and "
            f"stays there; --lr_decay_iters=auto lets it decay until step {last}, and raises it now"
        )
    elif step < last < config.decay_end:
        log(
            f"the learning rate decays until step {config.decay_end} (lr_decay_iters), and the run ends at step "
            f"{last}, before it reaches min_lr={config.min_lr:g}; --lr_decay_iters=auto lets it decay faster, until "
            f"step {last}"
        )


def log_changed_machine(facts: dict[str, str | int], before: dict[str, Any], log: Log) -> None:
    """Log what differs from the machine of the checkpoint whose `state.json` is `before`, where it changes results.

    facts: see `Run.machine`.
    """
    earlier = before.get("machine", {})
    changed = [
        f"{name}={value} (was {earlier[name]})"
        for name, value in facts.items()
        if name in earlier and earlier[name] != value
    ]
    if changed:
        log(
            f"changed for this resume: {', '.join(changed)}; from here on results differ in their last bits from "
            "those of a run that was never stopped"
        )
