"""Checkpoints as trainers of other people save them, put together here by hand."""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_huggingface import write
from test_nanogpt import save
from toys import assert_same_weights, opened, toy, weights

from gpt2.errors import UserError
from gpt2.formats.open import build, open_model
from gpt2.formats.source import TRANSPOSED
from gpt2.model import GPT

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 33}


@pytest.fixture
def config_class() -> Iterator[type]:
    """A dataclass of a module that exists only while the file is saved."""
    module = types.ModuleType("train_gpt2_of_somebody")

    @dataclasses.dataclass
    class GPTConfig:
        n_layer: int = 2
        n_head: int = 2
        n_embd: int = 8
        block_size: int = 16
        vocab_size: int = 33

    GPTConfig.__module__, GPTConfig.__qualname__ = module.__name__, "GPTConfig"
    module.GPTConfig = GPTConfig
    sys.modules[module.__name__] = module
    yield GPTConfig
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", ["config", "args", "hyper_parameters"])
def test_a_configuration_of_the_trainers_class_is_read(key: str, protocol: int, config_class, tmp_path: Path) -> None:
    values = {"model": weights(toy()), key: config_class(), "step": 7}
    torch.save(values, tmp_path / "c.pt", pickle_protocol=protocol)
    del sys.modules[config_class.__module__]
    source = open_model(tmp_path / "c.pt")
    assert_same_weights(build(source), toy())
    assert source.progress.step == 7
    assert any("attributes of its objects of train_gpt2_of_somebody.GPTConfig" in line for line in source.notes)


def test_model_args_of_the_trainers_class_are_read(config_class, tmp_path: Path) -> None:
    assert_same_weights(opened(save(tmp_path / "ckpt.pt", toy(), model_args=config_class())), toy())


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5),
        np.int64(3),
        np.float32(1.5),
        np.arange(4),
        np.array("text"),
        np.array([{}], dtype=object),
        np.dtype("f4"),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        Counter("aab"),
        pathlib.Path("out/run"),
        pathlib.PureWindowsPath("out/run"),
        argparse.Namespace(a=1, b=argparse.Namespace(c=2)),
        types.SimpleNamespace(a=1),
        {1, 2},
        frozenset("ab"),
        datetime.datetime(2026, 1, 2),
        datetime.timedelta(1),
        {datetime.date(2026, 1, 2): 1},
        torch.Size([1, 2]),
        torch.float16,
        torch.device("cuda:3"),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, requires_grad=True),
        torch.ones(3, device="meta"),
        torch.eye(2).to_sparse(),
        np.random.default_rng(0).bit_generator.state,
        torch.get_rng_state(),
        b"bytes",
        1 << 127,
        complex(1, 2),
        int,
        slice(1, 2),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_values_of_the_library_and_of_numpy_do_not_hold_up_the_weights(value: object, zipped: bool, tmp_path) -> None:
    content = torch.load(save(tmp_path / "ckpt.pt", toy()))
    content |= {"more": value, "config": {"dataset": "x", "more": [value]}}
    torch.save(content, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=zipped)
    assert_same_weights(opened(tmp_path / "ckpt.pt"), toy())


