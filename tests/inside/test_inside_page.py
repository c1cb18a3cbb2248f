"""The blocks of docs/inside.md at toy scale, and those that need packages which are seldom installed."""

import random
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import BLOCK, Document
from generation.models import random_model

import gpt2
from gpt2.inside.induction import induction, repeated_tokens
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer

PAGE = Path(__file__).parent.parent.parent / "docs" / "inside.md"


def test_the_page_on_the_inside_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    gpt2.export(random_model(block_size=64), "hf", "out-mine", tokenizer=ByteTokenizer())
    Path("scene.txt").write_text("My lord, what say you?")
    Path("input.txt").write_text("".join(random.Random(0).choices(string.ascii_letters, k=20000)))
    gpt2.prepare("input.txt", out="data/mine", tokenizer="byte")
    small = "--n_layer=2 --n_head=4 --n_embd=16 --batch_size=2 --gradient_accumulation_steps=1 --compile=False"
    Document(
        PAGE,
        skipped={"OMP_WAIT_POLICY=PASSIVE python benchmarks/inside.py": "takes minutes"},
        instead={
            "gpt2 lens out-mine FILE:scene.txt --compare": "gpt2 lens out-mine FILE:scene.txt --compare out-mine",
            "gpt2 lens gpt2": "gpt2 lens out-mine 'The capital of France is' --json",
            "gpt2 prepare shakespeare": "gpt2 prepare input.txt --tokenizer=bpe --vocab_size=260 --out=data/bpe",
            "gpt2 train own_text --dataset=mine": f"{{line}} {small} --block_size=32 --max_iters=2 --warmup_iters=0 "
            "--eval_iters=1 --sample_interval=0",
            "gpt2 train own_text --dataset=bpe": f"gpt2 train own_text --dataset=bpe --out_dir=out-bpe {small} "
            "--block_size=128 --max_iters=2 --warmup_iters=0 --eval_iters=1",
            "gpt2 train --dataset=data/twice": f"gpt2 train --dataset=data/twice --out_dir=out-twice {small} "
            "--block_size=64 --max_iters=4 --eval_iters=1 --checkpoint_interval=2 --keep_checkpoints=0",
        },
        in_python={"range(20000)": "range(300)", '"LADY"': '"QUEER"'},
    ).run(gpt2_command)


@pytest.mark.parametrize(
    ("package", "shown"),
    [
        ("transformer_lens.model_bridge", r"True\n\d\.\d{3} \d\.\d{3}\n"),
        ("nnsight", r"\d\.\d{3}\n"),
    ],
)
def test_the_blocks_that_need_other_packages_run(
    package: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = package.split(".")[0].replace("_", "-")
    pytest.importorskip(package, reason=f"needs {name}")
    monkeypatch.chdir(tmp_path)
    model = GPT(GPTConfig(block_size=64, vocab_size=64, n_layer=2, n_head=4, n_embd=128)).eval()
    gpt2.export(model, "hf", "hf-twice", tokenizer=None)
    tokens = repeated_tokens(64, 20, count=2)
    (block,) = [m[3] for m in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if m[2] == f"needs {name}"]
    Path("block.py").write_text(block)  # nnsight reads it there
    capsys.readouterr()
    exec(
        compile(block, "block.py", "exec"),
        {"gpt2": gpt2, "model": model, "tokens": tokens, "found": induction(model, tokens)},
    )
    assert re.fullmatch(shown, capsys.readouterr().out)
