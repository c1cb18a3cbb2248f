"""Compare the speed of decoding one text with other programs: the same weights, the same prompt, in turns.

    python benchmarks/decode.py random:gpt2 --nanogpt NANOGPT --llamacpp VENV --ctranslate2 VENV --openvino VENV

Every program runs in a process of its own with the threads that it is given, and the processes take turns, so that a
slower minute of the machine meets all of them. A program decodes `--new` tokens greedily after a prompt of random
tokens. Its time for one token is subtracted, so tokens/s are those after the first token. llama.cpp needs a virtual
environment with llama-cpp-python, CTranslate2 one with ctranslate2, transformers and torch, OpenVINO one with
openvino-genai, optimum-intel and nncf.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Decode = Callable[[list[int], int], list[int]]
"""Decodes a number of tokens greedily after a prompt, and returns them."""


def gpt2_decoder(model: str, dtype: str) -> Decode:
    """Return this program, from a Hugging Face folder. dtype: float32, bfloat16, float16 or int8.

    It guesses no tokens, because random weights repeat themselves and would make guesses look good.
    """
    from gpt2 import load
    from gpt2.generation.complete import complete
    from gpt2.generation.sampling import Sampling
    from gpt2.generation.weights import for_decoding

    network, _ = load(model)
    half = dtype if dtype != "int8" else "bfloat16"
    prepared = for_decoding(network, half, "int8" if dtype == "int8" else "none")
    return lambda prompt, new: complete(prepared, [prompt], new, Sampling(temperature=0), guess=False)[0]


def transformers_decoder(model: str, dtype: str) -> Decode:
    import torch
    from transformers import GPT2LMHeadModel

    network: Any = GPT2LMHeadModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def decode(prompt: list[int], new: int) -> list[int]:
        with torch.inference_mode():
            idx = torch.tensor([prompt])
            return network.generate(idx, max_new_tokens=new, min_new_tokens=new, **settings)[
                0, len(prompt) :
            ].tolist()

    return decode


def nanogpt_decoder(model: str, folder: str) -> Decode:
    """Return nanoGPT, from a folder with its checkpoint. It computes the complete sequence for every token."""
    import torch

    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    saved = torch.load(Path(model) / "ckpt.pt", weights_only=True)
    network = GPT(GPTConfig(**saved["model_args"])).eval()
    network.load_state_dict(saved["model"])

    def decode(prompt: list[int], new: int) -> list[int]:
        with torch.inference_mode():
            return network.generate(torch.tensor([prompt]), new, top_k=1)[0, len(prompt) :].tolist()

    return decode


def llamacpp_decoder(model: str, threads: int) -> Decode:
    import llama_cpp  # type: ignore[import-not-found]
    import numpy as np

    network = llama_cpp.Llama(model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    n_vocab = network.n_vocab()

    def decode(prompt: list[int], new: int) -> list[int]:
        network.reset()
        network.eval(prompt)
        tokens = []
        for number in range(new):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(network.ctx, -1), shape=(n_vocab,))
            tokens.append(int(logits.argmax()))
            if number + 1 < new:
                network.eval(tokens[-1:])
        return tokens

    return decode


def ctranslate2_decoder(model: str, dtype: str, threads: int) -> Decode:
    import ctranslate2  # type: ignore[import-not-found]

    network = ctranslate2.Generator(model, compute_type=dtype, intra_threads=threads)
    words = json.loads((Path(model) / "vocabulary.json").read_text(encoding="utf-8"))

    def decode(prompt: list[int], new: int) -> list[int]:
        found = network.generate_batch(
            [[words[i] for i in prompt]],
            min_length=new,
            max_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return found[0].sequences_ids[0]

    return decode


def openvino_decoder(model: str, threads: int) -> Decode:
    import numpy as np
    import openvino  # type: ignore[import-not-found]
    import openvino_genai  # type: ignore[import-not-found]

    network = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def decode(prompt: list[int], new: int) -> list[int]:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = new, True, False
        ids = np.array([prompt])
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return list(network.generate(inputs, settings).tokens[0])

    return decode


def work(kind: str, model: str, option: str, threads: int) -> None:
    """Decode as the lines of standard input ask, in the process of one program; print seconds and tokens as JSON."""
    if kind in ("gpt2", "transformers", "nanogpt"):
        import torch

        torch.set_num_threads(threads)
    decode = {
        "gpt2": lambda: gpt2_decoder(model, option),
        "transformers": lambda: transformers_decoder(model, option),
        "nanogpt": lambda: nanogpt_decoder(model, option),
        "llamacpp": lambda: llamacpp_decoder(model, threads),
        "ctranslate2": lambda: ctranslate2_decoder(model, option, threads),
        "openvino": lambda: openvino_decoder(model, threads),
    }[kind]()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        prompt, new = json.loads(line)
        began = time.perf_counter()
        tokens = decode(prompt, new)
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


class Worker:
    """A worker is the process of one program."""

    def __init__(self, name: str, python: str, kind: str, model: Path | str, option: str, threads: int) -> None:
        self.name = name
        command = [python, __file__, "--work", kind, str(model), option, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.rates: list[float] = []
        self.firsts: list[float] = []
        self.tokens: list[int] = []
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}; run its --work command to see why")

    def decode(self, prompt: list[int], new: int) -> tuple[float, list[int]]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([prompt, new]) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["tokens"]


def start_workers(given: argparse.Namespace, folder: Path) -> list[Worker]:
    """Write the weights in the formats of all programs, and start them."""
    from gpt2.cli import main as gpt2_main

    def export(kind: str, out: str, *flags: str) -> Path:
        try:
            gpt2_main(["export", kind, str(model), str(folder / out), *flags])
        except SystemExit as ended:
            if ended.code:
                raise
        return folder / out

    model = (
        random_model(given.model.removeprefix("random:"), folder)
        if given.model.startswith("random:")
        else given.model
    )
    here, threads, workers = sys.executable, given.threads, []
    hf = export("hf", "hf")
    for dtype in given.dtypes:
        workers.append(Worker(f"gpt2 {dtype}", here, "gpt2", hf, dtype, threads))
    if given.transformers:
        for dtype in ("float32", "bfloat16"):
            workers.append(Worker(f"transformers {dtype}", here, "transformers", hf, dtype, threads))
    if given.nanogpt:
        workers.append(
            Worker("nanoGPT float32", here, "nanogpt", export("nanogpt", "nanogpt"), given.nanogpt, threads)
        )
    if given.llamacpp:
        for dtype in ("float32", "float16", "q8_0"):
            file = export("gguf", f"{dtype}.gguf", f"--dtype={dtype}")
            python = str(Path(given.llamacpp) / "bin" / "python")
            workers.append(Worker(f"llama.cpp {dtype}", python, "llamacpp", file, "-", threads))
    if given.ctranslate2:
        binaries = Path(given.ctranslate2) / "bin"
        converted = folder / "ct2"
        convert(binaries / "ct2-transformers-converter", "--model", hf, "--output_dir", converted)
        for dtype in ("float32", "int8"):
            python = str(binaries / "python")
            workers.append(Worker(f"CTranslate2 {dtype}", python, "ctranslate2", converted, dtype, threads))
    if given.openvino:
        binaries = Path(given.openvino) / "bin"
        exported, task = folder / "openvino", "text-generation-with-past"
        options = ("-m", hf, "--weight-format", "int8", "--task", task)
        convert(binaries / "optimum-cli", "export", "openvino", *options, exported)
        workers.append(Worker("OpenVINO int8", str(binaries / "python"), "openvino", exported, "-", threads))
    return workers


def convert(*command: str | Path) -> None:
    """Run another program's converter; where it fails, show what it printed and exit."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}{command[0]} failed with status {done.returncode}")


