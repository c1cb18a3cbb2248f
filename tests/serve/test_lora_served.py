"""`gpt2 serve MODEL --lora FOLDER` serves the model and the adapted one beside each other."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from generation.models import random_model
from safetensors.torch import save_file
from servers import served

import gpt2
from gpt2.cli import main
from gpt2.formats.lora import with_adapter
from gpt2.formats.open import build, open_model
from gpt2.tokenizers import ByteTokenizer


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and an adapter of rank 2 for the MLP of its first block."""
    base, adapter = tmp_path / "base", tmp_path / "pirate"
    model = random_model(block_size=64)
    gpt2.export(model, "hf", base, tokenizer=ByteTokenizer())
    adapter.mkdir()
    C, name = model.config.n_embd, "base_model.model.transformer.h.0.mlp.c_fc.lora_"
    torch.manual_seed(0)
    tensors = {f"{name}A.weight": torch.randn(2, C), f"{name}B.weight": torch.randn(4 * C, 2)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    return base, adapter


def completion(address: str, model: str) -> dict[str, Any]:
    """Return the tokens of a greedy completion with their log-probabilities."""
    body = {"model": model, "prompt": "hello", "max_tokens": 20, "temperature": 0, "logprobs": 1}
    return httpx.post(f"http://{address}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]


def test_an_adapter_is_one_more_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    merged = tmp_path / "merged"
    gpt2.export(build(with_adapter(open_model(base), adapter)), "hf", merged, tokenizer=ByteTokenizer())
    with served(["gpt2", "serve", str(base), f"--lora={adapter}", "--device=cpu"]) as address:
        names = [model["id"] for model in httpx.get(f"http://{address}/v1/models").json()["data"]]
        found = {name: completion(address, name) for name in ("base", "pirate")}
    with served(["gpt2", "serve", str(merged), "--device=cpu"]) as address:
        expected = completion(address, "merged")
    assert names == ["base", "pirate"]
    assert found["pirate"] == expected
    assert found["base"]["token_logprobs"] != expected["token_logprobs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{base}", "--lora={base}"], "has no adapter_config.json"),
        (["{base}", "--lora={base}/absent"], "has no adapter_config.json"),
        (["{base}", "other={base}", "--lora={adapter}"], "needs one MODEL"),
        (["{base}", "--lora=base={adapter}"], "have the name 'base'"),
    ],
)
def test_what_cannot_be_served_is_refused(
    words: list[str], message: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = folders
    given = [word.format(base=base, adapter=adapter) for word in words]
    if given[-1] == f"--lora={base}":
        given[-1] = f"--lora=other={base}"
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *given, "--device=cpu", "--port=0"])
    assert message in capsys.readouterr().err
