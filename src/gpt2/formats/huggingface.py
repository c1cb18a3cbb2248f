"""Hugging Face's GPT2LMHeadModel: folders read and written, and models downloaded from the hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats import torch_file
from gpt2.formats.safetensors_file import read_tensors
from gpt2.formats.source import TRANSPOSED, Extras, Source, StoredTensor, checked_config, short, to_our_names
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.formats.tokenizer_writer import write_huggingface
from gpt2.json_file import read_json
from gpt2.model import GPT, GPTConfig
from gpt2.special_tokens import SpecialTokens
from gpt2.tensor_file import write_tensors

# The tables from Hugging Face's config.json to GPTConfig. The parameters have the same names here and there.
CONFIG_KEYS = {
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
"""Fields of GPTConfig, and Hugging Face's keys for them."""
DEFAULTS = {"n_positions": 1024, "vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768}
"""Values of keys that a config.json omits."""
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
"""Values of `activation_function`, and the `gelu` of GPTConfig for each."""
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
}
"""Keys that change the network, and the only value of each for which it is the GPT-2 built here."""
OFFICIAL = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
"""Names of the files of weights, one or several per model. The first pattern that matches is used."""
SHARDED = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Stems and suffixes of files of weights; an index of shards adds `.index.json`."""
GPT2_KEYS = {"n_embd", "n_layer", "n_head"}
"""Keys by which an older config.json without `model_type` is recognised."""
MAX_BYTES = 1 << 24
"""Largest config.json or index that is read, in bytes."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Names of the files of a tokenizer, and of those that say what its special tokens are for."""


def is_hub_name(name: str) -> bool:
    """Return whether the name can be that of a model on the hub."""
    return name in OFFICIAL or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def open_hub(name: str) -> Source:
    """Download a model of the hub to its cache and open it. Raises UserError where that fails."""
    from huggingface_hub import constants, snapshot_download

    described = ["config.json", "*.index.json", *TOKENIZER]
    try:
        folder = Path(snapshot_download(name, allow_patterns=described))
        _read_config(folder)  # before gigabytes are downloaded in vain
        for weights in WEIGHTS:
            if not _present_files(folder):
                snapshot_download(name, allow_patterns=[*described, weights])
    except UserError:
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise UserError(
            f"no folder {name!r} here, and Hugging Face's hub at {constants.ENDPOINT} does not give it "
            f"({first_line(error)}); download the model on another machine and give its folder"
        ) from error
    return open_folder(folder, origin=f"Hugging Face {name}")


def open_folder(path: Path, origin: str | None = None) -> Source:
    """Open a folder that `save_pretrained` wrote. Raises UserError for settings that are not GPT-2 as built here.

    `origin` is the name of the source for messages; by default the path.
    """
    config, notes = _read_config(path)
    files = _weight_files(path)
    tensors, changes = to_our_names(_stored(files), path)
    return Source(
        config, tensors, find_tokenizer(files[0], config.vocab_size), origin or str(path), (*notes, *changes)
    )


def _present_files(folder: Path) -> list[Path]:
    """Return the files that match the first of the patterns `WEIGHTS` with any."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights. Raises UserError where there are none, or where a shard is missing."""
    files = _present_files(folder)
    for stem, suffix in SHARDED:
        index = folder / f"{stem}{suffix}.index.json"
        is_used = not files or (files[0].suffix == suffix and files[0].name != f"{stem}{suffix}")
        if is_used and index.is_file():
            return _files_of_index(index)
    if not files:
        raise UserError(f"{folder} has no model.safetensors; save the model with transformers' save_pretrained")
    if count := re.search(r"-of-(\d{1,6})\.", files[0].name):  # shards without an index
        names = {path.name for path in files}
        for number in range(1, int(count[1]) + 1):
            name = re.sub(r"-\d+-of", f"-{number:0{len(count[1])}}-of", files[0].name)
            if name not in names:
                raise UserError(f"{folder} has no {name}, a shard of its weights; fetch it again")
    return files


