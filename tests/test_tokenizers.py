import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2 import long_runs, tokenizers
from gpt2.errors import UserError
from gpt2.special_tokens import SpecialTokens, require_distinct
from gpt2.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, from_json, train_bpe

PROSE = "Once upon a midnight dreary, while I pondered, weak and weary,\nover many a quaint volume. " * 40

CONTRACTIONS = ["'s", "'d", "'m", "'t", "'ll", "'ve", "'re", "'S", "'LL", "'"]
AWKWARD = "".join(
    [
        " \n\t\r\x0b\x1c\x85\u00a0\u2028\u3000\u200b",  # whitespace of many kinds, and what only looks like it
        "’sdmtlvre019٣½Ⅷ!?.,-—<|>_#",
        "aZéßñ\u0301\u20dd日本ไท☕😀\u200d👩\ufe0f",
    ]
)
CHARACTERS = st.characters(exclude_categories=["Cs"])
ANY_TEXT = st.lists(st.sampled_from([*CONTRACTIONS, *AWKWARD]) | CHARACTERS).map("".join)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([PROSE], 300)


def test_characters_are_numbered_in_code_point_order() -> None:
    tokenizer = CharTokenizer.train("banana!")
    assert (tokenizer.characters, tokenizer.encode("nab!")) == ("!abn", [3, 1, 2, 0])


def test_unknown_character_is_named() -> None:
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        CharTokenizer("acfs").encode("cafés")


@given(st.text())
def test_bytes_round_trip_any_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_trained_bpe_round_trips_any_text(bpe: BPETokenizer) -> None:
    @given(st.text())
    def round_trip(text: str) -> None:
        assert bpe.decode(bpe.encode(text)) == text

    round_trip()


def test_trained_bpe_learns_the_size_asked_for_and_compresses(bpe: BPETokenizer) -> None:
    assert bpe.vocab_size == 300
    assert bpe.eot == 299
    assert len(bpe.encode(PROSE)) < len(PROSE) / 2


def test_hugging_faces_trainer_learns_tokens_that_compress_alike(bpe: BPETokenizer) -> None:
    library = pytest.importorskip("tokenizers", reason="needs Hugging Face's tokenizers")
    other = library.ByteLevelBPETokenizer()
    other.train_from_iterator([PROSE], vocab_size=299, show_progress=False)  # and end-of-text
    assert len(other.encode(PROSE).ids) == pytest.approx(len(bpe.encode(PROSE)), rel=0.05)


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="at least 257"):
        train_bpe([PROSE], 256)


@pytest.mark.parametrize("kind", ["char", "byte", "gpt2", "bpe"])
def test_an_array_holds_the_same_ids(kind: str, bpe: BPETokenizer, request: pytest.FixtureRequest) -> None:
    if kind == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    known = sorted({*AWKWARD, *"".join(CONTRACTIONS), *"<|endoftext|>", *"\ud83d\ude00"})
    makers = {"char": lambda: CharTokenizer("".join(known)), "byte": ByteTokenizer, "gpt2": tokenizers.gpt2_tokenizer}
    tokenizer = makers.get(kind, lambda: bpe)()
    pieces = st.sampled_from([*known, *CONTRACTIONS, "<|endoftext|>"])  # halves of surrogate pairs among them

    @given(st.lists(pieces if kind == "char" else pieces | st.characters()).map("".join))
    def alike(text: str) -> None:
        array = tokenizer.encode_array(text)
        assert (array.dtype, array.ndim) == (np.uint32, 1)
        assert array.tolist() == tokenizer.encode(text)

    alike()
    assert tokenizer.encode_array("").tolist() == []


@pytest.mark.parametrize("text", ["\x00", "cafés", "日", "\U0010ffff", "f\ud800", "caféß"])
def test_arrays_and_lists_refuse_the_same_characters(text: str) -> None:
    tokenizer = CharTokenizer("acfs")
    with pytest.raises(UserError) as expected:
        tokenizer.encode(text)
    with pytest.raises(UserError) as found:
        tokenizer.encode_array(text)
    assert str(found.value) == str(expected.value)


