"""Settings that follow from others: how often and how long a run evaluates, and where its learning rate ends."""

import dataclasses

import pytest

from gpt2.errors import UserError
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train


@pytest.mark.parametrize(
    ("settings", "interval", "iters"),
    [
        ({"max_iters": 5000}, 250, 20),  # own text on a laptop
        ({"max_iters": 600_000, "gradient_accumulation_steps": 40}, 2000, 200),  # nanoGPT's GPT-2
        ({"max_iters": 100}, 5, 1),
        ({"max_iters": 10}, 1, 1),
        ({"max_iters": 5000, "eval_interval": 1000}, 1000, 20),
        ({"max_iters": 5000, "eval_interval": 20}, 20, 3),
        ({"max_iters": 5000, "eval_iters": 400}, 250, 400),
    ],
)
def test_evaluations_take_at_most_a_tenth_of_the_time(settings: dict[str, int], interval: int, iters: int) -> None:
    config = TrainConfig(**settings).resolved()
    assert (config.eval_interval, config.eval_iters) == (interval, iters)
    if "eval_iters" not in settings and interval > 6:  # of one batch at least there is no less
        forward_passes = 2 * iters
        assert forward_passes <= 0.1 * 3 * config.accumulation * interval


def test_a_longer_run_can_take_its_schedule_along(tiny, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny(max_iters=4, warmup_iters=0, learning_rate=1e-2, min_lr=1e-3, eval_interval=4)
    train(config)
    longer = dataclasses.replace(config, init_from="resume", max_iters=8, lr_decay_iters=4)
    train(dataclasses.replace(longer, max_iters=6))
    assert (
        "reaches min_lr=0.001 at step 4 (lr_decay_iters) and stays there; --lr_decay_iters=auto"
        in capfd.readouterr().err
    )
    rates: list[float] = []
    train(
        dataclasses.replace(longer, lr_decay_iters="auto"),
        callback=lambda event, step, values: rates.append(values["lr"]) if event == "train" else None,
    )
    assert rates[0] > 2e-3  # step 7 of 8 of a cosine from 1e-2 to 1e-3
    assert rates[-1] < rates[0]


def test_an_earlier_end_is_before_the_end_of_the_schedule(tiny, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny(max_iters=8, warmup_iters=0, learning_rate=1e-2, min_lr=1e-3, eval_interval=4)
    rates: dict[str, list[float]] = {"whole": [], "cut": [], "auto": []}

    def collect(name: str, **changes) -> str:
        train(
            dataclasses.replace(config, **changes),
            callback=lambda event, step, values: rates[name].append(values["lr"]) if event == "train" else None,
        )
        return capfd.readouterr().err

    collect("whole", out_dir=f"{config.out_dir}-whole")
    train(dataclasses.replace(config, max_iters=4, lr_decay_iters=8), quiet=True)
    line = (
        "the learning rate decays until step 8 (lr_decay_iters), and the run ends at step 6, before it reaches "
        "min_lr=0.001; --lr_decay_iters=auto lets it decay faster, until step 6"
    )
    assert "--lr_decay_iters=auto lets" not in collect("auto", init_from="resume", max_iters=6, lr_decay_iters="auto")
    train(dataclasses.replace(config, max_iters=4, lr_decay_iters=8, overwrite=True), quiet=True)
    assert line in collect("cut", init_from="resume", max_iters=6, lr_decay_iters=8)
    assert rates["cut"] == rates["whole"][4:6]
    assert all(faster < slower for faster, slower in zip(rates["auto"], rates["cut"], strict=True))


@pytest.mark.parametrize("value", ["end", "1.5", ""])
def test_another_word_is_no_end_of_the_schedule(value: str) -> None:
    with pytest.raises(UserError, match="must be a whole number, or auto"):
        TrainConfig(lr_decay_iters=value)
