"""Measure what guessing tokens from the text itself gains: the same requests with and without it, in turns.

    python benchmarks/guesses.py MODEL TEXT --temperature 0 0.8

A request has a prompt from TEXT. Both ways give the same tokens, which is checked. The first line says how long a
step takes that computes several tokens of a text, compared with one token.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from gpt2.bench.sample import open_network
from gpt2.formats.open import open_model
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.steps import Chunk
from gpt2.model import GPT


def decode(model: GPT, request: Request, guess: bool) -> tuple[float, float, list[int]]:
    """Return tokens per second and tokens per step after the first token, and the tokens."""
    engine = Engine(model, slots=1, capacity=len(request.prompt) + request.max_new_tokens, guess=guess)
    engine.submit(request)
    tokens = [token.id for token in engine.step()]
    began, steps = time.perf_counter(), engine.n_steps
    tokens += [token.id for token in engine.run()]
    after = len(tokens) - 1
    return after / (time.perf_counter() - began), after / (engine.n_steps - steps), tokens


@torch.inference_mode()
def step_times(model: GPT, sizes: tuple[int, ...] = (1, 2, 4, 6, 8), rounds: int = 15) -> list[float]:
    """Return the median times of steps that compute several tokens of a text, as multiples of the first."""
    engine = Engine(model, slots=1)
    assert engine.native is not None, "PyTorch computes the steps of this model, in which nothing is guessed"
    none, seconds = torch.zeros(0, dtype=torch.int64), {size: list[float]() for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            began = time.perf_counter()
            engine.native.logits(none, [], [Chunk(0, 100, [0] * size, wants_all=True)])
            seconds[size].append(time.perf_counter() - began)
    medians = [statistics.median(times) for times in seconds.values()]
    return [median / medians[0] for median in medians]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model, or random:gpt2 for random weights, which soon repeat a token")
    parser.add_argument("text", type=Path, help="a text file; random weights read its bytes as ids")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=256, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--quantize", choices=("none", "int8"), default="none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = open_network(args.model, torch.device("cpu"), args.dtype, args.quantize).eval()
    if args.prompt + args.new > model.config.block_size:
        parser.error(f"--prompt and --new are more than the model's {model.config.block_size} positions")
    content = args.text.read_bytes()
    is_random = args.model.startswith("random:")
    ids = list(content) if is_random else open_model(args.model).tokenizer.encode(content.decode())
    stride = (len(ids) - args.prompt) // args.rounds
    if stride < 1:
        parser.error(f"{args.text} has {len(ids):,} tokens; give a longer text")
    print("a step of 1, 2, 4, 6 and 8 tokens takes", ", ".join(f"{time:.2f}" for time in step_times(model)))
    print("| temperature | tokens/s without | with guesses | ratio | smallest to largest | tokens per step |")
    print("|---|---|---|---|---|---|")
    for temperature in args.temperature:
        rates, ratios, per_step = [], [], []
        for number in range(args.rounds):
            prompt = ids[number * stride :][: args.prompt]
            request = Request(prompt, args.new, Sampling(temperature, top_k=200 if temperature else None), number)
            found = {guess: decode(model, request, guess) for guess in ((False, True), (True, False))[number % 2]}
            assert found[True][2] == found[False][2], "guesses changed the tokens"
            rates.append((found[False][0], found[True][0]))
            ratios.append(found[True][0] / found[False][0])
            per_step.append(found[True][1])
        without, with_guesses = map(statistics.median, zip(*rates, strict=True))
        print(
            f"| {temperature:g} | {without:,.1f} | {with_guesses:,.1f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {statistics.median(per_step):.2f} |"
        )


if __name__ == "__main__":
    main()
