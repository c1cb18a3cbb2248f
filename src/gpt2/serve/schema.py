"""The bodies of requests: their fields, and what is said about a wrong one."""

import json
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gpt2.chat import joined
from gpt2.serve.errors import ApiError
from gpt2.spelling import nearest

MOST_CHOICES = 128
"""Maximum number of choices of a request, as in OpenAI's API."""
ModelName = Annotated[
    str | None,
    Field(description="Name of a served model, as /v1/models lists it; may be omitted where only one is served."),
]
Ids = list[Annotated[int, Field(ge=0)]]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[list[Stop], Field(max_length=16)]
Body = TypeVar("Body", bound="Strict")


class Strict(BaseModel):
    """A body whose fields have exactly the types that they are given, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    """Says what a stream reports besides the text."""

    include_usage: bool = False
    """Whether the last event counts the tokens."""


class Settings(Strict):
    """The settings that both kinds of completions have. Names, defaults and bounds are those of OpenAI's API."""

    model: ModelName = None
    temperature: float = Field(
        1.0, ge=0, le=1000, description="0 takes the most likely token; a higher one is more varied."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Choose from the most likely tokens whose probabilities reach this."
    )
    top_k: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Choose from this number of most likely tokens; 0 means all (not OpenAI's).",
    )
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Choose from tokens this many times as likely as the likeliest (not OpenAI's).",
    )
    repetition_penalty: float = Field(
        1.0, ge=0.001, le=1000, description="Above 1, tokens of the text become less likely (not OpenAI's)."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Is subtracted from the logits of tokens in the text."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Is subtracted from a logit for each time that its token is in the text."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="What is added to the logits of token ids; -100 bans a token."
    )
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="Number of choices for each prompt.")
    seed: int | None = Field(
        None, ge=0, lt=2**62, description="The same seed gives the same text. Choice i has the seed + i."
    )
    stop: Stop | Stops | None = Field(
        None, description="Text before which a choice ends, or up to 16 of them; none of them is empty."
    )
    stream: bool = Field(False, description="Whether text is sent as it is generated, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only for streams.")
    user: str | None = Field(None, description="Is ignored.")

    @property
    def stops(self) -> list[str]:
        """Return the stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(Settings):
    """Asks for the texts that continue prompts."""

    prompt: str | list[str] | Ids | list[Ids] = Field(
        "", description="A text, a list of texts, a list of token ids, or a list of such lists."
    )
    max_tokens: int | None = Field(16, ge=0, description="Maximum number of new tokens of a choice.")
    logprobs: int | None = Field(
        None, ge=0, le=100, description="Report each token's log-probability and this number of most likely ones."
    )
    echo: bool = Field(False, description="Whether a choice begins with its prompt.")
    best_of: int | None = Field(
        None, ge=1, le=MOST_CHOICES, description="Generate this number of choices, and return the n most likely ones."
    )
    suffix: str | None = Field(None, description="Must be empty: GPT-2 cannot insert text before a suffix.")


def _joined(content: Any) -> Any:
    """Return the text of a message that is given in parts. Raises ValueError for parts of other kinds, as images."""
    if not isinstance(content, list):
        return content
    if (text := joined(content)) is None:
        raise ValueError("every part of a message must be of type text and have a text; GPT-2 reads nothing else")
    return text


class Message(Strict):
    """A message is what somebody says in a conversation."""

    role: str = Field(min_length=1, max_length=100)
    content: Annotated[str, BeforeValidator(_joined)] = Field(description="A text, or a list of its parts.")
    name: str | None = None


class ChatBody(Settings):
    """Asks for the next message of a conversation."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_tokens: int | None = Field(
        None, ge=1, description="Maximum number of new tokens; by default, what fits into the context."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="Another name for max_tokens.")
    logprobs: bool = Field(False, description="Whether the log-probability of each token is reported.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Number of most likely tokens to report with each token; needs logprobs."
    )


class TokenizeBody(Strict):
    """Asks for the token ids of a text."""

    model: ModelName = None
    prompt: str
    add_special_tokens: bool = Field(False, description="Is ignored: GPT-2's tokenizers add no tokens to a text.")


class DetokenizeBody(Strict):
    """Asks for the text of token ids."""

    model: ModelName = None
    tokens: Ids


def parse(kind: type[Body], content: bytes) -> Body:
    """Return the body of a request. Raises ApiError, status 400, which names the field that is wrong."""
    try:
        return kind.model_validate_json(_without_nulls(kind, content))
    except ValidationError as error:
        raise _explained(kind, error.errors(include_url=False, include_context=False)) from None


def _without_nulls(kind: type[Strict], content: bytes) -> bytes:
    """Return a body without the fields that are null and may not be: some clients send every field.

    Null then means the default, as in OpenAI's API. A body that is no JSON object stays what it is.
    """
    if b"null" not in content:
        return content
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(body, dict):
        return content
    fields = kind.model_fields
    refused = {name for name in fields if NoneType not in get_args(fields[name].annotation)}
    return json.dumps({name: body[name] for name in body if body[name] is not None or name not in refused}).encode()


def _explained(kind: type[Strict], errors: list[Any]) -> ApiError:
    """Return the error to answer with: the first one of the field that is named first."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if not first["loc"]:
        return ApiError(400, "the body must be a JSON object")
    field = str(first["loc"][0])
    place = ".".join(str(part)[:100] for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = nearest(field, kind.model_fields) if len(first["loc"]) == 1 else None
        hint = f"did you mean {close!r}?" if close else "remove it"
        return ApiError(400, f"unknown field {place!r}; {hint}", param=field[:100])
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return ApiError(400, f"the field {field!r} is missing", param=field)
    alternatives = {error["loc"][1] for error in errors if error["loc"][0] == field and len(error["loc"]) > 1}
    described = kind.model_fields[field].description if field in kind.model_fields else None
    if len(errors) > 1 and len(alternatives) > 1 and described:  # it fits none of several types
        return ApiError(400, f"{field} has a wrong type or value. {described}", param=field)
    return ApiError(400, f"{place}: {first['msg'].removeprefix('Value error, ')}", param=field)