def _files_of_index(index: Path) -> list[Path]:
    """Return the shards that an index lists. Raises UserError where one is missing or outside of the folder."""
    try:
        names = sorted(set(read_json(index, MAX_BYTES)["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it lists no files")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{index} cannot be read ({first_line(error)}); fetch it again") from None
    for name in names:
        if Path(name).name != name or "\0" in name or not name.endswith((".safetensors", ".bin")):
            raise UserError(f"{index} lists {name[:80]!r}, which is no file of weights in its folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent} has no {name[:80]}, which {index.name} lists; fetch it again")
    return [index.parent / name for name in names]


def _read_config(folder: Path) -> tuple[GPTConfig, tuple[str, ...]]:
    """Return the configuration, and a line where it was assumed to be GPT-2's. Raises UserError."""
    path = folder / "config.json"
    try:
        return _config(read_json(path, MAX_BYTES), path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a GPT-2 configuration ({first_line(error)})") from None


def _config(values: dict[str, Any], where: Path) -> tuple[GPTConfig, tuple[str, ...]]:
    notes = ()
    if values.get("model_type") is None and ("GPT2" in str(values.get("architectures")) or set(values) >= GPT2_KEYS):
        notes = (f"{where} has no model_type: taken for gpt2, whose keys it has",)
    elif values.get("model_type") != "gpt2":
        raise UserError(f"{where} says model_type={short(values.get('model_type'))}; only gpt2 is GPT-2")
    for key, required in REQUIRED.items():
        if (value := values.get(key, required)) != required:
            raise UserError(f"{where} says {key}={short(value)}, which is not GPT-2 as built here ({key}={required})")
    values = DEFAULTS | values
    inner = values.get("n_inner")
    if inner is not None and (not isinstance(values["n_embd"], int) or inner != 4 * values["n_embd"]):
        raise UserError(f"{where} says n_inner={short(inner)}; GPT-2's is 4·n_embd")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in GELU:
        raise UserError(f"{where} says activation_function={short(activation)}; choose from {', '.join(GELU)}")
    shape = {field: values[key] for field, key in CONFIG_KEYS.items()}
    return checked_config({**shape, "gelu": GELU[activation]}, where), notes


def _stored(files: list[Path]) -> Iterator[tuple[str, StoredTensor]]:
    for file in files:
        if file.suffix == ".safetensors":
            yield from read_tensors(file)[0].items()
        else:
            yield from torch_file.state_dict(torch_file.load(file)[0], file)


def config_values(config: GPTConfig) -> dict[str, Any]:
    """Return `config.json` of a model with biases, without the entries for its special tokens and dtype."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(config, field) for field, key in CONFIG_KEYS.items()},
        "n_ctx": config.block_size,
        "n_inner": None,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        **REQUIRED,
        "initializer_range": 0.02,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "use_cache": True,
    }


def huggingface_tensors(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters under the names and in the shapes of GPT2LMHeadModel."""
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        yield name, tensor.t() if name.endswith(TRANSPOSED) else tensor


def write(model: GPT, extras: Extras, folder: Path) -> None:
    """Fill `folder` with the files that `AutoModelForCausalLM` and `AutoTokenizer` load.

    The model must have biases.
    """
    dtype = getattr(torch, extras.dtype)
    tensors = {name: t.to(dtype) for name, t in huggingface_tensors(model)}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    special = extras.tokenizer.special if extras.tokenizer else SpecialTokens()
    ends = list(special.ends) if special.further_ends else special.eos  # one id, or a list of several
    ids: dict[str, Any] = {"bos_token_id": special.bos, "eos_token_id": ends}
    if special.pad is not None:
        ids["pad_token_id"] = special.pad
    _dump(folder / "config.json", {**config_values(model.config), **ids, "torch_dtype": extras.dtype})
    _dump(folder / "generation_config.json", {**ids, "use_cache": True})
    if extras.tokenizer is not None:
        write_huggingface(extras.tokenizer, folder, model.config.block_size)


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
