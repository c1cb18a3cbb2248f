"""LoRA adapters in the folders that Hugging Face's PEFT writes. See Hu et al., https://arxiv.org/abs/2106.09685."""

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats.open import ADAPTER, check_shapes
from gpt2.formats.safetensors_file import read_tensors
from gpt2.formats.source import Source, StoredTensor
from gpt2.json_file import read_json

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(transformer\.h\.\d+\.(?:attn|mlp)\.\w+)\.lora_([AB])\.weight")
MERGE = "merge it with PEFT's merge_and_unload, and serve the result"
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base model's weights as they are."""
UNSUPPORTED = (
    "use_dora", "modules_to_save", "lora_bias", "use_qalora", "layer_replication", "alora_invocation_tokens",
    "trainable_token_indices", "target_parameters",
)  # fmt: skip


def with_adapter(source: Source, folder: Path) -> Source:
    """Return a source whose weights are those of another one plus `scaling * B @ A` of each adapted module.

    A is (r, in) and B is (out, r); the sum is computed in float32. Everything but the values is checked at once.
    Raises UserError for a damaged model, and for a folder that is damaged, does not fit the model, or holds anything
    else than plain LoRA matrices.
    """
    check_shapes(source)
    config_file, file = folder / CONFIG, folder / WEIGHTS
    for path in (config_file, file):
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name}; give a folder that PEFT's save_pretrained wrote")
    try:
        config = read_json(config_file)
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file} cannot be read ({first_line(error)}); save the adapter again") from None
    if not isinstance(config, dict):
        raise UserError(f"{config_file} holds no JSON object; save the adapter again")
    _check_config(config, config_file)
    tensors = dict(source.tensors)
    for module, pair in _pairs(read_tensors(file)[0], file).items():
        name = f"{module}.weight"
        if (weight := tensors.get(name)) is None:
            raise UserError(
                f"{file} adapts {module}, which the model does not have; give the model it was trained on"
            )
        if missing := {"A", "B"} - pair.keys():
            raise UserError(f"{file} has no lora_{missing.pop()} for {module}; save the adapter again")
        rank, scaling = _scaling(config, module, config_file)
        outputs, inputs = weight.shape
        for letter, wanted in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if (found := pair[letter].shape) != wanted:
                raise UserError(
                    f"lora_{letter} of {module} in {file} is {found}, not {wanted}; give its own base model"
                )
        tensors[name] = StoredTensor(weight.shape, partial(_sum, weight, pair, scaling), torch.float32, is_own=True)
    return replace(source, tensors=tensors)


def _sum(weight: StoredTensor, pair: dict[str, StoredTensor], scaling: float) -> Tensor:
    """Return an adapted matrix (out, in)."""
    b, a = (pair[letter].read().float() for letter in "BA")
    return torch.addmm(weight.read().float(), b, a, alpha=scaling)


def _check_config(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path} has the peft_type {config.get('peft_type')!r:.40}, and only 'LORA' is served; {MERGE}"
        )
    for key in UNSUPPORTED:
        if config.get(key):
            raise UserError(f"{path} has {key}, which is not supported; {MERGE}")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path} has bias {config['bias']!r:.40}, and only 'none' is served; {MERGE}")
    if (start := config.get("init_lora_weights")) not in PLAIN_STARTS:
        raise UserError(f"{path} has init_lora_weights {start!r:.40}, which changes the base model; {MERGE}")


def _pairs(tensors: dict[str, StoredTensor], file: Path) -> dict[str, dict[str, StoredTensor]]:
    """Return the matrices by module, such as `transformer.h.0.attn.c_attn`, and then by letter."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in tensors.items():
        if (match := KEY.fullmatch(key)) is None:
            raise UserError(
                f"{file} holds {key[:80]!r}, no LoRA matrix of a linear layer of a GPT-2's blocks; {MERGE}"
            )
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if not pairs:
        raise UserError(f"{file} holds no LoRA matrices; save the adapter again")
    return pairs


def _scaling(config: dict[str, Any], module: str, path: Path) -> tuple[int, float]:
    """Return rank and scaling of a module. A pattern is a regular expression for the end of its name, as in PEFT."""
    rank = _by_pattern(config, "rank_pattern", module, config.get("r"), path)
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"), path)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(
            f"{path} has rank {rank!r:.40} and lora_alpha {alpha!r:.40} for {module}; they must be numbers"
        )
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: dict[str, Any], key: str, module: str, default: Any, path: Path) -> Any:
    patterns = config.get(key) or {}
    try:
        found = (value for p, value in patterns.items() if re.match(rf"(.*\.)?({p})$", module))
        return next(found, default)
    except (re.error, AttributeError) as error:
        raise UserError(f"{path} has a {key} that cannot be read ({first_line(error)}); correct it") from None
