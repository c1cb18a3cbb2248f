"""Special tokens on their way through every format: kept, or named as lost."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.toys import source_of, toy

import gpt2
import gpt2.tokenizers
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import BPETokenizer, Tokenizer, has_ids_of, train_bpe

TEXT = "the quick brown fox jumps over the lazy dog, hello world. " * 30
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def chat() -> BPETokenizer:
    """A tokenizer with everything that a chat model has: turns, several ends, padding, an added word, a template."""
    tokens = train_bpe([TEXT], 290).tokens
    first = len(tokens)
    names = ["<|endoftext|>", "<bos>", "<eos>", "<pad>", "<|user|>", "<|end|>", "supercalifragilistic"]
    ids = {name: first + number for number, name in enumerate(names)}
    special = SpecialTokens(
        ids,
        eos=ids["<eos>"],
        bos=ids["<bos>"],
        unk=ids["<|endoftext|>"],
        pad=ids["<pad>"],
        further_ends=(ids["<|end|>"],),
        words=frozenset({"supercalifragilistic"}),
        chat_template=TEMPLATE,
    )
    return BPETokenizer(tokens, gpt2.tokenizers.GPT2_PATTERN, special=special)


def exported(tokenizer: Tokenizer, format: str, folder: Path) -> tuple[Path, list[str]]:
    notes: list[str] = []
    model = toy(vocab_size=tokenizer.vocab_size)
    out = folder / format
    export(source_of(model, tokenizer), format, out, notes.append)
    return out, notes


@pytest.mark.parametrize("format", ["hf", "gguf", "safetensors"])
def test_formats_that_hold_everything_give_everything_back(format: str, chat: BPETokenizer, tmp_path: Path) -> None:
    out, notes = exported(chat, format, tmp_path)
    again = open_model(str(out)).tokenizer
    assert again.to_json() == chat.to_json()
    assert [note for note in notes if "lost" in note or "ordinary tokens" in note] == []


def test_what_the_other_formats_lose_is_named(chat: BPETokenizer, tmp_path: Path) -> None:
    out, notes = exported(chat, "llmc", tmp_path)
    (note,) = [note for note in notes if "special token" in note]
    assert all(text in note for text in chat.special.ids if text != "<|endoftext|>")
    assert "end at no token" in note
    assert open_model(str(out)).tokenizer.decode(chat.encode("hello<eos>", specials=True)) == "hello<eos>"
    _, notes = exported(chat, "nanogpt", tmp_path)
    assert any("record neither the tokens nor which are special" in note for note in notes)


def test_a_run_keeps_them(chat: BPETokenizer, tmp_path: Path) -> None:
    """A model that is fine-tuned on data of its plain vocabulary keeps its own special tokens, as do its exports."""
    out, _ = exported(chat, "hf", tmp_path)
    plain = BPETokenizer(chat.tokens, chat.pattern)
    assert has_ids_of(chat, plain)
    assert not has_ids_of(plain, chat)
    bare, shifted = (BPETokenizer(chat.tokens, chat.pattern, special=SpecialTokens(ids)) for ids in ({}, {"<s>": 0}))
    assert not has_ids_of(shifted, bare)
    (tmp_path / "t.txt").write_text(TEXT)
    prepare(tmp_path / "t.txt", out=tmp_path / "data", tokenizer=plain)
    config = gpt2.TrainConfig(
        dataset=str(tmp_path / "data"), out_dir=str(tmp_path / "run"), init_from=str(out), max_iters=1, batch_size=2,
        block_size=8, eval_interval=1, eval_iters=1, device="cpu", dtype="float32", compile=False,
    )  # fmt: skip
    gpt2.train(config)
    assert open_model(str(tmp_path / "run")).tokenizer.to_json() == chat.to_json()
    gpt2.train(dataclasses.replace(config, init_from="resume", max_iters=2))
    assert open_model(str(tmp_path / "run")).tokenizer.to_json() == chat.to_json()


def test_transformers_reads_the_same(chat: BPETokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    out, _ = exported(chat, "hf", tmp_path)
    fast = transformers.AutoTokenizer.from_pretrained(out)
    assert (fast.bos_token, fast.eos_token, fast.pad_token, fast.unk_token) == (
        "<bos>",
        "<eos>",
        "<pad>",
        "<|endoftext|>",
    )
    for text in ("<|user|>hello<|end|> quick<eos><|endoftext|>", "a supercalifragilistic fox", "<|us er|>"):
        assert fast(text)["input_ids"] == chat.encode(text, specials=True)
    assert fast.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<|user|>hello"
    network = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert network.generation_config.eos_token_id == list(chat.special.ends)
    assert network.generation_config.pad_token_id == chat.special.pad
    fast.save_pretrained(tmp_path / "again")
    network.save_pretrained(tmp_path / "again")
    assert open_model(str(tmp_path / "again")).tokenizer.to_json() == chat.to_json()


@pytest.mark.parametrize("end", ["<eos>", "<|end|>", "<|endoftext|>"])
def test_sampling_stops_where_transformers_stops(end: str, chat: BPETokenizer, tmp_path: Path) -> None:
    """A model that says `end` after everything stops at it if, and only if, it is one of the ends."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model = toy(vocab_size=chat.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[chat.special.ids[end]] = 1.0
    export(source_of(model, chat), "hf", tmp_path / "hf", lambda line: None)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = chat.encode("hello")
    theirs = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)[0, len(prompt) :].tolist()
    ours = gpt2.generate(*gpt2.load(tmp_path / "hf"), "hello", temperature=0, max_new_tokens=5)
    assert ours == chat.decode([i for i in theirs if i not in chat.special.ends])
    assert (ours == "") == (end != "<|endoftext|>")


