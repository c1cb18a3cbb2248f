"""Conversations as text: a special token for each speaker, and what each of them says after it."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from gpt2.errors import UserError
from gpt2.tokenizers import BPETokenizer, Tokenizer

ROLES = ("system", "user", "assistant")
"""Who speaks, in the words of OpenAI's API."""
MARKERS = tuple(f"<|{role}|>" for role in ROLES)
"""The special tokens with which a speaker begins."""
TEMPLATE = (
    "{{ eos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a role is system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same as `conversation`, as a Jinja template for other programs and for the server. It begins with end-of-text,
which stands before a document in the training text, too."""


def conversation(messages: Any, where: str, markers: Collection[str]) -> str:
    """Return messages, each an object with `role` and `content`, as one text.

    A content is a text, or a list of parts of type `text`, as in OpenAI's API. markers: the special tokens of the
    tokenizer, which nobody may say. where: the place of the messages, for errors. Raises UserError for anything else.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: no list of messages, each with role and content; fix the row or remove it")
    text = ""
    for number, message in enumerate(messages, start=1):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        content = joined(content)
        if role not in ROLES or content is None:
            raise UserError(
                f"{where}: message {number} needs a role (system, user or assistant) and a text as content; fix the "
                "row or remove it"
            )
        if message.get("tool_calls") or message.get("weight", 1) != 1:
            raise UserError(
                f"{where}: message {number} has tool_calls or a weight, which cannot be trained here; remove the "
                "row, or the messages from there on"
            )
        if said := [marker for marker in markers if marker in content]:
            raise UserError(
                f"{where}: message {number} contains the special token {said[0]}; remove it from the text"
            )
        text += f"<|{role}|>{content}"
    return text


def joined(content: Any) -> str | None:
    """Return a text that is given whole or as a list of parts of type `text`; None for any other content."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        return None
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(parts) else None


def with_speakers(tokenizer: Tokenizer) -> BPETokenizer:
    """Return a tokenizer with the special tokens of the speakers, and with the template of `conversation`.

    Tokens that it lacks get the ids after all others, and those that are words become markers. A generated text also
    ends where another speaker than the assistant begins. Raises UserError for a tokenizer that cannot have them, or
    that has another template.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise UserError(
            f"a {tokenizer.kind} tokenizer has no tokens for speakers; use --tokenizer=gpt2 or bpe for chats"
        )
    special = tokenizer.special
    if ordinary := [marker for marker in MARKERS if marker.encode() in tokenizer.tokens]:
        raise UserError(
            f"the tokenizer has {', '.join(ordinary)} as ordinary tokens, as a tokenizer file of llm.c has, which "
            "records no special tokens; name the model that the file was exported from with --tokenizer"
        )
    if special.chat_template not in (None, TEMPLATE):
        raise UserError(
            "the tokenizer has a chat template of its own; write the conversations as text by it, and prepare that "
            "text without --chat"
        )
    new = [marker for marker in MARKERS if marker not in special.ids]
    ids = dict(special.ids) | {marker: tokenizer.vocab_size + number for number, marker in enumerate(new)}
    ends = dict.fromkeys((*special.further_ends, ids["<|system|>"], ids["<|user|>"]))
    words = special.words - {*MARKERS}
    changed = replace(special, ids=ids, further_ends=tuple(ends), words=words, chat_template=TEMPLATE)
    return BPETokenizer(tokenizer.tokens, tokenizer.pattern, special=changed)
