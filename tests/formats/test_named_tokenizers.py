"""Tokenizers that are found next to a model, or that a user names."""

from pathlib import Path

import pytest
from toys import characters, source_of, toy

from gpt2.errors import UserError
from gpt2.formats.export import FORMATS, export
from gpt2.formats.open import named_tokenizer


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
