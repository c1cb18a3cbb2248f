"""Checkpoints as nanoGPT's and build-nanogpt's scripts save them, put together here by hand."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_mutants import save_build_nanogpt
from toys import assert_same_weights, characters, opened, toy, weights

from gpt2.errors import UserError
from gpt2.formats.export import export
from gpt2.formats.open import build, open_model
from gpt2.formats.tokenizer_writer import meta_bytes
from gpt2.model import GPT
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.import_run import import_run
from gpt2.training.recipes import resume_config


def save(path: Path, network: GPT, prefix: str = "", **changes: object) -> Path:
    """What nanoGPT's train.py saves; `changes` to its dictionary, where None leaves something out."""
    names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    state = {**weights(network), "lm_head.weight": weights(network)["transformer.wte.weight"]}
    values = {
        "model": {prefix + name: t for name, t in state.items()},
        "optimizer": None,
        "model_args": {name: getattr(network.config, name) for name in names},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "beta2": 0.99},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in (values | changes).items() if v is not None}, path)
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_its_weights_are_read_under_any_wrapping(prefix: str, bias: bool, tmp_path: Path) -> None:
    model = toy(bias=bias, gelu="erf")
    source = open_model(str(save(tmp_path / "ckpt.pt", model, prefix)))
    assert source.config.gelu == "erf"
    assert "erf GELU" in source.notes[0]
    assert (source.progress.step, source.progress.settings["beta2"]) == (250, 0.99)
    assert source.progress.optimizer is None
    assert_same_weights(build(source), model)
    assert_same_weights(opened(tmp_path), model)  # its folder will do


def test_masks_of_old_versions_are_dropped_and_bias_is_their_default(tmp_path: Path) -> None:
    model = toy()
    state = {**weights(model), "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}
    args = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 33, "dropout": 0.0}
    assert_same_weights(opened(save(tmp_path / "ckpt.pt", model, model=state, model_args=args)), model)


def test_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    state = {**weights(toy()), "lm_head.weight": torch.zeros(33, 8)}
    with pytest.raises(UserError, match="head is its token embedding"):
        opened(save(tmp_path / "ckpt.pt", toy(), model=state))


@pytest.mark.parametrize("bias", [True, False])
def test_the_optimizer_is_read_by_name(bias: bool, tmp_path: Path) -> None:
    """Against an AdamW grouped as nanoGPT's configure_optimizers groups it."""
    model = toy(bias=bias)
    named = dict(model.named_parameters())
    groups = [[p for p in named.values() if p.dim() >= 2], [p for p in named.values() if p.dim() < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3)
    x = torch.arange(16)[None]
    model(x, x)[1].backward()
    optimizer.step()
    source = open_model(str(save(tmp_path / "ckpt.pt", model, optimizer=optimizer.state_dict())))
    found = source.progress.optimizer()
    assert len(found) == 3 * len(named)
    for name, parameter in named.items():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(found[f"{name}/{key}"], value), (name, key)


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 3), "exp_avg_sq": torch.zeros(3, 3)}
    path = save(tmp_path / "ckpt.pt", toy(), optimizer={"state": {0: state}, "param_groups": []})
    source = open_model(str(path))
    with pytest.raises(UserError, match=r"exp_avg of transformer\.wte"):
        source.progress.optimizer()


def test_the_characters_are_found_where_nanogpt_keeps_them(tmp_path: Path) -> None:
    path = save(tmp_path / "out" / "ckpt.pt", toy())
    with pytest.raises(UserError, match="brings no tokenizer"):
        _ = open_model(str(path)).tokenizer
    data = tmp_path / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    (data / "meta.pkl").write_bytes(meta_bytes(characters(33)))
    assert pickle.loads((data / "meta.pkl").read_bytes())["vocab_size"] == 33
    assert open_model(str(path)).tokenizer.to_json() == characters(33).to_json()
    assert open_model(str(path), tokenizer=str(data)).tokenizer.to_json() == characters(33).to_json()
    with pytest.raises(UserError, match=re.escape("257 ids, more than the 33")):
        open_model(str(path), tokenizer="byte")


def test_gpt2s_vocabulary_is_known_by_its_size(gpt2_vocabulary: None, tmp_path: Path) -> None:
    for size in (50257, 50304):
        path = save(tmp_path / "ckpt.pt", toy(vocab_size=size))
        assert open_model(str(path)).tokenizer.kind == "gpt2"


