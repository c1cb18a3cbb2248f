"""Writes a conversation as one text, by the Jinja template that came with a model."""

import functools
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt2.serve.errors import ApiError
from gpt2.serve.schema import Message
from gpt2.tokenizers import Tokenizer


def rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Return the prompt for the next message of the assistant.

    The template is rendered as transformers' `apply_chat_template` does it. Raises ApiError where the model has no
    template, and where the template refuses the messages.
    """
    template = tokenizer.special.chat_template
    if template is None:
        raise ApiError(
            400,
            "this model has no chat template, by which messages become a text; use /v1/completions, or serve a model "
            "whose folder has chat_template.jinja",
            param="messages",
        )
    roles = {f"{role}_token": tokenizer.special.named(i) for role, i in tokenizer.special.roles.items()}
    said = [message.model_dump(exclude_none=True) for message in messages]
    try:
        return _compiled(template).render(messages=said, add_generation_prompt=True, **roles)
    except (TemplateError, TypeError, ValueError, OverflowError) as error:
        raise ApiError(400, f"the model's chat template refuses the messages: {error}", param="messages") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template, globals={"raise_exception": _refuse})


def _refuse(message: str) -> None:
    """Raise the error that a template gives, as `raise_exception` in transformers' templates."""
    raise TemplateError(message)