def test_gguf_records_kinds_roles_and_template(chat: BPETokenizer, tmp_path: Path) -> None:
    library = pytest.importorskip("gguf", reason="needs gguf")
    out, notes = exported(chat, "gguf", tmp_path)
    fields = {name: field.contents() for name, field in library.GGUFReader(out).fields.items()}
    types = fields["tokenizer.ggml.token_type"]
    assert types[-7:] == [library.TokenType.CONTROL] * 6 + [library.TokenType.USER_DEFINED]
    keys = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    assert {r: fields[f"tokenizer.ggml.{r}_token_id"] for r in keys} == {
        r: chat.special.roles[o] for r, o in keys.items()
    }
    assert fields["tokenizer.ggml.eot_token_id"] == chat.special.ids["<|end|>"]
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert any("llama.cpp ends a text at <|endoftext|> too" in note for note in notes)


def test_llama_cpp_ends_texts_where_we_do(chat: BPETokenizer, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    out, _ = exported(chat, "gguf", tmp_path)
    model = llama_cpp.Llama(str(out), n_ctx=16, verbose=False, n_threads=1)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    ends = {i for i in range(chat.vocab_size) if llama_cpp.llama_vocab_is_eog(vocab, i)}
    assert ends == {*chat.special.ends, chat.special.ids["<|endoftext|>"]}  # the line of the export says so
    text = "<|user|>hello<|end|> quick supercalifragilistic<eos>"
    assert model.tokenize(text.encode(), add_bos=False, special=True) == chat.encode(text, specials=True)


def test_more_ends_than_gguf_holds_are_named(chat: BPETokenizer, tmp_path: Path) -> None:
    ids = chat.special.ids
    special = dataclasses.replace(chat.special, further_ends=(ids["<|end|>"], ids["<|user|>"], ids["<bos>"]))
    _, notes = exported(BPETokenizer(chat.tokens, chat.pattern, special=special), "gguf", tmp_path)
    assert any("at most 3 tokens that end a text: not <bos>" in note for note in notes)


def test_older_folders_list_their_tokens_in_added_tokens_json(chat: BPETokenizer, tmp_path: Path) -> None:
    """These are the files that transformers 4.2 saves."""
    out, _ = exported(chat, "hf", tmp_path)
    content = json.loads((out / "tokenizer.json").read_text())["model"]
    (out / "vocab.json").write_text(json.dumps({t: i for t, i in content["vocab"].items() if t != "<eos>"}))
    lines = [" ".join(pair) for pair in content["merges"]]
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    (out / "added_tokens.json").write_text(json.dumps(dict(chat.special.ids)))
    roles = {f"{role}_token": chat.special.named(i) for role, i in chat.special.roles.items()}
    roles["bos_token"] = {"content": "<bos>", "lstrip": False}
    further = {"additional_special_tokens": ["<|user|>", "<|end|>"]}
    (out / "special_tokens_map.json").write_text(json.dumps(roles | further))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (out / "tokenizer.json").unlink()
    assert open_model(str(out)).tokenizer.to_json() == chat.to_json()


def test_special_tokens_may_have_the_first_ids(tmp_path: Path) -> None:
    """The order of Hugging Face's tutorials: <s>, <pad>, </s>, then the bytes and the merges."""
    base = train_bpe([TEXT], 290)
    special = SpecialTokens({"<s>": 0, "<pad>": 1, "</s>": 2}, eos=2, bos=0, pad=1)
    tokenizer = BPETokenizer(base.tokens, base.pattern, special=special)
    assert tokenizer.encode("<s>the quick</s>", specials=True) == [0, *(i + 3 for i in base.encode("the quick")), 2]
    for format in ("hf", "gguf", "safetensors"):
        out, _ = exported(tokenizer, format, tmp_path)
        assert open_model(str(out)).tokenizer.to_json() == tokenizer.to_json()
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert fast("<s>the quick</s>")["input_ids"] == tokenizer.encode("<s>the quick</s>", specials=True)


@pytest.mark.parametrize(
    "values",
    [
        {"ids": {"<a>": 290, "<b>": 290}},  # one id for two
        {"ids": {"<a>": 295}},  # a gap
        {"ids": {"<a>": "290"}},
        {"ids": {"": 290}},
        {"ids": {"<a>": 290}, "eos": 1000},
        {"ids": {"<a>": 290}, "words": ["<b>"]},
        {"ids": {"<a>": 290}, "chat_template": 5},
        {"ids": ["<a>"]},
        {"ids": {"<a>": -1}},
        {},
    ],
)
def test_impossible_special_tokens_are_refused(values: dict[str, Any]) -> None:
    description = train_bpe([TEXT], 291).to_json() | {"special_tokens": values}
    with pytest.raises(UserError, match="cannot be read"):
        gpt2.tokenizers.from_json(description)


def test_an_ordinary_token_that_serves_as_padding_stays_ordinary(chat: BPETokenizer, tmp_path: Path) -> None:
    """`pad_token="!"` is common. The text ! stays what it was."""
    base = train_bpe([TEXT], 290)
    out, _ = exported(base, "hf", tmp_path)
    path = out / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    again = open_model(str(out)).tokenizer
    assert again.special.pad == base.encode("!")[0]
    assert again.encode("no!") == base.encode("no!")
    export(open_model(str(out)), "hf", tmp_path / "again", lambda line: None)
    assert open_model(str(tmp_path / "again")).tokenizer.special == again.special
