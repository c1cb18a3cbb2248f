"""What a command imports: the time until it begins, as far as a test can see it without a clock."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2
from gpt2.training.loop import train

HEAVY = {
    *("torch._dynamo", "torch._inductor", "sympy"),  # a second, for torch.compile
    *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.optim", "torch.distributed.elastic"),
    *("matplotlib", "pyarrow", "huggingface_hub", "transformers", "tokenizers", "tiktoken", "rustbpe", "gguf"),
    *("starlette", "uvicorn", "pydantic", "prometheus_client"),  # for `--ui` and `gpt2 serve`
    *("rich.progress", "http.server", "wandb", "trackio", "tensorboard", "torch.utils.tensorboard", "lm_eval"),
}

CODE = """
import json, sys
import torch
before = set(sys.modules)  # what PyTorch imports in any case
from gpt2.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules.keys() - before)]))
"""

TRAIN = "train --dataset={data} --device=cpu --no-compile --batch_size=2 --max_iters=1 --eval_iters=1 --out_dir=new"
SHAPE = "--n_layer=1 --n_head=2 --n_embd=8 --block_size=16"


@pytest.mark.parametrize(
    "command",
    [
        f"{TRAIN} {SHAPE} --dtype=float32 --dropout=0.1 --sample_interval=1 --sample_tokens=2",
        f"{TRAIN} {SHAPE} --dtype=float16",
        f"{TRAIN} {SHAPE} --dtype=bfloat16 --optimizer=muon",
        f"{TRAIN} --init_from={{run}} --block_size=16",
        "sample {run} --device=cpu --max_new_tokens=2",
        "eval loss {run} {data} --device=cpu --tokens=40",
    ],
)
def test_without_compiling_nothing_heavy_is_imported(command: str, tiny, dataset: Path, tmp_path: Path) -> None:
    run = train(tiny(max_iters=1, eval_iters=1)).out_dir
    done = subprocess.run(
        [sys.executable, "-c", CODE, *(word.format(run=run, data=dataset) for word in command.split())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    status, imported = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    assert "gpt2.model" in imported
    assert HEAVY.intersection(imported) == set()


INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

_, module, handling = sys.argv
signal.signal(signal.SIGINT, signal.SIG_IGN if handling == "ignored" else signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["--version"]
runpy.run_module("gpt2", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.parametrize("module", ["gpt2.cli", "cyclopts", "gpt2.cli.validate"])
def test_an_interrupt_during_the_imports_is_quiet(module: str) -> None:
    def run(handling: str) -> tuple[int, str, str]:
        words = [sys.executable, "-c", INTERRUPTED, module, handling]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    assert run("usual") == (130, "", "")
    assert run("ignored") == (0, f"{gpt2.__version__}\n", "")
