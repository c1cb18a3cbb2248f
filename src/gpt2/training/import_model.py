"""Importing a model as a run, and comparing the run with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt2.formats.export import Exported, difference, logits_of, probe
from gpt2.formats.open import build, open_model
from gpt2.training.import_run import import_run


def import_model(
    model: str, out: Path, tokenizer: str | None, gelu: str | None, note: Callable[[str], None]
) -> Exported:
    """Make the run folder `out` from a model, and return how far the logits of the run are from the model's.

    `tokenizer` names one for a model that comes without; `gelu` corrects the model's GELU variant. `note` receives
    lines about what was assumed or is missing. Raises UserError for what is no model, and where `out` is not free.
    """
    source = open_model(model, tokenizer)
    if gelu:
        source = replace(source, config=replace(source.config, gelu=gelu))
    original = replace(source, tensors=dict(source.tensors))  # the name may stand for other weights after the import
    checkpoint = import_run(source, out, note)
    if gelu:
        note(f"the run computes the {gelu} GELU, as requested")
    made = open_model(str(checkpoint))
    ids = probe(made.config, made.known_tokenizer)
    expected = logits_of(build(original, gelu=made.config.gelu).eval(), ids)
    found = logits_of(build(made).eval(), ids)
    return Exported(out, difference(found, expected), expected.abs().max().item())
