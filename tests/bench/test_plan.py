import json

import pytest

from gpt2 import accounting, device
from gpt2.accounting import Sharing
from gpt2.bench.plan import SPARE, plan
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

CONFIG = TrainConfig(
    model="d6", block_size=128, total_batch_size=128 * 60, batch_size=1, device="cpu", dtype="float32", max_iters=10
)
SHAPE = GPTConfig.preset("d6", block_size=128)


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(device, "free_memory", lambda where: size)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("size", [900_000_000, 1_500_000_000, 10**12])
def test_the_largest_micro_batch_that_fits_is_chosen(
    processes: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, size)
    found = plan(CONFIG, processes, False, lambda line: None)
    assert found.config.tokens_per_step == CONFIG.tokens_per_step

    def needs(batch_size: int) -> int:
        return accounting.memory(SHAPE, Sharing(processes), batch_size, half=False, compiled=True, device="cpu").total

    each = 60 // processes
    fitting = [b for b in range(1, each + 1) if each % b == 0 and needs(b) <= (1 - SPARE) * size]
    assert found.config.batch_size == max(fitting)
    assert found.memory.total == needs(max(fitting))
    assert (found.tokens, found.checkpoint) == (10 * 128 * 60, 12 * accounting.num_params(SHAPE))


def test_a_run_that_does_not_fit_is_refused_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 10**8)
    with pytest.raises(
        UserError, match=r"a single sequence needs 0\.\d GB, and 0\.1 GB are free; .*--activation_checkpoin"
    ):
        plan(CONFIG, 1, False, lambda line: None)


def test_the_command_prints_the_plan(gpt2_command) -> None:
    flags = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--max_iters=50", "--compile=False"]
    flags += ["--vocab_size=300", "--batch_size=2", "--device=cpu", "--keep_checkpoints=3"]
    status, out, err = gpt2_command("plan", *flags, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["tokens"], found["batch_size"], found["gradient_accumulation_steps"]) == (1600, 2, 1)
    assert found["seconds"] == pytest.approx(1600 / found["tokens_per_second"])
    assert found["parameters"] == accounting.num_params(GPTConfig(16, 300, 1, 1, 16))
    status, out, _ = gpt2_command("plan", *flags, "--no-probe")
    assert status == 0
    assert "step      32 tokens: --batch_size=2 --gradient_accumulation_steps=1\n" in out
    assert "at most 5, " in out
    assert "time " not in out
    assert gpt2_command("plan", *flags, "--nproc=3")[2] == (
        "gpt2: the 2 sequences of an optimizer step cannot be divided among 3 processes\n"
    )


def test_the_planned_model_is_the_one_that_will_be_trained(tiny, dataset, tmp_path) -> None:
    """Its vocabulary is the dataset's, or its shape is that of the model to be fine-tuned."""
    vocab_size = open_dataset(str(dataset)).tokenizer.vocab_size
    expected = accounting.num_params(GPTConfig(16, vocab_size, 2, 2, 16))
    assert plan(tiny(), 1, False, print).parameters == expected
    assert plan(tiny(), 1, True, print).tokens_per_second
    train(tiny(max_iters=1, warmup_iters=0))
    tuned = TrainConfig(init_from=str(tmp_path / "run"), block_size=8, device="cpu", dataset="fineweb-edu")
    assert plan(tuned, 1, False, print).parameters == expected - 8 * 16


def test_max_epochs_limits_the_planned_tokens(tiny) -> None:
    config = tiny(max_epochs=2.0, max_iters=10**6, warmup_iters=0)
    epoch = len(open_dataset(config.dataset).split("train", 16))
    steps = 2 * epoch // config.tokens_per_step
    assert plan(config, 1, False, print).tokens == steps * config.tokens_per_step


def test_the_free_memory_of_a_container(tmp_path) -> None:
    assert device.free_in_container(tmp_path) > 10**18
    for name, text in {
        "memory.current": "700",
        "memory.stat": "file 300\ninactive_file 200\n",
        "memory.max": "max",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert device.free_in_container(tmp_path) > 10**18
    (tmp_path / "memory.max").write_text("1000\n")
    assert device.free_in_container(tmp_path) == 500