def test_half_a_surrogate_pair_is_a_replacement_character(bpe: BPETokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        for specials in (False, True):
            assert tokenizer.decode(tokenizer.encode("a\ud800b \ud83d\ude00", specials)) == "a\ufffdb 😀"


def test_end_of_text_is_a_token_only_where_asked_for(bpe: BPETokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode("a<|endoftext|>b", specials=True)
        assert ids.count(tokenizer.eot) == 1
        assert tokenizer.eot not in tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_special_tokens_follow_all_others(bpe: BPETokenizer) -> None:
    specials = ("<|user|>", "[PAD]")
    for eot in (None, 5):
        tokenizer = BPETokenizer(bpe.tokens, bpe.pattern, special=SpecialTokens.after(299, specials, eot))
        text = "Once<|user|> upon[PAD]<|endoftext|>"
        ids = tokenizer.encode(text, specials=True)
        once, upon = tokenizer.encode("Once"), tokenizer.encode(" upon")
        assert tokenizer.vocab_size == 302
        assert ids == [*once, 300, *upon, 301, tokenizer.eot]
        assert tokenizer.decode(ids) == text
        plain = tokenizer.encode(text)
        assert not {300, 301, tokenizer.eot} & set(plain)
        assert tokenizer.encode_array(text).tolist() == plain
        assert tokenizer.encode_array(text, specials=True).tolist() == ids
        assert tokenizer.decode(plain) == text


@pytest.mark.parametrize(
    ("specials", "message"),
    [
        (["<|a|>", ""], "empty"),
        (["<|a|>", "<|b|>", "<|a|>"], r"'<\|a\|>' is given twice"),
        (["<|endoftext|>"], r"given twice \(every BPE has <\|endoftext\|>\)"),
        (["<|a|>b", "<|aa", "<|a|>"], r"'<\|a\|>b' begins with another, '<\|a\|>'"),
        (["<|end"], "'<|endoftext|>' begins with another".replace("|", r"\|")),
        (["a"], "'a' is an ordinary token"),
        (["while"], "'while' is an ordinary token"),
        (["Ġweary"], "'Ġweary' is an ordinary token"),  # as Hugging Face's files write " weary"
        (["é"], "'é' is an ordinary token"),  # and the byte E9
        (["日"], "'日' is an ordinary token"),
        (["<\ud800>"], "not valid text"),
    ],
)
def test_special_tokens_that_could_be_confused_are_refused(specials: list[str], message: str) -> None:
    tokens = [*(bytes([b]) for b in range(256)), b"while", b" weary", "日".encode()]
    with pytest.raises(UserError, match=message):
        require_distinct(specials)
        BPETokenizer(tokens, tokenizers.GPT2_PATTERN, special=SpecialTokens.after(259, specials))
    allowed = SpecialTokens.after(259, ["a while", "é日", "<|a|>", "<|b|>"])
    BPETokenizer(tokens, tokenizers.GPT2_PATTERN, special=allowed)


def test_gpt2s_vocabulary_with_more_tokens_is_another(gpt2_vocabulary: None) -> None:
    gpt2 = tokenizers.gpt2_tokenizer()
    assert BPETokenizer(gpt2.tokens, gpt2.pattern, "gpt2", SpecialTokens.after(50256, ["[PAD]"])).kind == "bpe"


def test_training_leaves_room_for_special_tokens(bpe: BPETokenizer) -> None:
    tokenizer = train_bpe([PROSE], 302, ["<|user|>", "[PAD]"])
    assert (tokenizer.vocab_size, tokenizer.tokens) == (302, bpe.tokens)
    assert tokenizer.special.ids == {"<|endoftext|>": 299, "<|user|>": 300, "[PAD]": 301}
    with pytest.raises(UserError, match="at least 259"):
        train_bpe([PROSE], 258, ["<|user|>", "[PAD]"])


def test_training_refuses_special_tokens_before_it_reads() -> None:
    def texts() -> Iterator[str]:
        raise AssertionError("read")
        yield ""

    with pytest.raises(UserError, match="given twice"):
        train_bpe(texts(), 300, ["<|a|>", "<|a|>"])


def test_descriptions_without_special_tokens_are_as_before(bpe: BPETokenizer) -> None:
    assert bpe.to_json().keys() == {"kind", "pattern", "tokens"}


def test_json_restores_an_equal_tokenizer(bpe: BPETokenizer) -> None:
    special = BPETokenizer(bpe.tokens, bpe.pattern, special=SpecialTokens.after(299, ["<|user|>", "é日"]))
    for tokenizer in (CharTokenizer.train(PROSE), ByteTokenizer(), bpe, special):
        twin = from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert twin.encode(PROSE) == tokenizer.encode(PROSE)
        assert twin.to_json() == tokenizer.to_json()
        assert (twin.kind, twin.vocab_size, twin.eot) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot)


def test_the_older_form_of_special_tokens_is_read(bpe: BPETokenizer) -> None:
    tokenizer = from_json(bpe.to_json() | {"specials": ["<|user|>", "é日"], "eot": 3})
    assert tokenizer.special == SpecialTokens.after(299, ["<|user|>", "é日"], 3)


@pytest.mark.parametrize("specials", ["<|a|>", {"<|a|>": 1}, [1], None, ["<|a|>", "<|a|>"]])
def test_json_with_no_special_tokens_is_refused(specials: object, bpe: BPETokenizer) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        from_json(bpe.to_json() | {"specials": specials})


@pytest.mark.parametrize("value", [{}, {"kind": "word"}, {"kind": "char"}, {"kind": "bpe", "tokens": "?"}, [], None])
def test_json_that_describes_no_tokenizer_is_refused(value: object) -> None:
    with pytest.raises(UserError):
        from_json(value)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        ("hello world", [31373, 995]),
        (" Hello world", [18435, 995]),
        ("\n", [198]),
        ("1234567", [10163, 2231, 3134]),
        ("   three spaces", [220, 220, 1115, 9029]),
        ("naïve café ☕", [2616, 38776, 40304, 34719, 243]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_gpt2s_tokens(gpt2_vocabulary: None, text: str, ids: list[int]) -> None:
    tokenizer = tokenizers.gpt2_tokenizer()
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert from_json(tokenizer.to_json()).encode(text) == ids  # needs no cache and no network


def test_the_faster_pattern_splits_as_gpt2s(gpt2_vocabulary: None) -> None:
    import tiktoken

    reference, tokenizer = tiktoken.get_encoding("gpt2"), tokenizers.gpt2_tokenizer()
    assert tokenizer.pattern == tokenizers.GPT2_PATTERN == reference._pat_str

    @settings(max_examples=1000)
    @given(ANY_TEXT)
    def splits_alike(text: str) -> None:
        assert tokenizer.encode(text) == reference.encode_ordinary(text)

    splits_alike()


@pytest.mark.parametrize(
    "text",
    [
        *(space * 100_000 + end for space in (" ", "\n", "\u00a0") for end in ("", "a", "!", "\n")),
        "a" * 100_000,
        "".join(chr(33 + 7 * i % 15) for i in range(20_000)),
    ],
    ids=lambda text: f"{text[:2]!r}…{text[-1]!r}",
)
def test_long_runs_are_split_as_gpt2s(text: str, gpt2_vocabulary: None) -> None:
    import tiktoken

    assert tokenizers.gpt2_tokenizer().encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


RUNS = [
    " " * 50,
    "\n" * 50,
    " \n" * 30,
    "\r\n" * 30,
    "\t" * 41,
    "\u3000\u00a0" * 20,
    "\x1c" * 50,
    " " * 30 + "\x1c" * 30,
]


@given(st.lists(st.sampled_from([*RUNS, *AWKWARD, *CONTRACTIONS, "word", "<|endoftext|>", "\ud800"])).map("".join))
def test_runs_that_are_kept_from_the_regex_engine_give_the_same_ids(text: str) -> None:
    tokenizer = train_bpe([PROSE + " " * 30 + "\n" * 9], 300)
    expected = [tokenizer.encode(text), tokenizer.encode(text, specials=True)]
    assert tokenizer.encode_array(text).tolist() == expected[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_runs, "LONG_RUN", 10)
        assert [tokenizer.encode(text), tokenizer.encode(text, specials=True)] == expected
        assert tokenizer.encode_array(text).tolist() == expected[0]


@pytest.mark.parametrize("space", [" ", "\r\n", "\u00a0"])
def test_a_million_white_space_characters_are_one_word(space: str, bpe: BPETokenizer) -> None:
    run = (space * 1_200_000)[:1_200_000]
    expected = [i for word in ["weary", run[:-1]] for i in bpe.encoding._encode_single_piece(word)]
    expected += bpe.encode(run[-1] + "mary")
    assert bpe.encode("weary" + run + "mary") == expected
    assert bpe.encode_array("weary" + run + "mary").tolist() == expected
    at_the_end = bpe.encode("weary" + run + "<|endoftext|>mary", specials=True)
    assert at_the_end == [
        *(i for word in ["weary", run] for i in bpe.encoding._encode_single_piece(word)),
        bpe.eot,
        *bpe.encode("mary"),
    ]


def test_training_takes_a_million_spaces() -> None:
    tokenizer = train_bpe([PROSE + " " * 1_200_000 + "mary", "\n" * 1_200_000], 270)
    assert {b" " * 64, b"\n" * 64} <= set(tokenizer.tokens)


def test_another_pattern_refuses_what_it_cannot_read(bpe: BPETokenizer) -> None:
    other = BPETokenizer(bpe.tokens, r"\s+(?!\S)|\S+|\s")
    assert other.decode(other.encode("a" + " " * 300_000)) == "a" + " " * 300_000
    for encode in (other.encode, other.encode_array, lambda text: other.encode(text, specials=True)):
        with pytest.raises(UserError, match="more white space in a row than this tokenizer can read"):
            encode("a" + " " * 1_200_000)


@pytest.mark.parametrize("character", ["a", "7", "!", "é", "的", "\u0301", "😀", "\x00"])
def test_a_million_of_one_character_is_encoded_in_seconds(character: str, bpe: BPETokenizer) -> None:
    started = time.perf_counter()
    ids = bpe.encode(character * 1_000_000)
    assert time.perf_counter() - started < 10
    assert bpe.decode(ids) == character * 1_000_000


def test_training_learns_the_same_with_either_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [PROSE, "  I'll  see\n\n\t you're 12 345!?\r\n" * 30, AWKWARD * 5 + " " * 1000 + "a", PROSE.upper()]
    faster = train_bpe(texts, 700)
    monkeypatch.setattr(tokenizers, "_FAST_GPT2_PATTERN", tokenizers.GPT2_PATTERN)
    assert train_bpe(texts, 700).tokens == faster.tokens


def test_without_gpt2s_vocabulary_the_error_names_both_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tiktoken

    def offline(name: str) -> None:
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    tokenizers.gpt2_tokenizer.cache_clear()
    with pytest.raises(UserError, match=r"vocab\.bpe as 6d1cbeee.*encoder\.json as 6c7ea1a7.*TIKTOKEN_CACHE_DIR"):
        tokenizers.gpt2_tokenizer()