def test_build_nanogpts_checkpoint(tmp_path: Path) -> None:
    model = toy(n_embd=32)
    save_build_nanogpt({**weights(model), "lm_head.weight": weights(model)["transformer.wte.weight"]}, tmp_path / "a")
    source = open_model(str(tmp_path / "a"))
    assert source.config.gelu == "tanh"
    assert source.progress.step == 5000
    assert_same_weights(build(source), model)


def test_a_bare_state_dict_is_taken_by_its_shapes(tmp_path: Path) -> None:
    model = toy(n_embd=128, n_head=2, vocab_size=257)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    source = open_model(str(tmp_path / "weights.pt"), tokenizer="byte")
    assert "n_head=2 and tanh" in source.notes[0]
    assert source.tokenizer.to_json() == ByteTokenizer().to_json()
    assert_same_weights(build(source), model)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="holds no GPT-2"):
        open_model(str(tmp_path / "other.pt"))


def test_its_dropout_comes_along(tmp_path: Path) -> None:
    args = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 33, "bias": True, "dropout": 0.2}
    source = open_model(str(save(tmp_path / "ckpt.pt", toy(), model_args=args)))
    assert source.config.dropout == 0.2
    folder = import_run(replace(source, find_tokenizer=lambda: characters(33)), tmp_path / "run", lambda line: None)
    assert resume_config(tmp_path / "run").dropout == 0.2
    export(open_model(str(folder)), "nanogpt", tmp_path / "again", lambda line: None)
    assert torch.load(tmp_path / "again" / "ckpt.pt")["model_args"]["dropout"] == 0.2


def test_a_model_does_not_change_when_its_file_does(tmp_path: Path) -> None:
    """nanoGPT writes over its checkpoint at every evaluation, and the file may be mapped into memory."""
    model = opened(save(tmp_path / "ckpt.pt", toy()))
    (tmp_path / "ckpt.pt").write_bytes(bytes((tmp_path / "ckpt.pt").stat().st_size))
    assert_same_weights(model, toy())


def test_an_optimizer_that_is_not_the_models_does_not_hold_up_the_weights(tmp_path: Path) -> None:
    state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 3), "exp_avg_sq": torch.zeros(3, 3)}
    source = open_model(str(save(tmp_path / "ckpt.pt", toy(), optimizer={"state": {0: state}, "param_groups": []})))
    notes: list[str] = []
    import_run(replace(source, find_tokenizer=lambda: characters(33)), tmp_path / "run", notes.append)
    assert any("AdamW starts with an empty state" in line for line in notes)


def test_settings_that_do_not_fit_are_left_at_their_defaults(tmp_path: Path) -> None:
    settings = {"dataset": "words", "warmup_iters": 2000, "lr_decay_iters": 1000}
    source = open_model(str(save(tmp_path / "ckpt.pt", toy(), config=settings)))
    notes: list[str] = []
    import_run(replace(source, find_tokenizer=lambda: characters(33)), tmp_path / "run", notes.append)
    assert any("warmup_iters=2000 is more than" in line for line in notes)
    assert resume_config(tmp_path / "run").dataset == "words"


def test_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "out" / "ckpt.pt", toy())
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "meta.pkl").write_bytes(meta_bytes(characters(33)))
    monkeypatch.chdir(tmp_path / "out")
    assert open_model("ckpt.pt").tokenizer.to_json() == characters(33).to_json()
    assert open_model(".").tokenizer.to_json() == characters(33).to_json()


@pytest.mark.parametrize(
    ("dtype", "change", "accepted"),
    [(torch.float16, 0.0, True), (torch.bfloat16, 0.0, True), (torch.float16, 0.1, False)],
)
def test_a_head_in_another_format_is_compared_in_it(dtype, change: float, accepted: bool, tmp_path: Path) -> None:
    head = (weights(toy())["transformer.wte.weight"] + change).to(dtype)
    path = save(tmp_path / "ckpt.pt", toy(), model={**weights(toy()), "lm_head.weight": head})
    if accepted:
        assert_same_weights(opened(path), toy())
    else:
        with pytest.raises(UserError, match="head"):
            opened(path)
