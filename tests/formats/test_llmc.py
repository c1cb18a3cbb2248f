"""llm.c's files, byte for byte: sizes and hashes are those of llm.c's own writers."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import assert_same_weights, characters, opened, source_of, toy

from gpt2.accounting import parameter_shapes
from gpt2.chat import with_speakers
from gpt2.errors import UserError
from gpt2.formats import llmc
from gpt2.formats.export import export
from gpt2.formats.open import named_tokenizer, open_model
from gpt2.formats.tokenizer_files import llmc_bytes, open_tokenizer
from gpt2.formats.tokenizer_writer import write_llmc
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, gpt2_tokenizer, train_bpe


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def numbered() -> GPT:
    """The test vector's model: scalar k of the file is ((7919·k mod 1009)/1009 − 0.5)·0.4, gains one more."""
    config = GPTConfig(block_size=4, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
    model, shapes, k = GPT(config).eval(), dict(parameter_shapes(config)), 0
    with torch.no_grad():
        for name in llmc.file_order(config):
            count = int(np.prod(shapes[name]))
            values = ((7919 * np.arange(k, k + count)) % 1009 / 1009 - 0.5) * 0.4
            gain = name.endswith("weight") and "ln_" in name
            model.get_parameter(name).copy_(torch.from_numpy(values + gain).view(shapes[name]))
            k += count
    assert k == 1880
    return model


def test_the_test_vector_gives_the_published_files(numbered: GPT, tmp_path: Path) -> None:
    llmc.write_model(numbered, tmp_path / "a.bin", torch.float32)
    llmc.write_model(numbered, tmp_path / "b.bin", torch.bfloat16)
    one, two = (tmp_path / "a.bin").read_bytes(), (tmp_path / "b.bin").read_bytes()
    assert sha256(one) == "7ee79cf0107445430ff44e369108c74cf8596e569474620e3d1897d580a0d0e9"
    assert sha256(two) == "d6487ba6c2020f4b9cbf501935070258f15e43dedcc9e1fe40508c2770055d93"
    assert_same_weights(opened(tmp_path / "a.bin"), numbered)
    for name, p in opened(tmp_path / "b.bin").named_parameters():
        assert torch.equal(p, numbered.get_parameter(name).bfloat16().float())


@pytest.mark.parametrize(
    ("preset", "size", "stem"),
    [
        ("gpt2", 497_904_640, "gpt2_124M"),
        ("gpt2-medium", 1_419_486_208, "gpt2_355M"),
        ("gpt2-large", 3_096_361_984, "gpt2_774M"),
        ("gpt2-xl", 6_230_746_624, "gpt2_1558M"),
    ],
)
def test_published_sizes(preset: str, size: int, stem: str) -> None:
    config = GPTConfig.preset(preset)
    shapes = dict(parameter_shapes(config))
    rows = llmc.padded(config.vocab_size) - config.vocab_size
    assert 1024 + 4 * (sum(int(np.prod(shapes[n])) for n in llmc.file_order(config)) + rows * config.n_embd) == size
    assert llmc.stem(config) == stem


def test_the_debug_state(numbered: GPT, tmp_path: Path) -> None:
    """Gradients against a float64 copy; the padding rows of the embedding and of its gradient are zero."""
    x, y = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]])
    llmc.write_state(numbered, x, y, tmp_path / "state.bin")
    data = (tmp_path / "state.bin").read_bytes()
    assert np.frombuffer(data[:16], "<i4").tolist() == [20240327, 2, 1, 4]
    assert np.frombuffer(data[1024:1056], "<i4").tolist() == [1, 2, 3, 4, 2, 3, 4, 5]
    numbers = np.frombuffer(data[1056:], "<f4")
    logits, loss, gradients = numbers[:44], numbers[44], numbers[45:]
    assert logits[33:36] == pytest.approx([0.1982217887, -0.3654025188, 0.4770819950], abs=1e-6)
    assert loss == pytest.approx(2.654922545546, abs=1e-6)
    assert gradients.size == 1880 + 117 * 8
    assert np.linalg.norm(gradients) == pytest.approx(2.514224788071, abs=1e-5)
    assert gradients[8] == pytest.approx(0.076848778472, abs=1e-6)  # wte[1, 0], embedding and head together
    assert not gradients[11 * 8 : 128 * 8].any()
    assert gradients[128 * 8] == pytest.approx(0.097734678238, abs=1e-6)  # wpe[0, 0]
    assert gradients[-1] == pytest.approx(0.032022947412, abs=1e-6)  # lnfb[7]
    assert numbered.transformer.wte.weight.grad is None


