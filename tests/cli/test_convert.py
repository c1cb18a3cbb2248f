"""`gpt2 export`, `gpt2 import`, `gpt2 validate` as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.evaluation import against_transformers
from gpt2.formats.open import load
from gpt2.training.loop import train


@pytest.fixture
def run(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=2, block_size=16))
    return tmp_path


@pytest.mark.parametrize("name", ["hf", "nanogpt", "llmc", "gguf", "safetensors"])
def test_an_exported_model_can_be_sampled_imported_and_evaluated(name: str, run: Path, dataset, gpt2_command) -> None:
    status, out, err = gpt2_command("export", name, "r", "made")
    assert status == 0, err
    assert out.startswith("wrote made · read back: largest logit difference 0 (largest logit ")
    model = "made"
    texts = [gpt2_command("sample", m, "--max_new_tokens=20", "--device=cpu")[1] for m in ("r", model)]
    assert texts[0] == texts[1] != ""
    losses = [gpt2_command("eval", "loss", m, dataset, "--json", "--device=cpu")[1] for m in ("r", model)]
    assert json.loads(losses[0])["loss"] == json.loads(losses[1])["loss"]
    status, out, err = gpt2_command("import", model, "back", "--json")
    assert status == 0, err
    assert json.loads(out)["logit_difference"] == 0
    assert gpt2_command("sample", "back", "--max_new_tokens=20", "--device=cpu")[1] == texts[0]


def test_an_import_can_be_trained_on(run: Path, dataset, gpt2_command) -> None:
    gpt2_command("export", "hf", "r", "made")
    assert gpt2_command("import", "made", "back")[0] == 0
    line = f"train --init_from=resume --out_dir=back --dataset={dataset} --max_iters=3 --eval_iters=1 --no-compile"
    status, _, err = gpt2_command(*line.split())
    assert status == 0, err
    assert "finished at step 3" in err


def test_an_import_can_correct_the_activation(run: Path, gpt2_command) -> None:
    gpt2_command("export", "nanogpt", "r", "made")
    assert gpt2_command("import", "made", "back", "--gelu=erf")[0] == 0
    assert load("back")[0].config.gelu == "erf"


def test_the_debug_state_can_use_a_dataset(run: Path, dataset: Path, gpt2_command) -> None:
    line = f"export llmc r made --dataset={dataset} --batch_size=2 --block_size=8"
    status, _, err = gpt2_command(*line.split())
    assert status == 0, err
    state = np.frombuffer(Path("made/gpt2_d2_debug_state.bin").read_bytes()[:1152], "<i4")
    assert state[2:4].tolist() == [2, 8]
    tokens = np.fromfile(dataset / "val.bin", dtype="<u2")[:17].tolist()
    assert state[256:272].tolist() == tokens[:16]
    assert state[272:288].tolist() == tokens[1:]


def test_the_debug_state_can_have_another_shape(run: Path, gpt2_command) -> None:
    assert gpt2_command("export", "llmc", "r", "made", "--batch_size=3", "--block_size=5")[0] == 0
    state = np.frombuffer(Path("made/gpt2_d2_debug_state.bin").read_bytes()[:1024], "<i4")
    assert state[2:4].tolist() == [3, 5]


def test_validate_reports_agreement_and_disagreement(
    run: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    status, out, err = gpt2_command("validate", "r")
    assert status == 0, err
    assert out.splitlines()[-1] == "agrees with transformers"
    assert "of 8 tokens equal" in out  # the context has no space for more
    values = json.loads(gpt2_command("validate", "r", "--json")[1])
    assert values["agrees"] is True
    assert values["loss"] == pytest.approx(values["their_loss"], abs=1e-6)

    def square_matrix_not_transposed(model):
        for name, p in model.named_parameters():
            turn = name.endswith(("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight"))
            yield name, p.detach().t() if turn else p.detach()

    status, out, _ = gpt2_command("validate", "r", "--quantize=int8")
    assert status == 0
    assert "agrees" not in out
    exact, reduced = values, json.loads(gpt2_command("validate", "r", "--quantize=int8", "--json")[1])
    assert exact["same_likeliest"] == 1
    assert 0.5 < reduced["same_likeliest"] <= 1
    assert 10 * exact["logit_difference"] < reduced["logit_difference"] < 0.1 * reduced["logit_scale"]
    assert reduced["their_loss"] == exact["their_loss"]
    assert f"at {reduced['same_likeliest']:.1%} of the positions" in out

    torch.manual_seed(0)
    monkeypatch.setattr(against_transformers, "huggingface_tensors", square_matrix_not_transposed)
    status, out, _ = gpt2_command("validate", "r")
    assert status == 1
    assert out.splitlines()[-1].startswith("DIFFERS")
