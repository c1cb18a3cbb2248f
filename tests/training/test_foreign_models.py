"""Training that goes on from, or into, another program's files."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import curve, final_weights

import gpt2
from gpt2.data.batches import gather
from gpt2.data.prepare import prepare
from gpt2.errors import UserError
from gpt2.formats.export import export
from gpt2.formats.open import build, open_model
from gpt2.model import GPT, GPTConfig
from gpt2.training.import_run import import_run
from gpt2.training.loop import train
from gpt2.training.recipes import resume_config
from gpt2.training.setup import set_up


def quiet(line: str) -> None:
    pass


def test_a_run_that_went_through_nanogpts_format_goes_on_bit_for_bit(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(out_dir="straight", max_iters=10, lr_decay_iters=20, bias=False, gelu="erf", beta2=0.97)
    train(config)
    export(open_model("straight/checkpoints/step_0000010"), "nanogpt", Path("ckpt"), quiet)
    import_run(open_model("ckpt/ckpt.pt"), Path("back"), quiet)
    for out_dir in ("straight", "back"):
        where = {"compile": False, "device": "cpu", "dtype": "float32"}  # the same for both, on any machine
        train(resume_config(out_dir, dataset=config.dataset, max_iters=20, **where))
    straight = [record for record in curve(Path("straight")) if record[1] > 10]
    assert [record for record in curve(Path("back")) if record[1] > 10] == straight
    assert final_weights(Path("back")) == final_weights(Path("straight"))


def test_an_imported_run_keeps_the_momentum_of_muon(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="straight", max_iters=10, lr_decay_iters=20, optimizer="muon"))
    import_run(open_model("straight/checkpoints/step_0000010"), Path("back"), quiet)
    for out_dir in ("straight", "back"):
        train(resume_config(out_dir, max_iters=20, device="cpu"))
    assert final_weights(Path("back")) == final_weights(Path("straight"))


def test_nanogpt_gets_no_optimizer_state_of_a_run_with_muon(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=4, optimizer="muon"))
    notes: list[str] = []
    export(open_model("r"), "nanogpt", Path("ckpt"), notes.append)
    assert any("AdamW, whose state is not known for all parameters" in line for line in notes)
    assert torch.load("ckpt/ckpt.pt", weights_only=True)["optimizer"]["state"] == {}


def test_an_imported_run_keeps_what_the_file_knows(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=4, learning_rate=3e-3, weight_decay=0.2))
    export(open_model("r"), "nanogpt", Path("ckpt"), quiet)
    import_run(open_model("ckpt"), Path("back"), quiet)
    config = resume_config("back")
    assert (config.learning_rate, config.weight_decay, config.batch_size) == (3e-3, 0.2, 4)
    assert json.loads(Path("back/checkpoints/step_0000004/state.json").read_text())["tokens"] == 4 * 64
    with pytest.raises(UserError, match="already exists"):
        import_run(open_model("ckpt"), Path("back"), quiet)


@pytest.mark.parametrize("step", [4, 0])
def test_an_imported_model_stays_the_best_while_training_makes_it_worse(step: int, tiny, tmp_path: Path) -> None:
    config = tiny(out_dir=str(tmp_path / "r"), max_iters=40, learning_rate=1e-2)
    train(config)
    source = open_model(str(tmp_path / "r"))
    source = replace(source, progress=replace(source.progress, step=step))
    import_run(source, tmp_path / "back", quiet)
    worse = {
        "max_iters": step + 20,
        "learning_rate": 3.0,
        "decay_lr": False,
        "eval_interval": 7,
        "keep_checkpoints": 1,
    }
    train(resume_config(tmp_path / "back", **worse, compile=False, device="cpu"))
    assert open_model(str(tmp_path / "back")).progress.step == step


def test_fine_tuning_can_take_the_optimizer_along(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=6))
    export(open_model("r"), "nanogpt", Path("ckpt"), quiet)
    for model in ("r", "ckpt"):
        config = tiny(out_dir="new", init_from=model, resume_optimizer=True, block_size=8, dropout=0.1)
        run = set_up(config, quiet)
        before = open_model("r").progress.optimizer()
        for name, parameter in run.model.named_parameters():
            rows = 8 if name.endswith("wpe.weight") else None
            state = run.optimizers[0].state[parameter]
            assert torch.equal(state["exp_avg"], before[f"{name}/exp_avg"][:rows])
            assert torch.equal(state["exp_avg_sq"], before[f"{name}/exp_avg_sq"][:rows])
            assert state["step"] == 6
        assert (run.config.block_size, run.model.config.dropout) == (8, 0.1)
    run = set_up(replace(config, resume_optimizer=False), quiet)
    assert not run.optimizers[0].state


@pytest.mark.parametrize(("first", "other"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused(first: str, other: str, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=2, optimizer=first))
    took_along = tiny(out_dir="new", init_from="r", resume_optimizer=True, optimizer=first)
    state = set_up(took_along, quiet).optimizers[-1].state
    assert len(state) and all(len(kept) for kept in state.values())
    with pytest.raises(UserError, match=f"optimizer={other} cannot continue with the state of another optimizer"):
        set_up(replace(took_along, optimizer=other), quiet)


def test_without_an_optimizer_state_that_is_refused(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=2))
    export(open_model("r"), "safetensors", Path("bare.safetensors"), quiet)
    for init_from in ("scratch", "bare.safetensors"):
        with pytest.raises(UserError, match="has no optimizer state"):
            set_up(tiny(out_dir="new", init_from=init_from, resume_optimizer=True), quiet)


def test_the_models_gelu_is_kept_unless_another_is_asked_for(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=1, gelu="erf"))
    assert set_up(tiny(out_dir="a", init_from="r"), quiet).config.gelu == "erf"
    notes: list[str] = []
    run = set_up(tiny(out_dir="a", init_from="r", gelu="tanh"), notes.append)
    assert (run.config.gelu, run.model.config.gelu) == ("tanh", "tanh")
    assert any("computing the tanh GELU" in line for line in notes)
    assert set_up(tiny(out_dir="b"), quiet).config.gelu == "tanh"


@pytest.mark.parametrize("heed", [False, True])
def test_llm_cs_tensors_are_written_before_the_first_update_and_change_nothing(
    tiny, heeding: dict, heed: bool, tmp_path: Path
) -> None:
    """Computed without a document mask, as llm.c computes."""
    plain = tiny(out_dir=str(tmp_path / "a"), **heeding if heed else {})
    config = replace(plain, out_dir=str(tmp_path / "b"), write_tensors=True)
    fresh = set_up(config, quiet)
    x, y = gather(fresh.batches.tokens, fresh.batches.starts(0)[:4], 16, torch.device("cpu"))
    _, loss = fresh.model.eval()(x, y)
    train(plain)
    train(config)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    files = {p.name for p in (tmp_path / "b" / "llmc").iterdir()}
    assert files == {"gpt2_d2.bin", "gpt2_d2_bf16.bin", "gpt2_d2_debug_state.bin", "gpt2_tokenizer.bin"}
    written = build(open_model(str(tmp_path / "b" / "llmc" / "gpt2_d2.bin")))
    for (name, p), q in zip(fresh.model.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(p, q), name
    state = (tmp_path / "b" / "llmc" / "gpt2_d2_debug_state.bin").read_bytes()
    assert np.frombuffer(state[1024 : 1024 + 256], "<i4").tolist() == x.flatten().tolist()
    after = 1024 + 2 * 256 + 4 * 64 * fresh.model.config.vocab_size
    assert np.frombuffer(state[after : after + 4], "<f4")[0] == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize(("dtype", "compiled"), [("float16", True), ("bfloat16", False), ("float32", True)])
def test_an_imported_run_keeps_its_dtype_and_whether_it_is_compiled(
    dtype: str, compiled: bool, tiny, gpt2_command, tmp_path: Path
) -> None:
    train(tiny(max_iters=1))
    assert gpt2_command("export", "nanogpt", tmp_path / "run", tmp_path / "nano")[0] == 0
    content = torch.load(tmp_path / "nano" / "ckpt.pt", weights_only=True)
    content["config"] = content.get("config", {}) | {"dtype": dtype, "compile": compiled, "device": "cuda"}
    torch.save(content, tmp_path / "nano" / "ckpt.pt")
    status, _, err = gpt2_command("import", tmp_path / "nano", tmp_path / "imported")
    assert status == 0
    assert f"gpt2 train --init_from=resume --out_dir={tmp_path / 'imported'} --dataset=" in err
    settings = tomllib.loads((tmp_path / "imported" / "config.toml").read_text())
    assert (settings["dtype"], settings["compile"], settings["device"]) == (dtype, compiled, "auto")


def test_data_of_gpt2_fits_a_model_whose_vocabulary_is_rounded_up(
    gpt2_vocabulary: None, tiny, text: str, tmp_path: Path, gpt2_command
) -> None:
    (tmp_path / "t.txt").write_text(text)
    data = prepare(tmp_path / "t.txt", out=tmp_path / "d", tokenizer="gpt2")
    model = GPT(GPTConfig(block_size=16, vocab_size=50304, n_layer=2, n_head=2, n_embd=16))
    sizes = {
        name: getattr(model.config, name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    }
    torch.save({"model": model.state_dict(), "model_args": sizes}, tmp_path / "c.pt")
    run = set_up(tiny(out_dir=str(tmp_path / "r"), dataset=str(data), init_from=str(tmp_path / "c.pt")), quiet)
    assert run.model.config.vocab_size == 50304
    assert gpt2_command("eval", "loss", tmp_path / "c.pt", data, "--device=cpu")[0] == 0


@pytest.mark.parametrize("init_from", ["resume", "auto"])
def test_the_run_of_another_program_is_not_started_over(tiny, tmp_path: Path, init_from: str) -> None:
    """It would be a run from random weights in the folder of the other one."""
    ours = GPT(GPTConfig(block_size=16, vocab_size=20, n_layer=1, n_head=1, n_embd=8))
    (tmp_path / "llmc").mkdir()
    gpt2.export(ours, "safetensors", tmp_path / "llmc" / "model_00000100.safetensors")
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "ckpt.pt").touch()
    with pytest.raises(
        UserError, match=r"llmc holds models of another program; start .*--init_from=\S*model_00000100"
    ):
        set_up(tiny(out_dir=str(tmp_path / "llmc"), init_from=init_from), quiet)
    with pytest.raises(UserError, match="nano holds a run of nanoGPT; import it with: gpt2 import"):
        set_up(tiny(out_dir=str(tmp_path / "nano"), init_from=init_from), quiet)