def test_bfloat16_rounds_to_even(tmp_path: Path) -> None:
    model = toy(vocab_size=11, n_embd=8)
    values = [1.00390625, 1.01171875, -3.14159265, 0.02, 65504]
    with torch.no_grad():
        model.transformer.wte.weight[0, :5] = torch.tensor(values)
    llmc.write_model(model, tmp_path / "x.bin", torch.bfloat16)
    bits = np.frombuffer((tmp_path / "x.bin").read_bytes()[1024:1034], "<u2")
    assert [f"{b:04x}" for b in bits] == ["3f80", "3f82", "c049", "3ca4", "4780"]


def test_the_tokenizer_file(tmp_path: Path) -> None:
    tokens = [b"a", b"bc", b"<|endoftext|>"]
    data = llmc_bytes(tokens, eot=2)
    assert len(data) == 1043
    assert sha256(data) == "c8d3ef2db75f68c8566bb6abd2a2b271ba51a07eb7f17876f92edf50e001897c"


def test_gpt2s_tokenizer_file(gpt2_vocabulary: None, tmp_path: Path) -> None:
    write_llmc(gpt2_tokenizer(), tmp_path / "gpt2_tokenizer.bin")
    data = (tmp_path / "gpt2_tokenizer.bin").read_bytes()
    assert len(data) == 372_108
    assert sha256(data) == "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13"
    assert open_tokenizer(str(tmp_path)).to_json() == gpt2_tokenizer().to_json()


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_every_tokenizer_comes_back(kind: str, text: str, tmp_path: Path) -> None:
    tokenizer = {"byte": ByteTokenizer(), "bpe": train_bpe([text], 300), "char": characters(40)}[kind]
    write_llmc(tokenizer, tmp_path / "gpt2_tokenizer.bin")
    assert open_tokenizer(str(tmp_path / "gpt2_tokenizer.bin")).to_json() == tokenizer.to_json()


def test_special_tokens_are_written_and_the_loss_is_reported(text: str, tmp_path: Path) -> None:
    notes: list[str] = []
    tokenizer = train_bpe([text], 302, ["<|user|>", "[PAD]"])
    export(source_of(toy(vocab_size=302), tokenizer), "llmc", tmp_path / "x", notes.append)
    assert notes == [
        "llm.c's tokenizer file records no special token but <|endoftext|>: <|user|>, [PAD] become ordinary tokens "
        "there; keep the model itself, or an export as hf or gguf, to train on or to chat"
    ]
    ids = tokenizer.encode("a<|user|>b[PAD]<|endoftext|>", specials=True)
    assert open_tokenizer(str(tmp_path / "x")).decode(ids) == "a<|user|>b[PAD]<|endoftext|>"


def test_what_the_lost_special_tokens_prevent_is_explained(text: str, tmp_path: Path) -> None:
    tokenizer = with_speakers(train_bpe([text], 300))
    export(source_of(toy(vocab_size=303), tokenizer), "gguf", tmp_path / "x.gguf", print)
    export(open_model(tmp_path / "x.gguf"), "llmc", tmp_path / "x", print)
    with pytest.raises(UserError, match=r"as a tokenizer file of llm.c has, .* name the model that the file was ex"):
        with_speakers(named_tokenizer(str(tmp_path / "x")))
    for name in ("hf", "gguf"):
        with pytest.raises(UserError, match=r"llm\.c's files do not record, name the tokenizer .* by --tokenizer"):
            export(open_model(tmp_path / "x"), name, tmp_path / name, print)
        again = export(open_model(tmp_path / "x", str(tmp_path / "x.gguf")), name, tmp_path / name, print).out
        assert open_model(again).tokenizer.to_json() == tokenizer.to_json()


def test_samples_of_a_character_model_start_from_a_newline(tmp_path: Path) -> None:
    write_llmc(characters(20), tmp_path / "t.bin")
    header = np.frombuffer((tmp_path / "t.bin").read_bytes()[:16], "<i4")
    assert characters(20).characters[header[3]] == "\n"


def test_padding_that_is_not_zero_is_reported(tmp_path: Path) -> None:
    done = export(source_of(toy(), characters(33)), "llmc", tmp_path / "x", lambda line: None)
    path = done.out / "gpt2_d2.bin"
    data = bytearray(path.read_bytes())
    data[1024 + 4 * 8 * 40] = 1
    path.write_bytes(data)
    assert "95 padding rows that are not zero" in llmc.open_file(path).notes[0]


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (0, 20240327, "is a debug state of llm.c's"),
        (1, 4, "version 4"),
        (2, -1, "block_size is -1"),
        (3, 200, "128 embedding rows for 200 tokens"),
        (4, 3, "its header asks for"),
        (5, 3, "n_head=3"),
        (6, 1 << 30, "its header asks for"),
        (7, 256, "its header asks for"),
    ],
)
def test_a_wrong_header_is_named(word: int, value: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    llmc.write_model(toy(), path, torch.float32)
    data = bytearray(path.read_bytes())
    data[4 * word : 4 * word + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        opened(path)
