import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt2 import accounting, device
from gpt2.accounting import Sharing
from gpt2.bench import probe
from gpt2.bench.plan import SPARE, Plan, estimate, for_gpus, plan, this_machine
from gpt2.bench.plan_text import published_mfu, span
from gpt2.bench.presets import NAMES
from gpt2.bench.published import ASSUMED_MFU, PUBLISHED
from gpt2.bench.workload import workload
from gpt2.data.corpora import CORPORA
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.formats.run_folder import snapshot_file
from gpt2.gpus import GPUS, find_gpu
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

CONFIG = TrainConfig(
    model="d6", block_size=128, total_batch_size=128 * 60, batch_size=1, device="cpu", dtype="float32", max_iters=10
)
SHAPE = GPTConfig.preset("d6", block_size=128)
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--max_iters=50", "--compile=False"]
TINY += ["--vocab_size=300", "--batch_size=2", "--device=cpu", "--keep_checkpoints=3"]


def silent(line: str) -> None:
    pass


def planned(config: TrainConfig, processes: int = 1) -> Plan:
    return plan(config, this_machine(config, processes), silent)


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(device, "free_memory", lambda where: size)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("size", [1_400_000_000, 2_000_000_000, 10**12])
def test_the_largest_micro_batch_that_fits_is_chosen(
    processes: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, size)
    found = planned(CONFIG, processes)
    assert found.config.tokens_per_step == CONFIG.tokens_per_step

    def needs(batch_size: int) -> int:
        accumulates = processes > 1 or batch_size < 60
        options: dict[str, Any] = {"half": False, "compiled": True, "device": "cpu", "accumulates": accumulates}
        return accounting.memory(SHAPE, Sharing(processes), batch_size, **options).total

    each = 60 // processes
    fitting = [b for b in range(1, each + 1) if each % b == 0 and needs(b) <= (1 - SPARE) * size]
    assert found.config.batch_size == max(fitting)
    assert found.memory.total == needs(max(fitting))
    assert (found.work.tokens, found.work.checkpoint) == (10 * 128 * 60, 12 * accounting.num_params(SHAPE))


def test_a_run_that_does_not_fit_is_refused_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 10**8)
    with pytest.raises(
        UserError, match=r"a single sequence needs \d\.\d GB, and 0\.1 GB are free; .* --parallel=fsdp"
    ):
        planned(CONFIG)
    config = TrainConfig(model="gpt2-xl", batch_size=8)
    gpu = find_gpu("rtx4090")
    with pytest.raises(UserError, match="does not fit with --activation_checkpointing either; share the model"):
        plan(config, for_gpus(config, gpu, 1), silent)
    with pytest.raises(UserError, match=r"fits with --zero_stage=1 \(1\d\.\d GB\) or --parallel=fsdp \(\d\.\d GB\)"):
        plan(config, for_gpus(config, gpu, 8), silent)
    sharded = replace(config, parallel="fsdp")
    found = plan(sharded, for_gpus(sharded, gpu, 8), silent)
    assert found.fits
    hybrid = replace(config, parallel="hsdp", batch_size=16)
    assert plan(hybrid, for_gpus(hybrid, gpu, 16), silent).memory == found.memory  # of two machines


