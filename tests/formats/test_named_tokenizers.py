"""Tokenizers that are found next to a model, or that a user names."""

import json
from pathlib import Path

import pytest
from toys import characters, source_of, toy

from gpt2.errors import UserError
from gpt2.formats.export import FORMATS, export
from gpt2.formats.open import load, named_tokenizer, open_model
from gpt2.formats.tokenizer_writer import meta_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_can_be_named_as_the_tokenizer_by_each_of_its_files(name: str, tmp_path: Path) -> None:
    out = export(source_of(toy(), characters(33)), name, tmp_path / "model", print).out
    named = [out] if out.is_file() else [p for p in out.iterdir() if p.suffix != ".json" and "state" not in p.name]
    named += [out] if out.is_dir() else []
    assert named
    for path in named:
        assert named_tokenizer(str(path)).to_json() == characters(33).to_json(), path


def test_a_file_of_llmcs_without_a_tokenizer_is_none(tmp_path: Path) -> None:
    out = export(source_of(toy(), characters(33)), "llmc", tmp_path / "model", print).out
    with pytest.raises(UserError, match=r"no tokenizer in .*gpt2_d2_debug_state"):
        named_tokenizer(str(out / "gpt2_d2_debug_state.bin"))


@pytest.mark.parametrize("count", [34, 32])
def test_a_tokenizer_of_another_size_is_not_said_to_be_missing(count: int, tmp_path: Path) -> None:
    export(source_of(toy(), characters(33)), "nanogpt", tmp_path / "model", print)
    (tmp_path / "model" / "meta.pkl").write_bytes(meta_bytes(characters(count)))
    reason = f"the char tokenizer in .*model has {count} ids, but ckpt.pt has rows for 33; name the model's own"
    with pytest.raises(UserError, match=reason):
        load(tmp_path / "model")
    lines: list[str] = []
    export(open_model(tmp_path / "model"), "safetensors", tmp_path / "weights", lines.append)
    assert any(f"weights has no tokenizer: the char tokenizer in {tmp_path / 'model'} has" in line for line in lines)


def test_a_tokenizer_with_more_ids_than_a_folder_of_hugging_face_has_rows_is_named_so(tmp_path: Path) -> None:
    export(source_of(toy(), characters(33)), "hf", tmp_path / "model", print)
    path = tmp_path / "model" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["Ω"] = 33
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"has 34 ids, but model\.safetensors has rows for 33"):
        load(tmp_path / "model")
