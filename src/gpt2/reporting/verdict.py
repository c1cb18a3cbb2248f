"""Compares a run with references: measured or published losses of runs of the same kind.

Each reference is a TOML file in `references/`. It has a name and a source; `match`, the settings (or lists of allowed
values) that a run of its kind has, where `val_data` is the fingerprint of the validation tokens; `dataset_like`, a
pattern for the dataset's name; `recipe`, settings that are named where they differ; and a `band` of validation losses
by step, or `levels`.
"""

import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from gpt2.runlog.curves import Records, series


@dataclass(frozen=True)
class Band:
    """Holds the validation losses that runs of one kind had, by step."""

    steps: list[int]
    low: list[float]
    high: list[float]
    margin: float
    """Added on both sides: the difference that another seed may make."""

    def excess(self, step: int, loss: float) -> float:
        """Return how far a loss at one of the steps lies above the band; negative below it, 0 inside."""
        i = self.steps.index(step)
        low, high = self.low[i] - self.margin, self.high[i] + self.margin
        return max(0.0, loss - high) + min(0.0, loss - low)


@dataclass(frozen=True)
class Level:
    """Holds the validation loss of a finished model."""

    label: str
    val_loss: float


@dataclass(frozen=True)
class Reference:
    """Holds the losses that runs of one kind reached."""

    name: str
    source: str
    match: dict[str, Any]
    dataset_like: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    band: Band | None = None
    levels: tuple[Level, ...] = ()

    def fits(self, facts: dict[str, Any]) -> bool:
        """Return whether a run with these `facts` is of this kind."""
        if not re.search(self.dataset_like, str(facts.get("dataset", ""))):
            return False
        return all(
            facts.get(name) in wanted if isinstance(wanted, list) else facts.get(name) == wanted
            for name, wanted in self.match.items()
        )


@dataclass(frozen=True)
class Verdict:
    """Holds how a run compares with a reference, as a state and in a sentence."""

    state: Literal["unknown", "early", "within", "above", "below"]
    sentence: str
    reference: Reference | None = None


def references() -> list[Reference]:
    """Return all references of the package."""
    files = sorted(resources.files("gpt2.reporting").joinpath("references").iterdir(), key=lambda file: file.name)
    return [parse(file.read_text(encoding="utf-8")) for file in files if file.name.endswith(".toml")]


def parse(text: str) -> Reference:
    """Return the reference that the text of a TOML file describes."""
    values = tomllib.loads(text)
    band = values.pop("band", None)
    levels = tuple(Level(**level) for level in values.pop("levels", []))
    return Reference(**values, band=Band(**band) if band else None, levels=levels)


def facts_of(records: Records, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the facts by which a run's kind is recognised: its settings and what follows from them.

    These are `tokens_per_step`, `evaluated_rows` (the number of sequences on which validation is measured) and
    `val_data` (a fingerprint), as far as they are known.
    """
    data = next((r["data"] for r in reversed(records) if r["event"] != "train" and "data" in r), {})
    facts = settings | {"val_data": data.get("val")}
    if {"batch_size", "block_size"} <= settings.keys():
        micro = settings["batch_size"] * settings["block_size"]
        facts["tokens_per_step"] = settings.get(
            "total_batch_size", micro * settings.get("gradient_accumulation_steps", 1)
        )
        facts["evaluated_rows"] = settings["batch_size"] * settings.get("eval_iters", 0)
    return facts


def judge(records: Records, settings: dict[str, Any], known: list[Reference] | None = None) -> Verdict:
    """Compare a run with the first reference of its kind, by default of all `references`."""
    facts = facts_of(records, settings)
    reference = next((r for r in (references() if known is None else known) if r.fits(facts)), None)
    if reference is None:
        return Verdict("unknown", "No reference is known for this data and model.")
    steps, losses = series(records, "eval", "val_loss")
    if reference.band is not None:
        return _against_band(reference, reference.band, dict(zip(steps, losses, strict=True)), facts)
    if not losses or steps[-1] == 0:
        return Verdict("early", f"Nothing to compare with {reference.name} yet.", reference)
    return _against_levels(reference, losses[-1])


def _against_band(reference: Reference, band: Band, losses: dict[int, float], facts: dict[str, Any]) -> Verdict:
    excess = {step: band.excess(step, loss) for step, loss in losses.items() if step in band.steps}
    if not excess:
        return Verdict("early", f"No evaluation yet at a step of {reference.name}.", reference)
    last = max(excess)
    off = [step for step, by in excess.items() if by]
    if not excess[last]:
        sentence = f"Within the band of {reference.name} at all {len(excess)} evaluations they share."
        if off:
            worst = max(off, key=lambda step: abs(excess[step]))
            sentence = (
                f"Within the band of {reference.name} at step {last:,}, outside at {len(off)} of {len(excess)} "
                f"evaluations: most at step {worst:,}, by {abs(excess[worst]):.3f}."
            )
        return Verdict("within", sentence, reference)
    state = "above" if excess[last] > 0 else "below"
    before = [step for step, by in excess.items() if by * excess[last] <= 0]
    since = min(step for step in excess if not before or step > max(before))
    now = f"by {abs(excess[last]):.3f} at step {last:,}"
    sentence = f"{state.title()} the band of {reference.name} since step {since:,}: {now}."
    other = [f"{n}={facts.get(n)} (there {v})" for n, v in reference.recipe.items() if facts.get(n) != v]
    if other:
        sentence += f" Other settings: {', '.join(other)}."
    return Verdict(state, sentence, reference)


def _against_levels(reference: Reference, loss: float) -> Verdict:
    nearest = min(reference.levels, key=lambda level: abs(level.val_loss - loss))
    by = loss - nearest.val_loss
    state = "above" if by > 0 else "below"
    sentence = f"Validation loss {loss:.4f}: {abs(by):.4f} {state} {nearest.label} ({nearest.val_loss:.4f})."
    return Verdict(state, sentence, reference)