def test_the_command_prints_the_plan(gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHORT_SECONDS", 0.1)
    status, out, err = gpt2_command("plan", *TINY, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["tokens"], found["batch_size"], found["gradient_accumulation_steps"]) == (1600, 2, 1)
    assert found["parameters"] == accounting.num_params(GPTConfig(16, 300, 1, 1, 16))
    [speed, same] = found["time"]["tokens_per_second"]
    assert speed == same
    time = found["time"]["longest"]
    assert time["training"] == pytest.approx(1600 / speed)
    assert time["evaluation"] > 0
    assert time["total"] == pytest.approx(sum(time.values()) - time["total"])
    status, out, _ = gpt2_command("plan", *TINY, "--no-probe")
    assert status == 0
    assert "step      --batch_size=2 --gradient_accumulation_steps=1\n" in out
    assert "50 steps × 32 tokens = 1,600 tokens" in out
    assert "time " not in out
    status, out, _ = gpt2_command("plan", *TINY)
    assert (status, "measured just now" in out) == (0, True)
    assert gpt2_command("plan", *TINY, "--nproc=3")[2] == (
        "gpt2: the 2 sequences of an optimizer step cannot be divided among 3 processes\n"
    )


def test_the_planned_model_is_the_one_that_will_be_trained(tiny, dataset, tmp_path) -> None:
    """Its vocabulary is the dataset's, or its shape is that of the model to be fine-tuned."""
    vocab_size = open_dataset(str(dataset)).tokenizer.vocab_size
    expected = accounting.num_params(GPTConfig(16, vocab_size, 2, 2, 16))
    found = planned(tiny())
    assert found.parameters == expected
    assert found.data.splits["train"] == len(open_dataset(str(dataset)).split("train", 16))
    train(tiny(max_iters=1, warmup_iters=0))
    tuned = TrainConfig(init_from=str(tmp_path / "run"), block_size=8, device="cpu", dataset="fineweb-edu")
    assert planned(tuned).parameters == expected - 8 * 16


def test_max_epochs_limits_the_planned_tokens(tiny) -> None:
    config = tiny(max_epochs=2.0, max_iters=10**6, warmup_iters=0)
    epoch = len(open_dataset(config.dataset).split("train", 16))
    steps = 2 * epoch // config.tokens_per_step
    found = planned(config)
    assert found.work.tokens == steps * config.tokens_per_step
    assert found.epochs == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("limit", ["max_tokens", "max_epochs"])
def test_the_defaults_of_a_plan_follow_from_the_limit_that_ends_the_run(tiny, limit: str) -> None:
    """65 steps with an evaluation every 3 steps, at the start and at the end."""
    epoch = len(open_dataset(tiny().dataset).splits["train"])
    tokens = 65.5 * tiny().tokens_per_step
    budget = {"max_tokens": int(tokens)} if limit == "max_tokens" else {"max_epochs": tokens / epoch}
    events: list[str] = []
    config = tiny(max_iters=10**6, eval_interval=None, eval_iters=None, **budget)
    train(config, callback=lambda event, step, values: events.append(event))
    work = planned(config).work
    assert (work.steps, work.evaluations, events.count("eval")) == (65, 23, 23)


def test_the_workload_is_what_a_run_does(tiny) -> None:
    """The records of a run are counted."""
    config = tiny(max_iters=25, eval_interval=10, checkpoint_interval=4, sample_interval=6, sample_tokens=5)
    config = replace(config, snapshot_interval="geometric")
    events: list[str] = []
    train(config, callback=lambda event, step, values: events.append(event))
    kept = [len(list((Path(config.out_dir) / "snapshots").iterdir()))]
    train(replace(config, snapshot_interval=10, overwrite=True))
    kept.append(len(list((Path(config.out_dir) / "snapshots").iterdir())))
    assert kept == [
        workload(replace(config, snapshot_interval=n), SHAPE, 25, {}).snapshots for n in ("geometric", 10)
    ]
    assert kept == [7, 4]
    file = snapshot_file(Path(config.out_dir), 10).read_bytes()
    work = planned(config).work
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == work.snapshot
    assert work.disk - replace(work, snapshots=0).disk == 7 * work.snapshot
    assert (work.evaluations, work.checkpoints) == (events.count("eval"), events.count("checkpoint"))
    assert work.sampled_tokens == 5 * events.count("sample")
    assert work.evaluated_tokens == work.evaluations * 2 * 2 * 4 * 16
    at_end = workload(replace(config, eval_interval=0, checkpoint_interval=0), SHAPE, 25, {})
    assert (at_end.evaluations, at_end.checkpoints) == (1, 1)


def test_a_corpus_that_is_not_prepared_is_described_without_a_network(gpt2_command, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, out, err = gpt2_command("plan", "gpt2", "--no-probe", "--device=cpu")
    assert status == 0, err
    assert "fineweb-edu (about 10 billion tokens) is not prepared yet:" in out
    assert "gpt2 train downloads 28.52 GB and prepares 20.00 GB of tokens first" in out
    assert all(corpus.size > 0 for corpus in CORPORA.values())


def test_the_assumed_speed_of_gpus_is_what_is_published() -> None:
    shares = [published_mfu(gpu, rate) for name, gpu, rate in PUBLISHED if not name.startswith("llm.c")]
    assert ASSUMED_MFU[0] <= min(shares) < ASSUMED_MFU[0] + 0.02
    assert max(shares) <= ASSUMED_MFU[1] < max(shares) + 0.02


def test_a_plan_for_gpus(gpt2_command) -> None:
    """8 H100 at 25 % to 40 % of 989 TFLOP/s: 8.55e18 FLOP take 0.75 to 1.2 hours."""
    flags = ["plan", "gpt2", "--gpu=H100", "--gpus=8", "--price=2.5", "--dataset=openwebtext"]
    status, out, err = gpt2_command(*flags, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    hours = [found["time"][end]["training"] / 3600 for end in ("shortest", "longest")]
    assert hours == pytest.approx([8.551e18 / (8 * share * 989e12) / 3600 for share in (0.4, 0.25)], rel=0.01)
    total = found["time"]["longest"]["total"]
    assert found["time"]["cost"][1] == pytest.approx(total / 3600 * 8 * 2.5)
    assert found["memory"]["process"] == 0
    assert found["hardware"]["dtype"] == "bfloat16"
    status, out, _ = gpt2_command(*flags)
    assert "on 8 × H100" in out
    assert "25% to 40% of the data sheet's 989 TFLOP/s" in out
    assert "gpt2 plan --gpu=list shows the published runs" in out
    status, out, _ = gpt2_command("plan", "gpt2", "--gpu=t4", "--memory=15", "--no-probe", "--dataset=openwebtext")
    assert (status, "of 15.00 GB on each T4, in float16" in out) == (0, True)


def test_the_table_of_gpus(gpt2_command) -> None:
    status, out, _ = gpt2_command("plan", "--gpu=list")
    assert status == 0
    assert all(gpu.name in out for gpu in GPUS)
    assert len(json.loads(gpt2_command("plan", "--gpu=list", "--json")[1])) == len(GPUS)
    assert gpt2_command("plan", "--gpu=H1000")[::2] == (2, "gpt2: no GPU 'H1000' in the table; did you mean H100?\n")
    assert gpt2_command("plan", *TINY, "--price=2")[0] == 2
    assert gpt2_command("plan", *TINY, "--gpu=H100", "--nproc=2")[0] == 2


def test_the_table_of_model_sizes(gpt2_command) -> None:
    status, out, err = gpt2_command("plan")
    assert status == 0, err
    assert all(name in out for name in NAMES)
    found = json.loads(gpt2_command("plan", "--table", "--gpu=A100", "--gpus=8", "--price=1", "--json")[1])
    assert [row["name"] for row in found] == list(NAMES)
    assert all(row["tokens"] == 20 * row["parameters"] for row in found)
    assert found[1]["seconds"][0] == pytest.approx(
        found[1]["tokens"] * found[1]["flops_per_token"] / (8 * 0.4 * 312e12)
    )
    assert found[1]["cost"][0] == pytest.approx(found[1]["seconds"][0] / 3600 * 8)
    status, out, _ = gpt2_command("plan", "--table", "--gpu=RTX-4090")
    assert "does not fit" in out


def test_a_model_that_is_too_slow_for_a_probe_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "measured_flops", lambda where, dtype: 1e6)
    found = planned(CONFIG)
    time = estimate(found, silent)
    assert time.origin == "matrix products"
    assert time.slow.tokens_per_second == pytest.approx(0.4e6 / accounting.flops_per_token(SHAPE))
    assert time.shortest.total < time.longest.total


def test_a_range_of_times_has_one_unit() -> None:
    assert span(3000, 4200) == "50 to 70 minutes"
    assert span(7200, 14_321) == "2 to 4 hours"
    assert span(12, 12) == "12 seconds"
    assert span(86_400, 864_000) == "1 to 10 days"


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
