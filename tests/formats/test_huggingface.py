"""Hugging Face's layout, written here by hand from its description."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2.errors import UserError
from gpt2.formats.huggingface import TRANSPOSED, is_hub_name
from gpt2.formats.open import load, open_model
from gpt2.model import GPT, GPTConfig

CONFIG = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=50257, n_layer=2, n_head=2, n_embd=8)).eval()


def write(folder: Path, model: GPT, prefix: str = "transformer.", **changes: object) -> Path:
    """A folder as `save_pretrained` lays it out, or as the hub's originals with bare names and mask buffers."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, p in model.named_parameters():
        value = p.detach().t() if name.endswith(TRANSPOSED) else p.detach()
        tensors[name.replace("transformer.", prefix)] = value.contiguous()
    if not prefix:
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_weights_are_read_and_transposed(prefix: str, model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    loaded, tokenizer = load(str(write(tmp_path / "hf", model, prefix)))
    assert tokenizer.kind == "gpt2"
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_activation_is_the_configs(model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    assert open_model(str(write(tmp_path / "a", model))).config.gelu == "tanh"
    assert open_model(str(write(tmp_path / "b", model, activation_function="gelu"))).config.gelu == "erf"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"n_inner": 7}, "n_inner=7"),
        ({"activation_function": "relu"}, "relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_embd": "wide"}, "n_embd='wide'"),
    ],
)
def test_what_is_not_gpt2_is_refused_by_name(changes: dict, message: str, model: GPT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_model(str(write(tmp_path / "hf", model, **changes)))


def test_a_head_of_its_own_is_refused(model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    folder = write(tmp_path / "hf", model)
    tensors = load_file(folder / "model.safetensors")
    tied = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(tied, folder / "model.safetensors")
    load(str(folder))
    save_file(tied | {"lm_head.weight": torch.zeros(50257, 8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="head"):
        load(str(folder))
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": torch.zeros(50257, 8)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="head"):
        load(str(folder))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "cannot be read",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_layer": 3})), r"h\.2\.\S+ is missing"),
        (
            lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_layer": 1})),
            r"h\.1\.\S+ is .*, not unknown",
        ),
        (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_positions": 32})), r"wpe\S+ is \(16, 8\)"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    ],
)
def test_damage_is_named(damage, message: str, model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    folder = write(tmp_path / "hf", model)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load(str(folder))


def test_without_the_hub_the_error_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'gpt2-medium'.*no route to host.*give its folder"):
        open_model("gpt2-medium")


@pytest.mark.parametrize(
    ("name", "yes"), [("gpt2", True), ("gpt2-xl", True), ("org/name", True), ("gpt3", False), ("a/b/c", False)]
)
def test_hub_names(name: str, yes: bool) -> None:
    assert is_hub_name(name) == yes