def random_model(size: str, folder: Path) -> Path:
    """Write a model of random weights with GPT-2's tokenizer; return its file."""
    import safetensors.torch

    from gpt2 import GPT, GPTConfig

    network = GPT(GPTConfig.preset(size))
    file = folder / "random.safetensors"
    safetensors.torch.save_file(dict(network.named_parameters()), str(file))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a MODEL with GPT-2's tokenizer, or random:SIZE")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16", "int8"])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=256, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--transformers", action="store_true", help="transformers of this environment")
    parser.add_argument("--nanogpt", help="folder of nanoGPT")
    parser.add_argument("--llamacpp", help="virtual environment with llama-cpp-python")
    parser.add_argument("--ctranslate2", help="virtual environment with ctranslate2, transformers and torch")
    parser.add_argument("--openvino", help="virtual environment with openvino-genai, optimum-intel and nncf")
    given = parser.parse_args()

    import torch

    from gpt2.bench.sample import read_bandwidth

    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        workers = start_workers(given, Path(temporary))
        for number in range(given.rounds + 1):  # the first round warms up
            prompt = torch.randint(50257, (given.prompt,), generator=generator).tolist()
            for worker in workers:
                new = min(given.new, 32) if worker.name.startswith("nanoGPT") else given.new
                first, _ = worker.decode(prompt, 1)
                seconds, worker.tokens = worker.decode(prompt, new)
                if number:
                    worker.firsts.append(first)
                    worker.rates.append((new - 1) / (seconds - first))
        for worker in workers:
            worker.process.kill()
    shape = f"{given.prompt} + {given.new} tokens, {given.threads} threads"
    print(f"{given.model}: {shape}, medians of {given.rounds} rounds")
    print(f"this machine reads {read_bandwidth(torch.device('cpu')) / 1e9:.1f} GB/s\n")
    print("| program | tokens/s | slowest to fastest | first token | tokens equal to the first program's |")
    print("|---|---|---|---|---|")
    for worker in workers:
        spread = f"{min(worker.rates):.1f} to {max(worker.rates):.1f}"
        same = sum(a == b for a, b in zip(worker.tokens, workers[0].tokens, strict=False))
        print(
            f"| {worker.name} | {statistics.median(worker.rates):.1f} | {spread} "
            f"| {1000 * statistics.median(worker.firsts):.0f} ms | {same} of {len(worker.tokens)} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
