"""Conversations: messages become text, speakers become special tokens, and the server writes the same text."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.chat import MARKERS, ROLES, conversation, with_speakers
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.serve.chat import rendered
from gpt2.serve.schema import Message
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer

BYTES = BPETokenizer([bytes([b]) for b in range(256)], GPT2_PATTERN)
SPEAKING = with_speakers(BYTES)
TALK = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
IDS = [258, *b"Hi!", 259, *b"Hello.", 256]


def prepared(folder: Path, rows: list[object], *, name: str = "t.jsonl", **settings: object) -> Dataset:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    options = {"tokenizer": BYTES, "chat": True} | settings
    return open_dataset(str(prepare(folder / name, out=folder / "data", **options)))


def ids_of(dataset: Dataset) -> list[int]:
    parts = [dataset.splits[name] for name in ("train", "val")]
    return [int(i) for part in parts for i in part[0 : len(part)]]


def test_messages_become_tokens_with_a_special_token_for_each_speaker(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, [{"messages": TALK, "id": 7}] * 40)
    assert ids_of(dataset) == IDS * 40
    assert dataset.tokenizer.special.ids == {"<|endoftext|>": 256, **dict(zip(MARKERS, (257, 258, 259), strict=True))}


def test_messages_of_parquet_and_of_another_field_are_read_too(tmp_path: Path) -> None:
    table = pyarrow.table({"talk": [TALK] * 40})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    out = prepare(tmp_path / "t.parquet", out=tmp_path / "data", chat=True, field="talk", tokenizer=BYTES)
    assert ids_of(open_dataset(str(out))) == IDS * 40


@pytest.mark.parametrize("length", range(60, 70))
def test_the_cut_between_training_and_validation_divides_no_speaker(length: int, tmp_path: Path) -> None:
    """A single document is cut after nine tenths of its characters."""
    row = {"text": f"<|user|>{length * 'x'}<|assistant|>abc"}
    dataset = prepared(tmp_path, [row], chat=False, tokenizer=SPEAKING)
    assert [i for i in ids_of(dataset) if i != 256] == [258, *length * b"x", 259, *b"abc"]
    assert min(map(len, dataset.splits.values())) > 0


@pytest.mark.parametrize(("count", "for_validation"), [(2, 1), (5, 1), (19, 1), (20, 2)])
@pytest.mark.parametrize("repeats", [1, 300])
def test_a_conversation_is_for_training_or_for_validation(
    count: int, for_validation: int, repeats: int, tmp_path: Path
) -> None:
    talk = [*TALK[:1], {"role": "assistant", "content": "Hello." * repeats}]
    dataset = prepared(tmp_path, [{"messages": talk}] * count)
    one = [258, *b"Hi!", 259, *b"Hello." * repeats, 256]
    for name, conversations in (("train", count - for_validation), ("val", for_validation)):
        tokens = dataset.splits[name]
        assert tokens[0 : len(tokens)].tolist() == one * conversations


def test_a_single_conversation_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is 1 conversation, and training and validation need one each"):
        prepared(tmp_path, [{"messages": TALK}])
    (tmp_path / "v.jsonl").write_text(json.dumps({"messages": TALK}))
    assert ids_of(prepared(tmp_path, [{"messages": TALK}], val=tmp_path / "v.jsonl")) == IDS * 2


def test_a_trained_vocabulary_has_the_speakers(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, [{"messages": TALK}] * 40, tokenizer="bpe", vocab_size=300)
    special = dataset.tokenizer.special
    assert set(special.ids) == {"<|endoftext|>", *MARKERS}
    assert special.further_ends == (special.ids["<|system|>"], special.ids["<|user|>"])
    assert dataset.tokenizer.decode(ids_of(dataset)) == "<|user|>Hi!<|assistant|>Hello.<|endoftext|>" * 40


def test_a_tokenizer_keeps_the_speakers_that_it_has() -> None:
    special = SpecialTokens.after(256, ["<|assistant|>", "<|tool|>"])
    found = with_speakers(BPETokenizer(BYTES.tokens, GPT2_PATTERN, special=special)).special
    assert found.ids == special.ids | {"<|system|>": 259, "<|user|>": 260}
    again = with_speakers(SPEAKING)
    assert again.to_json() == SPEAKING.to_json()


def test_a_message_may_contain_a_word_and_no_speaker(tmp_path: Path) -> None:
    """Words are tokens that a model's users added to its vocabulary, sometimes those of the speakers, too."""
    ids = {"<|endoftext|>": 256, "Hello": 257, "<|user|>": 258}
    special = SpecialTokens(ids, eos=256, words=frozenset(["Hello", "<|user|>"]))
    tokenizer = BPETokenizer(BYTES.tokens, GPT2_PATTERN, special=special)
    dataset = prepared(tmp_path, [{"messages": TALK}] * 40, tokenizer=tokenizer)
    assert ids_of(dataset) == [258, *b"Hi!", 260, 257, *b".", 256] * 40
    assert dataset.tokenizer.special.markers == ["<|endoftext|>", "<|user|>", "<|system|>", "<|assistant|>"]
    with pytest.raises(UserError, match=r"line 1: message 1 contains the special token <\|user\|>"):
        prepared(
            tmp_path, [{"messages": [{"role": "user", "content": "a<|user|>"}]}], tokenizer=tokenizer, overwrite=True
        )


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<|" not in text)


