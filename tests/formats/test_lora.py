"""LoRA adapters, against a sum by hand and against PEFT."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toys import characters, source_of, toy, weights

from gpt2.errors import UserError
from gpt2.formats.lora import with_adapter
from gpt2.formats.open import build, open_model
from gpt2.formats.source import StoredTensor

NAME = "base_model.model.transformer.h.1.attn.c_attn.lora_"


def written(folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> dict[str, Tensor]:
    """Write an adapter of rank 3 for one module, with changes of its settings."""
    torch.manual_seed(1)
    tensors = tensors or {NAME + "A.weight": torch.randn(3, 8), NAME + "B.weight": torch.randn(24, 3)}
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "bias": "none"} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [({}, 5 / 3), ({"use_rslora": True}, 5 / math.sqrt(3)), ({"r": 9, "rank_pattern": {"c_attn": 3}}, 5 / 3),
     ({"alpha_pattern": {r"h\.1\.attn\.c_attn": 7}}, 7 / 3)],
)  # fmt: skip
def test_the_sum_by_hand(tmp_path: Path, changes: dict[str, Any], scaling: float) -> None:
    tensors, base = written(tmp_path, **changes), toy()
    found = build(with_adapter(source_of(base, None), tmp_path))
    for name, before in weights(base).items():
        wanted = before.double()
        if name == "transformer.h.1.attn.c_attn.weight":
            wanted = wanted + scaling * tensors[NAME + "B.weight"].double() @ tensors[NAME + "A.weight"].double()
        torch.testing.assert_close(weights(found)[name].double(), wanted, rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), toy().parameters(), strict=True))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_logits_are_those_of_peft(use_rslora: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 33, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    base.save_pretrained(tmp_path / "base")
    settings = {"rank_pattern": {"c_fc": 5, r"h\.0\.attn\.c_attn": 2}, "alpha_pattern": {"mlp.c_proj": 9}}
    targets = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "use_rslora": use_rslora}
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=4, **settings, **targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    idx = torch.randint(33, (2, 16))
    source = open_model(tmp_path / "base")
    with torch.no_grad():
        expected, plain = model(idx).logits, build(source)(idx, idx)[0]
        found = build(with_adapter(source, tmp_path / "adapter"))(idx, idx)[0]
    assert (found - expected).abs().max() < 1e-5 < (plain - expected).abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["wte"]}, "modules_to_save"), ({"bias": "all"}, "bias"),
     ({"peft_type": "IA3"}, "peft_type"), ({"init_lora_weights": "pissa"}, "init_lora_weights"),
     ({"r": 4}, "not \\(4"), ({"r": 0}, "rank 0"), ({"rank_pattern": {"(": 3}}, "rank_pattern")],
)  # fmt: skip
def test_settings_that_are_not_supported_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    written(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        with_adapter(source_of(toy(), characters(33)), tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [([NAME + "A.weight"], "no lora_B"), ([NAME.replace("h.1", "h.9") + "A.weight"], "does not have"),
     ([NAME.replace("c_attn", "q") + "A.weight"], "does not have"), (["x"], "no LoRA matrix")],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, keys: list[str], message: str) -> None:
    source = source_of(toy(), None)
    written(tmp_path, {key: torch.zeros(3, 8) for key in keys})
    with pytest.raises(UserError, match=message):
        with_adapter(source, tmp_path)
    with pytest.raises(UserError, match="has no adapter_config"):
        with_adapter(source, tmp_path / "absent")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    source = source_of(toy(), None)
    written(tmp_path)
    flat = source.tensors | {"transformer.h.1.attn.c_attn.weight": StoredTensor.of(torch.zeros(192))}
    with pytest.raises(UserError, match="do not fit"):
        with_adapter(replace(source, tensors=flat), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="adapter_model"):
        with_adapter(source, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config"):
        with_adapter(source, tmp_path)
