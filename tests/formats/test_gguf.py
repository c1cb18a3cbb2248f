"""GGUF files compared with llama.cpp's own Python package, as reader and as quantiser."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import characters, opened, source_of, toy

from gpt2.errors import UserError
from gpt2.formats import gguf
from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, train_bpe

library = pytest.importorskip("gguf", reason="needs the gguf package")


def made(path: Path, dtype: str = "float32", tokenizer: Tokenizer | None = None, **changes: object) -> Path:
    tokenizer = tokenizer or characters(33)
    model = toy(n_embd=32, vocab_size=tokenizer.vocab_size, **changes)
    return export(source_of(model, tokenizer), "gguf", path / "m.gguf", lambda line: None, dtype).out


def test_llama_cpps_reader_finds_what_it_needs(tmp_path: Path) -> None:
    path = made(tmp_path)
    reader = library.GGUFReader(path)
    model = toy(n_embd=32)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2"
    assert fields["gpt2.context_length"] == 16
    assert fields["gpt2.embedding_length"] == 32
    assert fields["gpt2.feed_forward_length"] == 128
    assert fields["gpt2.block_count"] == 2
    assert fields["gpt2.attention.head_count"] == 2
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert len(fields["tokenizer.ggml.tokens"]) == 33
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == 2 + 12 * 2 + 2
    expected = library.get_tensor_name_map(library.MODEL_ARCH.GPT2, 2)
    for name, parameter in model.named_parameters():
        tensor = tensors[expected.get_name(name, (".weight", ".bias"))]  # its own table of Hugging Face's names
        assert np.array_equal(tensor.data, parameter.detach().numpy()), name
        assert list(tensor.shape) == list(parameter.shape)[::-1]


def test_q8_0_is_ggmls(tmp_path: Path) -> None:
    path = made(tmp_path, "q8_0")
    tensors = {t.name: t for t in library.GGUFReader(path).tensors}
    weight = toy(n_embd=32).transformer.h[1].mlp.c_fc.weight.detach().numpy()
    quantised = library.quants.quantize(weight, library.GGMLQuantizationType.Q8_0)
    assert np.array_equal(tensors["blk.1.ffn_up.weight"].data, quantised)
    back = opened(path).transformer.h[1].mlp.c_fc.weight.detach().numpy()
    assert np.array_equal(back, library.quants.dequantize(quantised, library.GGMLQuantizationType.Q8_0))
    assert tensors["position_embd.weight"].tensor_type == library.GGMLQuantizationType.F32
    assert tensors["blk.1.ffn_norm.weight"].tensor_type == library.GGMLQuantizationType.F32


def test_a_block_of_zeros_stays_zero() -> None:
    assert not gguf._to_q8(torch.zeros(2, 32)).any()


def test_a_file_of_llama_cpps_writer_is_read(tmp_path: Path) -> None:
    """With a head of its own that equals the embedding, as its older converters wrote."""
    model = toy(n_embd=32)
    writer = library.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_block_count(2)
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    names = library.get_tensor_name_map(library.MODEL_ARCH.GPT2, 2)
    for name, parameter in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), parameter.detach().numpy())
    writer.add_tensor("output.weight", model.transformer.wte.weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for (name, p), q in zip(model.named_parameters(), opened(tmp_path / "m.gguf").parameters(), strict=True):
        assert torch.equal(p, q), name
    assert open_model(str(tmp_path / "m.gguf")).find_tokenizer() is None


@pytest.mark.parametrize("kind", ["byte", "bpe", "specials", "late", "char"])
def test_the_tokenizer_comes_back(kind: str, text: str, tmp_path: Path) -> None:
    bpe, specials = train_bpe([text], 300), ["<|user|>", "é日 <"]
    tokenizer = {
        "byte": ByteTokenizer(),
        "bpe": bpe,
        "specials": BPETokenizer(bpe.tokens, bpe.pattern, special=SpecialTokens.after(299, specials)),
        "late": BPETokenizer(bpe.tokens, bpe.pattern, special=SpecialTokens.after(299, specials, eot=3)),
        "char": characters(33),
    }[kind]
    assert open_model(str(made(tmp_path, tokenizer=tokenizer))).tokenizer.to_json() == tokenizer.to_json()


def test_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="q8_0 needs"):
        export(source_of(toy(), characters(33)), "gguf", tmp_path / "a", lambda line: None, "q8_0")
    with pytest.raises(UserError, match="no tokenizer"):
        export(source_of(toy(), None), "gguf", tmp_path / "b", lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_formats_are_refused_by_name(tmp_path: Path) -> None:
    writer = library.GGUFWriter(tmp_path / "llama.gguf", "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="llama"):
        opened(tmp_path / "llama.gguf")
    writer = library.GGUFWriter(tmp_path / "q4.gguf", "gpt2")
    quantised = library.quants.quantize(np.ones((4, 32), np.float32), library.GGMLQuantizationType.Q4_0)
    writer.add_tensor("token_embd.weight", quantised, raw_dtype=library.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="ggml's type 2"):
        opened(tmp_path / "q4.gguf")


def test_a_different_treatment_of_the_tokenizer_in_llama_cpp_is_reported(text: str, tmp_path: Path) -> None:
    notes: list[str] = []
    tokenizer = characters(33)
    export(source_of(toy(), tokenizer), "gguf", tmp_path / "a", notes.append)
    assert f"takes id 11 ({tokenizer.characters[11]!r}) for the end of a text" in notes[0]
    notes.clear()
    bpe = BPETokenizer(train_bpe([text], 300).tokens, r"[a-z]+|[^a-z]")
    export(source_of(toy(vocab_size=300), bpe), "gguf", tmp_path / "b", notes.append)
    assert "splits text by GPT-2's pattern" in notes[0]


def test_the_file_records_which_tokens_are_special(text: str, tmp_path: Path) -> None:
    path = made(tmp_path, tokenizer=train_bpe([text], 302, ["<|user|>", "é日 <"]))
    fields = {name: field.contents() for name, field in library.GGUFReader(path).fields.items()}
    assert fields["tokenizer.ggml.tokens"][-3:] == ["<|endoftext|>", "<|user|>", "é日 <"]
    types = [library.TokenType.NORMAL] * 299 + [library.TokenType.CONTROL] * 3
    assert fields["tokenizer.ggml.token_type"] == types
    path.write_bytes(path.read_bytes().replace(b"<|user|>", b"<|endoft"))
    tokenizer = open_model(str(path)).tokenizer  # the longest special token is found, as in llama.cpp
    assert tokenizer.encode("<|endoft<|endoftext|>", specials=True) == [300, 299]


def test_control_tokens_that_end_the_list_are_special() -> None:
    tokens = [gguf.printable(bytes([b])).encode() for b in range(256)] + [b"<|endoftext|>", b"<|user|>"]
    metadata = {"tokenizer.ggml.model": b"gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 256}
    metadata["tokenizer.ggml.token_type"] = [1] * 256 + [3, 3]
    assert gguf._tokenizer(metadata).special.ids == {"<|endoftext|>": 256, "<|user|>": 257}
    metadata["tokenizer.ggml.token_type"] = [1] * 256 + [3, 1]
    assert gguf._tokenizer(metadata).special.ids == {"<|endoftext|>": 256}


@pytest.mark.parametrize("epsilon", [0.1, "small"])
def test_another_epsilon_is_refused(epsilon: object, tmp_path: Path) -> None:
    writer = library.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    if isinstance(epsilon, str):
        writer.add_string(gguf.EPSILON, epsilon)
    else:
        writer.add_layer_norm_eps(epsilon)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="layer_norm_epsilon"):
        open_model(str(tmp_path / "m.gguf"))


def test_a_tokenizer_of_another_splitting_is_not_taken_for_gpt2s() -> None:
    tokens = [c.encode() for c in "abc"]
    metadata = {"tokenizer.ggml.model": b"gpt2", "tokenizer.ggml.tokens": tokens}
    assert gguf._tokenizer(metadata).kind == "char"
    assert gguf._tokenizer(metadata | {"tokenizer.ggml.pre": b"llama-bpe"}) is None
