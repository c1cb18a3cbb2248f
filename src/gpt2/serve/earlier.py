"""The weights that a served run had at earlier optimizer steps, opened when they are asked for."""

from collections import OrderedDict
from pathlib import Path

import torch

from gpt2.errors import UserError
from gpt2.formats.open import build, open_model
from gpt2.formats.run_folder import weights_by_step
from gpt2.model import GPT, GPTConfig

MOST_MODELS = 2
"""Number of models that are kept in memory."""
MOST_STEPS = 64
"""Number of steps that a curve has at most."""
MOST_NAMED = 12
"""Number of steps that an error names at most."""


class EarlierWeights:
    """Opens the snapshots and checkpoints of a run. Its models are for one thread at a time."""

    def __init__(self, run: Path | None, config: GPTConfig, device: torch.device) -> None:
        """run: the folder of the run; None for a model that is no run. config: that of the served model."""
        self.run, self.config, self.device = run, config, device
        self.models: OrderedDict[tuple[Path, int], GPT] = OrderedDict()
        """The models used last, by file and time of its last change, the latest at the end."""

    def steps(self) -> list[int]:
        """Return the steps of a curve, oldest first: all that there are, or MOST_STEPS of them.

        Of more, the first, the last, and between them those at even distances by the logarithm stay. Raises UserError
        for a model that is no run.
        """
        return thinned(list(self._files()), MOST_STEPS)

    def find(self, step: int) -> tuple[Path, int]:
        """Return the file or folder of a step, and the time of its last change in ns. Raises UserError."""
        files = self._files()
        if step not in files:
            known = ", ".join(map(str, thinned(list(files), MOST_NAMED)))
            raise UserError(f"step: {self.run} has no snapshot or checkpoint of step {step}; it has some of: {known}")
        try:
            return files[step], files[step].stat().st_mtime_ns
        except OSError:
            raise UserError(f"step: the run has removed {files[step].name}; choose another step") from None

    def model(self, step: int) -> GPT:
        """Return the float32 model of a step, on the device of the served one. Raises UserError."""
        key = self.find(step)
        if key not in self.models:
            source = open_model(key[0])
            if source.config != self.config:
                raise UserError(f"step: {source.origin} is a model of another shape than the served one")
            while len(self.models) >= MOST_MODELS:  # before another one takes memory
                self.models.popitem(last=False)
            self.models[key] = build(source).to(self.device).eval()
        self.models.move_to_end(key)
        return self.models[key]

    def _files(self) -> dict[int, Path]:
        if self.run is None:
            raise UserError("this model is no folder of a run, so it has no earlier steps; serve a run's out_dir")
        return weights_by_step(self.run)


def thinned(steps: list[int], most: int) -> list[int]:
    """Return at most `most` of ascending steps: the ends, and those nearest to even distances by the logarithm."""
    if len(steps) <= most:
        return steps
    ratio = (steps[-1] + 1) / (steps[0] + 1)
    wanted = [(steps[0] + 1) * ratio ** (i / (most - 1)) - 1 for i in range(most)]
    return sorted({min(steps, key=lambda step: abs(step - goal)) for goal in wanted})
