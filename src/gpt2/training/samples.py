"""Texts that the model writes while it is trained."""

from gpt2.generation.engine import generate
from gpt2.training.setup import Run

BETWEEN = "\n---------------\n"


def sample_texts(run: Run) -> str:
    """Continuations of every prompt, with the same seeds at every step. All processes write them: they agree."""
    config = run.config
    texts = [
        prompt
        + generate(
            run.model,
            run.tokenizer,
            prompt,
            max_new_tokens=config.sample_tokens,
            seed=(config.seed + number) % (1 << 63),
            dtype=config.dtype,
        )
        for prompt in run.prompts
        for number in range(config.num_samples)
    ]
    return BETWEEN.join(texts)
