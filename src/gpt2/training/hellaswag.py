"""The tasks of HellaSwag that a run measures itself with."""

from collections.abc import Callable
from pathlib import Path

from gpt2.evaluate.choices import Task, check_fits
from gpt2.evaluate.hellaswag import read_tasks, validation_file
from gpt2.model import GPTConfig
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig


def hellaswag_tasks(
    config: TrainConfig, tokenizer: Tokenizer, model: GPTConfig, note: Callable[[str], None]
) -> list[Task]:
    """The tasks, or none where they are off; downloaded if need be.

    Raises UserError where they are missing or damaged, or do not fit the run's tokenizer or model: before it begins.
    """
    if config.hellaswag_interval == 0:
        return []
    path = Path(config.hellaswag_data) if config.hellaswag_data else validation_file(config.data_dir, note)
    tasks = read_tasks(path, tokenizer, limit=config.hellaswag_limit or None)
    check_fits(tasks, model)
    return tasks
