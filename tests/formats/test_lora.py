"""LoRA adapters, against a sum by hand."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from gpt2.errors import UserError
from gpt2.formats.lora import add_adapter
from tests.formats.toys import toy, weights

NAME = "base_model.model.transformer.h.1.attn.c_attn.lora_"


def written(folder, tensors=None, **changes):
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
def test_the_sum_by_hand(tmp_path, changes, scaling):
    tensors = written(tmp_path, **changes)
    model, before = toy(), weights(toy())
    add_adapter(model, tmp_path)
    for name, after in weights(model).items():
        wanted = before[name].double()
        if name == "transformer.h.1.attn.c_attn.weight":
            wanted = wanted + scaling * tensors[NAME + "B.weight"].double() @ tensors[NAME + "A.weight"].double()
        torch.testing.assert_close(after.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["wte"]}, "modules_to_save"), ({"bias": "all"}, "bias"),
     ({"peft_type": "IA3"}, "peft_type"), ({"init_lora_weights": "pissa"}, "init_lora_weights"),
     ({"r": 4}, "not \\(4"),
     ({"r": 0}, "rank 0"), ({"rank_pattern": {"(": 3}}, "rank_pattern")],
)  # fmt: skip
def test_refused_settings(tmp_path, changes, message):
    written(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        add_adapter(toy(), tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [([NAME + "A.weight"], "no lora_B"), ([NAME.replace("h.1", "h.9") + "A.weight"], "does not have"),
     ([NAME.replace("c_attn", "q") + "A.weight"], "does not have"), (["x"], "no LoRA matrix")],
)  # fmt: skip
def test_refused_tensors(tmp_path, keys, message):
    written(tmp_path, {key: torch.zeros(3, 8) for key in keys})
    with pytest.raises(UserError, match=message):
        add_adapter(toy(), tmp_path)
    with pytest.raises(UserError, match="has no adapter_config"):
        add_adapter(toy(), tmp_path / "absent")
