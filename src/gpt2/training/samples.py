"""Texts that the model writes while it is trained."""

from collections.abc import Callable

from gpt2.generation.engine import stream_text
from gpt2.training.setup import Run

BETWEEN = "\n---------------\n"


def sample_texts(run: Run, check: Callable[[], None] = lambda: None) -> str:
    """Continuations of every prompt, with the same seeds at every step. All processes write them: they agree.

    check: called after each piece of text; an exception that it raises ends the sampling.
    """
    return BETWEEN.join(
        prompt + _continued(run, prompt, number, check)
        for prompt in run.prompts
        for number in range(run.config.num_samples)
    )


def _continued(run: Run, prompt: str, number: int, check: Callable[[], None]) -> str:
    """Sample `number` of a prompt, without the prompt."""
    config = run.config
    pieces: list[str] = []
    seed = (config.seed + number) % (1 << 63)
    for piece in stream_text(
        run.model, run.tokenizer, prompt, max_new_tokens=config.sample_tokens, seed=seed, dtype=config.dtype
    ):
        pieces.append(piece)
        check()
    return "".join(pieces)
