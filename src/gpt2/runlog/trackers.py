"""Weights & Biases and TensorBoard, behind a switch each."""

import importlib
from pathlib import Path
from typing import Any, Protocol

from gpt2.errors import UserError

NUMBERS = {"loss", "lr", "grad_norm", "tokens_per_second", "mfu", "train_loss", "val_loss"}


class Tracker(Protocol):
    """Something that is told every number of a run."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def require(module: str, switch: str) -> None:
    """Raise UserError unless the package behind `switch` can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        package = module.rsplit(".", 1)[-1]
        raise UserError(f"{switch} needs the {package} package; pip install {package}, or leave it off") from None


class WandbTracker:
    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=project, name=name, config=config)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class TensorBoardTracker:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What of a record a tracker is told."""
    return {name: value for name, value in values.items() if name in NUMBERS}
