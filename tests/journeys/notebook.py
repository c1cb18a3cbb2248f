"""The library as in a notebook: train with a callback, generate, evaluate, resume, plot, export, and own layers.

    python tests/journeys/notebook.py [FILE or FOLDER]

Prints the time of each step in seconds, then `ok`, or the step that failed, with status 1. About a minute on two
cores. The default text is some modules of Python's standard library, so that no network is needed.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import gpt2


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the time of a step of the journey, and end the journey where the step fails."""
    began = time.perf_counter()
    try:
        yield
    except Exception:
        traceback.print_exc()
        print(f"failed: {name} (everything is in {Path.cwd()})")
        sys.exit(1)
    print(f"{time.perf_counter() - began:.1f} s  {name}", flush=True)


class SquaredReLU(nn.Module):
    """The feed-forward layer with squared ReLU, as in README."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.c_fc, self.c_proj = mlp.c_fc, mlp.c_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(torch.relu(self.c_fc(x)) ** 2)


SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 64}
TRAINING = {
    "batch_size": 16,
    "max_iters": 200,
    "warmup_iters": 20,
    "learning_rate": 1e-3,
    "eval_interval": 100,
    "eval_iters": 10,
    "compile": False,
}


def journey(text: str) -> None:
    """Go through what a user of the library does, in the working folder."""
    events: list[str] = []
    with step("prepare"):
        gpt2.prepare(text, out="data/bytes", tokenizer="byte")
    with step("train with a callback"):
        config = gpt2.TrainConfig(dataset="bytes", out_dir="out", **SHAPE, **TRAINING)
        result = gpt2.train(config, callback=lambda event, step, values: events.append(event))
        assert result.step == 200 and {"train", "eval"} <= set(events)
    with step("load and generate"):
        model, tokenizer = gpt2.load("out")
        texts = gpt2.generate(model, tokenizer, ["import", "def"], max_new_tokens=30)
        assert len(texts) == 2 and all(texts)
    with step("evaluate"):
        loss = gpt2.evaluate("out", "bytes", tokens=20_000).loss
        assert loss < 4, f"the loss {loss} is not below that of random bytes, 5.5"
    with step("resume"):
        result = gpt2.train(gpt2.resume_config("out", max_iters=300))
        assert result.step == 300
        assert gpt2.evaluate("out", "bytes", tokens=20_000).loss < loss
    with step("plot and report"):
        gpt2.plot("out", out="curves.png")
        gpt2.report("out", out="report.html")
        assert Path("curves.png").stat().st_size and Path("report.html").stat().st_size
    with step("export and load again"):
        gpt2.export("out", "hf", "my-model")
        assert gpt2.generate(*gpt2.load("my-model"), "import", max_new_tokens=5)
    with step("look inside"):
        ids = torch.tensor([tokenizer.encode("import asyncio")])
        assert gpt2.attention_weights(model, ids)[0].shape[-2:] == (ids.shape[1], ids.shape[1])
    with step("train own layers"):
        net = gpt2.GPT(gpt2.GPTConfig(vocab_size=257, **SHAPE))
        for block in net.transformer.h:
            block.mlp = SquaredReLU(block.mlp)
        config = gpt2.TrainConfig(dataset="bytes", out_dir="out-relu", block_size=64, **TRAINING)
        assert gpt2.train(config, model=net).step == 200
        assert gpt2.evaluate(net, "bytes", tokens=20_000).loss < 4


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(asyncio.__file__)).resolve()  # noqa: PTH120
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    journey(str(chosen))
    shutil.rmtree(folder)
    print("ok")
