"""The settings that a configuration leads to, as far as they are known without a device and without the data."""

from dataclasses import dataclass, replace
from typing import Any

from gpt2.checkpoint import TrainState
from gpt2.errors import UserError
from gpt2.training.budget import last_step
from gpt2.training.config import HINTS, TrainConfig
from gpt2.training.nanogpt_config import names_a_model
from gpt2.training.recipes import dump_toml

OF_THE_MODEL = ("n_layer", "n_head", "n_embd", "gelu")
"""Settings that a model brings with it when init_from names one."""
OF_THE_LAST_STEP = ("lr_decay_iters", "warmup_iters", "eval_interval", "eval_iters")
"""Settings whose default depends on the step at which the run ends, which max_epochs makes depend on the dataset."""


@dataclass(frozen=True)
class FilledIn:
    """Holds the settings of a run, divided into those that differ from their defaults and the others."""

    changed: dict[str, Any]
    """Settings that differ from what they would be by default with the other settings."""
    defaults: dict[str, Any]
    open: tuple[str, ...]
    """Settings without a value: the dataset, the model or the device gives them one, or they are off."""

    @property
    def values(self) -> dict[str, Any]:
        """Return all settings that have a value."""
        return self.changed | self.defaults

    def toml(self) -> str:
        """Return the settings as a recipe, those that differ from their defaults first."""
        text = (
            "# Differs from the defaults (each line is also a flag, as in --batch_size=8):\n"
            f"{dump_toml(self.changed)}\n# Defaults:\n{dump_toml(self.defaults)}"
        )
        missing = f"\n# Not set (off, or decided when the run starts): {', '.join(self.open)}\n"
        return text + missing if self.open else text


def filled_in(config: TrainConfig) -> FilledIn:
    """Return the settings that a configuration leads to.

    A default that depends on other settings is filled in. The defaults that the dataset or a model decides stay open.
    """
    values, changed = _values(config), {}
    plain = TrainConfig().as_dict()
    for name, value in values.items():
        if value != plain.get(name, None) and value != _default(config, name):
            changed[name] = value
    defaults = {name: value for name, value in values.items() if name not in changed}
    return FilledIn(changed, defaults, tuple(name for name in HINTS if name not in values))


def _values(config: TrainConfig) -> dict[str, Any]:
    """Return the settings with the defaults that follow from other settings."""
    last = last_step(replace(config, max_epochs=0.0), 0, TrainState(), lambda line: None)
    filled = config.resolved(last).as_dict()
    unknown = set(OF_THE_MODEL if names_a_model(config.init_from) else ())
    unknown |= set(OF_THE_LAST_STEP if config.max_epochs else ())
    given = config.as_dict()
    for name in unknown:
        if name in given:
            filled[name] = given[name]
        else:
            filled.pop(name, None)
    return filled


def _default(config: TrainConfig, name: str) -> Any:
    """Return the value that a setting would have if only the others were given; None where it would have none."""
    try:
        return _values(replace(config, **{name: TrainConfig.__dataclass_fields__[name].default})).get(name)
    except UserError:  # the other settings do not work without it
        return None
