"""Through any two formats and back: no bit of a float32 weight changes."""

import itertools
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assert_same_weights, characters, opened, source_of, toy, weights

from gpt2.errors import UserError
from gpt2.formats.export import FORMATS, export, logits_of
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Source, StoredTensor
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.import_run import import_run

EVERYWHERE = [*FORMATS, "run"]


def put(path: Path, name: str, source) -> Path:
    """Write `source` in the named format; returns what opens it again."""
    if name == "run":
        import_run(source, path, lambda line: None)
        return path
    return export(source, name, path, lambda line: None).out


@pytest.mark.parametrize("pair", list(itertools.permutations(EVERYWHERE, 2)), ids="-".join)
@settings(max_examples=3)
@given(
    bias=st.booleans(),
    gelu=st.sampled_from(["tanh", "erf"]),
    vocab_size=st.integers(3, 140),
    n_layer=st.integers(1, 3),
    shape=st.sampled_from([(1, 4), (2, 8), (3, 12), (5, 5)]),
    block_size=st.integers(2, 20),
    seed=st.integers(0, 1000),
)
def test_two_formats_one_after_the_other(pair, bias, gelu, vocab_size, n_layer, shape, block_size, seed) -> None:
    model = toy(
        seed,
        bias=bias,
        gelu=gelu,
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=shape[0],
        n_embd=shape[1],
        block_size=block_size,
    )
    tokenizer = characters(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        first = put(Path(folder) / "first", pair[0], source_of(model, tokenizer))
        second = put(Path(folder) / "second", pair[1], open_model(str(first)))
        source = open_model(str(second))
        assert source.tokenizer.to_json() == tokenizer.to_json()
        computes_tanh = {"llmc", "gguf"} & set(pair)
        assert source.config.gelu == ("tanh" if computes_tanh else gelu)
        found = build(source).eval()
        assert_same_weights(found, model)
        if gelu == found.config.gelu:
            ids = torch.arange(block_size)[None] % vocab_size
            assert torch.allclose(logits_of(found, ids), logits_of(model, ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("value", "problem"), [(1e6, "float16 cannot hold the weights"), (float("nan"), "damaged")])
def test_a_model_that_the_format_cannot_hold_is_not_written(value: float, problem: str, tmp_path: Path) -> None:
    model = toy(0)
    model.transformer.wte.weight.data[0, 0] = value
    with pytest.raises(UserError, match=problem):
        export(source_of(model, characters(33)), "hf", tmp_path / "x", lambda line: None, "float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_source_builds_any_number_of_models(name: str, tmp_path: Path) -> None:
    source = open_model(str(put(tmp_path / "x", name, source_of(toy(), characters(33)))))
    first, second = build(source), build(source)
    assert_same_weights(first, toy())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert_same_weights(second, toy())
    assert_same_weights(build(source), toy())


def test_building_holds_one_tensor_of_the_file_at_a_time() -> None:
    read: list[weakref.ref[torch.Tensor]] = []

    def stored(tensor: torch.Tensor) -> StoredTensor:
        def from_file() -> torch.Tensor:
            assert all(reference() is None for reference in read)
            copy = tensor.clone()
            read.append(weakref.ref(copy))
            return copy

        return StoredTensor(tuple(tensor.shape), from_file)

    tensors = {name: stored(tensor) for name, tensor in weights(toy()).items()}
    model = build(Source(toy().config, tensors, lambda: None, "a toy"))
    assert_same_weights(model, toy())
    assert len(read) == len(tensors)


def test_rows_that_stand_for_no_token_are_cropped_or_kept(tmp_path: Path) -> None:
    model = toy(vocab_size=40)
    notes: list[str] = []
    for name in FORMATS:
        export(source_of(model, characters(33)), name, tmp_path / name, notes.append)
    assert opened(tmp_path / "hf").config.vocab_size == 33
    assert opened(tmp_path / "gguf").config.vocab_size == 33
    assert opened(tmp_path / "llmc").config.vocab_size == 33
    assert opened(tmp_path / "nanogpt").config.vocab_size == 40
    assert opened(tmp_path / "safetensors").config.vocab_size == 40
    assert sum("the last 7 of 40 vocabulary rows" in line for line in notes) == 3
    assert torch.equal(opened(tmp_path / "hf").transformer.wte.weight, model.transformer.wte.weight[:33])


def test_what_a_conversion_changes_is_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    done = export(source_of(toy(bias=False, gelu="erf"), characters(33)), "llmc", tmp_path / "a", notes.append)
    assert "llmc computes the tanh GELU, this model erf" in notes[0]
    assert "zeros are added" in notes[1]
    assert 1e-6 < done.difference < 1e-2  # the two GELUs, measured on the file that was read back
    notes.clear()
    done = export(source_of(toy(), characters(33)), "nanogpt", tmp_path / "b", notes.append)
    assert "nanogpt computes the erf GELU, this model tanh" in notes[0]
    assert done.difference == 0


@pytest.mark.parametrize(
    ("name", "dtype", "least", "most"),
    [
        ("hf", "bfloat16", 1e-5, 0.2),
        ("hf", "float16", 1e-6, 0.02),
        ("gguf", "float16", 1e-6, 0.02),
        ("gguf", "bfloat16", 1e-5, 0.2),
        ("gguf", "q8_0", 1e-4, 0.5),
        ("safetensors", "bfloat16", 1e-5, 0.2),
    ],
)
def test_smaller_numbers_are_read_back_and_measured(name: str, dtype: str, least, most, tmp_path: Path) -> None:
    done = export(source_of(toy(n_embd=32), characters(33)), name, tmp_path / "x", lambda line: None, dtype)
    assert least < done.difference < most * done.scale


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_overwritten(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export(source_of(toy(vocab_size=257), ByteTokenizer()), name, out, lambda line: None)
    assert [p.name for p in out.iterdir()] == ["mine"]
