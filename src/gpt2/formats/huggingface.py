"""Hugging Face's GPT2LMHeadModel: its folder and its hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats.source import Source
from gpt2.model import GPTConfig
from gpt2.tokenizers import gpt2_tokenizer

# Conv1D keeps its weight as (in, out); nn.Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
OFFICIAL = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
NOT_PARAMETERS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
# Switches of HF's GPT-2 that change the network, and the only values that are the GPT-2 built here.
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
}


def is_folder(path: Path) -> bool:
    return (path / "config.json").is_file()


def is_hub_name(name: str) -> bool:
    return name in OFFICIAL or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def open_hub(name: str) -> Source:
    """A model of the hub, downloaded to its cache. Raises UserError when that cannot be done."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=["config.json", "model*.safetensors*"])
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise UserError(
            f"no folder {name!r} here, and Hugging Face's hub does not give it ({first_line(error)}); download the "
            "model elsewhere and give its folder"
        ) from error
    return open_folder(Path(folder), origin=f"Hugging Face {name}")


def open_folder(path: Path, origin: str | None = None) -> Source:
    """A folder that `save_pretrained` wrote. Raises UserError for settings that are not GPT-2 as built here."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        config = _config(values, path / "config.json")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read as a GPT-2 configuration ({error})") from None
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{path} has no model.safetensors; save the model with transformers' save_pretrained")
    if config.vocab_size != 50257:
        raise UserError(f"{path} has a vocabulary of {config.vocab_size} ids, not GPT-2's 50257")
    return Source(config, _tensors(files), gpt2_tokenizer(), origin or str(path))


def _config(values: dict[str, Any], where: Path) -> GPTConfig:
    if values.get("model_type") != "gpt2":
        raise UserError(f"{where} says model_type={values.get('model_type')!r}; only gpt2 is GPT-2")
    for key, required in REQUIRED.items():
        if values.get(key, required) != required:
            raise UserError(f"{where} says {key}={values[key]}, which is not GPT-2 as built here ({key}={required})")
    if values.get("n_inner") not in (None, 4 * values["n_embd"]):
        raise UserError(f"{where} says n_inner={values['n_inner']}; GPT-2's is 4·n_embd")
    activation = values.get("activation_function", "gelu_new")
    if activation not in GELU:
        raise UserError(f"{where} says activation_function={activation!r}; choose from {', '.join(GELU)}")
    return GPTConfig(
        block_size=values["n_positions"],
        vocab_size=values["vocab_size"],
        n_layer=values["n_layer"],
        n_head=values["n_head"],
        n_embd=values["n_embd"],
        gelu=GELU[activation],
    )


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    _refuse_untied_head(files)
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if key.endswith(NOT_PARAMETERS):
                    continue
                name = key if key.startswith("transformer.") else f"transformer.{key}"  # hub originals are bare
                tensor = tensors.get_tensor(key)
                yield name, tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor


def _refuse_untied_head(files: list[Path]) -> None:
    """Raise UserError where there is a head that is not the token embedding."""
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in set(tensors.keys()) & {"lm_head.weight", "transformer.wte.weight", "wte.weight"}:
                found["head" if key == "lm_head.weight" else "embedding"] = tensors.get_tensor(key)
    if len(found) == 2 and not torch.equal(found["head"], found["embedding"]):
        raise UserError(f"{files[0].parent} has an lm_head.weight of its own; GPT-2's head is its token embedding")