@given(st.lists(st.tuples(st.sampled_from(ROLES), words), min_size=1, max_size=5))
def test_the_server_writes_a_conversation_as_it_was_prepared(said: list[tuple[str, str]]) -> None:
    """The Jinja template and the function are two ways of the same; the server adds what stands before a
    document and what begins the next answer."""
    messages = [{"role": role, "content": content} for role, content in said]
    text = conversation(messages, "here", MARKERS)
    assert rendered(SPEAKING, [Message(**message) for message in messages]) == f"<|endoftext|>{text}<|assistant|>"


def test_the_server_begins_with_what_stands_before_a_document() -> None:
    """That is the token that ends a document, and not another one that other programs put before a text."""
    ids = {"<s>": 256, "</s>": 257}
    for bos in (256, None):
        special = SpecialTokens(ids, eos=257, bos=bos)
        tokenizer = with_speakers(BPETokenizer(BYTES.tokens, GPT2_PATTERN, special=special))
        text = rendered(tokenizer, [Message(role="user", content="Hi!")])
        assert text == "</s><|user|>Hi!<|assistant|>"
        assert tokenizer.encode(text, specials=True)[0] == tokenizer.eot


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "no list of messages"),
        ("Hi!", "no list of messages"),
        ([{"role": "tool", "content": "x"}], r"message 1 needs a role \(system, user or assistant\) and a text"),
        ([*TALK, {"role": "user"}], "message 3 needs a role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1 needs a role"),
        ([TALK[0], {**TALK[1], "weight": 0}], "message 2 has tool_calls or a weight"),
        ([TALK[0], {"role": "assistant", "content": "", "tool_calls": [{}]}], "message 2 has tool_calls or a weight"),
        ([*TALK, "Hi!"], "message 3 needs a role"),
        ([{"role": "user", "content": "a<|assistant|>b"}], r"message 1 contains the special token <\|assistant\|>"),
        ([{"role": "user", "content": "a<|endoftext|>b"}], r"message 1 contains the special token <\|endoftext\|>"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(messages: object, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"t\.jsonl, line 2: {line}"):
        prepared(tmp_path, [{"messages": TALK}, {"messages": messages}, {"messages": TALK}])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": "t.txt"}, r"--chat reads rows of messages .*t\.txt has none; write a \.jsonl file"),
        ({"tokenizer": "char"}, "a char tokenizer has no tokens for speakers; use --tokenizer=gpt2 or bpe"),
        ({"tokenizer": ByteTokenizer()}, "a byte tokenizer has no tokens for speakers"),
        ({"parse_special": False}, "leave --no-parse_special out with --chat"),
    ],
)
def test_what_conversations_cannot_be_is_refused(change: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        prepared(tmp_path, [{"messages": TALK}] * 40, **change)


def test_another_chat_template_is_not_replaced() -> None:
    special = SpecialTokens({"<|endoftext|>": 256}, eos=256, chat_template="{{ messages }}")
    with pytest.raises(UserError, match="the tokenizer has a chat template of its own"):
        with_speakers(BPETokenizer(BYTES.tokens, GPT2_PATTERN, special=special))
    with pytest.raises(UserError, match="a char tokenizer"):
        with_speakers(CharTokenizer("ab"))


@pytest.mark.parametrize("options", [{}, {"field": "messages"}])
def test_conversations_without_the_option_are_recognised(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.jsonl, line 1: .*; prepare conversations with gpt2 prepare --chat"):
        prepared(tmp_path, [{"messages": TALK}] * 40, chat=False, **options)
    pyarrow.parquet.write_table(pyarrow.table({"messages": [TALK]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet.*; prepare conversations with gpt2 prepare --chat"):
        prepare(tmp_path / "t.parquet", out=tmp_path / "data", **options)


def test_the_parts_of_a_message_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i!"}]
    assert ids_of(prepared(tmp_path, [{"messages": [{"role": "user", "content": parts}, TALK[1]]}] * 40)) == IDS * 40