@pytest.mark.parametrize(
    "best",
    [np.float64(1.5), np.float32(1.5), np.array(1.5), np.array([1.5]), torch.tensor(1.5), torch.ones(1) * 1.5, 1.5],
)
def test_the_best_loss_is_read_in_any_type(best: object, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt.pt", toy(), best_val_loss=best, iter_num=np.int64(9))
    progress = open_model(path).progress
    assert (progress.best_val_loss, progress.step) == (1.5, 9)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_fsdp_wrapped_module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module._orig_mod.{name}",
        lambda name: name.replace("h.0.", "h.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: (
            f"_fsdp_wrapped_module._orig_mod.{name.replace('h.1.', 'h.1._checkpoint_wrapped_module._orig_mod.')}"
        ),
        lambda name: f"model.{name}",
        lambda name: f"_forward_module.model._orig_mod.{name}",
        lambda name: f"model.module.gpt.{name.removeprefix('transformer.')}",
        lambda name: name.replace("attn.c_attn", "attn._orig_mod.c_attn"),
    ],
)
def test_names_of_wrappers_are_removed_wherever_they_are(rename, tmp_path: Path) -> None:
    named = weights(toy()) | {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool)}
    state = {rename(name): t for name, t in named.items()}
    assert_same_weights(opened(save(tmp_path / "ckpt.pt", toy(), model=state)), toy())
    torch.save(state, tmp_path / "bare.pt")
    assert_same_weights(opened(tmp_path / "bare.pt"), toy())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {
            "state_dict": {f"model.{n}": t for n, t in state.items()},
            "hyper_parameters": SIZES,
            "epoch": 1,
        },
        lambda state: {"state_dict": state, "hyper_parameters": {"config": SIZES}, "global_step": 5},
        lambda state: {"module": {f"module.{n}": t for n, t in state.items()}, "ds_version": "0.1"},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 3},
        lambda state: {"model": state, "args": argparse.Namespace(**SIZES)},
        lambda state: {"model": state},
    ],
    ids=["lightning", "nested", "deepspeed", "tutorial", "namespace", "bare"],
)
def test_the_weights_are_found_under_the_keys_of_other_trainers(wrap, tmp_path: Path) -> None:
    torch.save(wrap(weights(toy(n_head=1))), tmp_path / "c.pt")
    assert_same_weights(opened(tmp_path / "c.pt"), toy(n_head=1))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    state = weights(toy())
    torch.save(state | {f"module.{n}": t + 1 for n, t in state.items()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"two tensors 'wte\.weight'"):
        opened(tmp_path / "c.pt")


@pytest.mark.parametrize("head", ["multiple_choice_head.summary.weight", "score.weight", "v_head.summary.bias"])
def test_another_head_is_omitted_with_a_line(head: str, tmp_path: Path) -> None:
    torch.save(weights(toy()) | {head: torch.ones(2, 8)}, tmp_path / "c.pt")
    source = open_model(tmp_path / "c.pt")
    assert any("omitted a head" in line and head in line for line in source.notes)
    assert_same_weights(build(source), toy())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transformer.h.0.attn.lora_A", torch.ones(2, 2), "lora_A"),
        ("transformer.counter", torch.ones(2, dtype=torch.int64), "counter.*int64"),
        ("transformer.wte.weight", torch.ones(33, 8, device="meta"), "wte.*meta device"),
        ("transformer.wte.weight", torch.eye(33, 8).to_sparse(), "wte.*sparse"),
    ],
)
def test_what_is_no_weight_of_gpt2_is_named(name: str, value: torch.Tensor, message: str, tmp_path: Path) -> None:
    torch.save(weights(toy()) | {name: value}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "c.pt")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_any_floating_point_dtype_are_read(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    state = {name: t.to(dtype) for name, t in weights(toy()).items()}
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    source = open_model(tmp_path / "c.pt")
    for name, parameter in build(source).named_parameters():
        assert torch.equal(parameter, state[name].float())
    assert any("rounded to float32" in line for line in source.notes) == (dtype.itemsize in (1, 8))


def test_a_complete_model_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(toy(), tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"complete gpt2\.model\.GPT and not weights; save its state_dict"):
        opened(tmp_path / "c.pt")


def test_an_old_config_without_model_type_is_recognised(gpt2_vocabulary: None, tmp_path: Path) -> None:
    model = toy(vocab_size=50257)
    folder = write(tmp_path / "hf", model, n_head=2)
    values = json.loads((folder / "config.json").read_text())
    del values["model_type"]
    (folder / "config.json").write_text(json.dumps(values))
    source = open_model(folder)
    assert any("no model_type" in line for line in source.notes)
    assert_same_weights(build(source), model)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 50257}))
    with pytest.raises(UserError, match="model_type=None"):
        open_model(folder)


def sharded(folder: Path, model: GPT) -> tuple[Path, dict[str, str]]:
    """A folder of two shards with their index."""
    write(folder, model, vocab_size=33)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder, where


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path / "hf", toy())
    save_file({"transformer.wte.weight": torch.zeros(1, 1)}, folder / "model-00003-of-00003.safetensors")
    assert_same_weights(opened(folder), toy())


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_shard_is_named(number: int, has_index: bool, tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path / "hf", toy())
    (folder / f"model-0000{number}-of-00002.safetensors").unlink()
    if not has_index:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=f"has no model-0000{number}-of-00002.safetensors"):
        opened(folder)


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path / "hf", toy())
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors cannot be read"):
        opened(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "config.json"])
def test_an_index_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder, where = sharded(tmp_path / "hf", toy())
    where[next(iter(where))] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(UserError, match="no file of weights in its folder"):
        opened(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 100_000, "\0"]
)
def test_an_index_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path / "hf", toy())
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        opened(folder)


def test_transposed_names_survive_wrappers(tmp_path: Path) -> None:
    """Hugging Face's weights inside FSDP: the matrices of Conv1D are known by their names."""
    state = {
        f"_fsdp_wrapped_module.{name}": (t.t().contiguous() if name.endswith(TRANSPOSED) else t)
        for name, t in weights(toy()).items()
    }
    torch.save(state, tmp_path / "c.pt")
    model = opened(tmp_path / "c.pt")
    assert torch.equal(
        weights(model)["transformer.h.0.mlp.c_fc.weight"], weights(toy())["transformer.h.0.mlp.c_fc.weight"]
    )


def test_the_tied_weight_is_read_under_either_of_its_names(tmp_path: Path) -> None:
    """safetensors' save_model keeps the name of the head alone."""
    state = weights(toy())
    state["lm_head.weight"] = state.pop("transformer.wte.weight")
    save_file(state, tmp_path / "model.safetensors")
    assert_same_weights(opened(tmp_path / "model.safetensors"), toy())


def test_a_folder_with_checkpoints_of_a_trainer_names_the_newest(tmp_path: Path) -> None:
    for step in (20, 100):
        (tmp_path / "trainer" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "trainer" / f"checkpoint-{step}" / "config.json").write_text("{}")
    (tmp_path / "log").mkdir()
    torch.save({}, tmp_path / "log" / "optimizer_300.pt")
    for step in ("00050", "19072"):
        torch.save(weights(toy()), tmp_path / "log" / f"model_{step}.pt")
    for folder, newest in (("trainer", "checkpoint-100"), ("log", "model_19072.pt")):
        with pytest.raises(UserError, match=f"is no model.*contains models, such as {tmp_path / folder / newest}$"):
            open_model(tmp_path / folder)


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"it holds a LoRA adapter: gpt2 serve MODEL --lora NAME={tmp_path}$"):
        open_model(tmp_path)
