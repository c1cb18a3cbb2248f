"""`gpt2 sample`."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import DeviceArg, DTypeArg, JsonFlag, ModelArg, QuantizeArg, TokenizerArg
from gpt2.runlog.console import note
from gpt2.spelling import counted
from gpt2.training.setting import CONTEXT, SAMPLES, SEED, within

if TYPE_CHECKING:
    from gpt2.generation.request import Request
    from gpt2.generation.text import Piece
    from gpt2.model import GPT
    from gpt2.tokenizers import Tokenizer

SEPARATOR = "\n---------------"


@dataclass(frozen=True)
class Sampling:
    """The settings of a sample."""

    max_new_tokens: Annotated[int, CONTEXT] = 500
    """Maximum number of tokens in a sample. A sample also ends at end-of-text."""
    temperature: float = 0.8
    """Sampling temperature: a lower one is more predictable, a higher one more varied. 0 always takes the most likely
    token."""
    top_k: Annotated[int, within(0, 10**9)] = 200
    """Sample from this number of most likely tokens. 0 means all tokens."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this number."""
    min_p: float = 0.0
    """Sample from tokens that are at least this many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Make tokens of the prompt and the text less likely, if above 1, as in transformers."""
    presence_penalty: float = 0.0
    """Subtract this from the logits of tokens that are already in the text, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    """Subtract this from a token's logit for each time that it is in the text, as in OpenAI's API."""


@dataclass
class Sample:
    """Holds what was generated for one request."""

    text: str = ""
    ending: str | None = None
    tokens: list[dict[str, Any]] = field(default_factory=list)


def sample(
    model: ModelArg,
    /,
    *,
    start: str = "",
    num_samples: Annotated[int, SAMPLES] = 1,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),
    stop: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    context: Literal["slide", "reanchor"] = "slide",
    seed: Annotated[int, SEED] = 1337,
    logprobs: Annotated[int | None, within(0, 100)] = None,
    interactive: Annotated[bool, Parameter(negative=())] = False,
    stats: Annotated[bool, Parameter(negative=())] = False,
    tokenizer: TokenizerArg = None,
    device: DeviceArg = "auto",
    dtype: DTypeArg = "float32",
    quantize: QuantizeArg = "none",
    json_: JsonFlag = False,
) -> None:
    """Generate text from a model and print it as it is generated.

    Parameters
    ----------
    start
        Prompt to continue, FILE:path to read the prompt from a file, or - for standard input. An empty prompt starts
        a new document.
    num_samples
        Number of samples, which are generated together. Each ends with a line of dashes.
    stop
        Text at which a sample ends. Repeat it for several.
    context
        What happens when a text is longer than the model's context: slide moves the window by one token, which
        computes all of it for every token; reanchor drops its older half, which is much faster.
    seed
        Seed of the first sample. The next samples use seed + 1, seed + 2, and so on.
    logprobs
        Print each token with its log-probability, and those of this number of most likely tokens.
    interactive
        Ask for prompts until Ctrl-D. Ctrl-C ends a text.
    stats
        Print tokens per second, and how fast the weights were read.
    """
    from gpt2.device import pick_device, pick_dtype
    from gpt2.formats.open import open_model
    from gpt2.generation.arguments import stop_strings
    from gpt2.generation.native import why_not_native
    from gpt2.generation.text import read_prompt, request_for
    from gpt2.generation.weights import read_for_decoding

    SEED.check("seed + num_samples - 1", seed + num_samples - 1)
    stops = stop_strings(stop)
    where = pick_device(device)
    prompt = read_prompt("FILE:/dev/stdin" if start == "-" else start)
    source = open_model(model, tokenizer)

    def requests(prompt: str) -> "list[Request]":
        settings = vars(sampling) | {"n_logprobs": logprobs, "reanchor": context == "reanchor"}
        return [request_for(source.tokenizer, prompt, seed=seed + i, **settings) for i in range(num_samples)]

    asked = requests(prompt)
    for line in (f"model {source.origin}", *source.notes):
        note(line)
    network = read_for_decoding(source, where, pick_dtype(dtype, where), quantize)
    if stats and (reason := why_not_native(network)):
        note(reason)
    writer = Writer(network, source.tokenizer, stops, is_table=logprobs is not None, has_stats=stats)
    if interactive:
        converse(writer, requests)
    elif json_:
        writer.run(prompt, asked, is_quiet=True)
        results = [{"seed": r.seed} | vars(s) for r, s in zip(asked, writer.samples, strict=True)]
        print(json.dumps({"prompt": prompt, "samples": results} | writer.figures))
    else:
        writer.run(prompt, asked)


class Writer:
    """Decodes requests and prints their texts in order: the first as it is generated, the others after it."""

    def __init__(
        self, network: "GPT", tokenizer: "Tokenizer", stops: Sequence[str], *, is_table: bool, has_stats: bool
    ) -> None:
        """is_table: print a line for each token. has_stats: print the speed at the end."""
        self.network, self.tokenizer, self.stops = network, tokenizer, stops
        self.is_table, self.has_stats = is_table, has_stats
        self.samples: list[Sample] = []
        self.figures: dict[str, float] = {}

    def run(self, prompt: str, requests: "list[Request]", is_quiet: bool = False) -> None:
        """Decode the continuations of a prompt and print them."""
        from gpt2.generation.text import decode, engine_for

        self.samples = [Sample() for _ in requests]
        shown = -1  # the last sample that is printed as it is generated
        began, first = time.perf_counter(), 0.0
        count = 0
        engine = engine_for(self.network, self.tokenizer, requests)
        steps_before = 0
        for piece in decode(engine, self.tokenizer, requests, self.stops):
            first = first or time.perf_counter()
            steps_before = steps_before or engine.n_steps
            count += 1
            sample = self.samples[piece.number]
            sample.text += piece.text
            sample.ending = piece.ending
            if piece.token.logprobs is not None:
                sample.tokens.append(self._described(piece))
            if is_quiet:
                continue
            if piece.number == shown:
                self._print(self._shown(piece))
            while shown < 0 or (self.samples[shown].ending and shown + 1 < len(requests)):
                if shown >= 0:
                    print(SEPARATOR, flush=True)
                shown += 1
                self._print(prompt + ("\n" if self.is_table else "") + self._so_far(self.samples[shown]))
        if not is_quiet:
            print(SEPARATOR, flush=True)
        self._measure(count, engine.n_steps - steps_before, first - began, time.perf_counter() - first, is_quiet)

    def _measure(self, count: int, n_steps: int, to_first: float, after: float, is_quiet: bool) -> None:
        """Record the speed, and print it if it is asked for. n_steps: those of the engine after the first token."""
        from gpt2.generation.weights import stored_bytes

        rate = (count - len(self.samples)) / after if after > 0 else 0.0
        read = stored_bytes(self.network) * n_steps / after if after > 0 else 0.0
        self.figures = {"tokens": count, "seconds_to_first": to_first, "tokens_per_second": rate}
        if self.has_stats and not is_quiet:
            note(
                f"{counted(count, 'token')}: the first after {to_first:.2f} s, then {rate:,.1f} tokens/s; "
                f"weights read at {read / 1e9:,.1f} GB/s"
            )

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _shown(self, piece: "Piece") -> str:
        return _line(self._described(piece)) if self.is_table else piece.text

    def _so_far(self, sample: Sample) -> str:
        return "".join(map(_line, sample.tokens)) if self.is_table else sample.text

    def _described(self, piece: "Piece") -> dict[str, Any]:
        """Return a token with its log-probabilities, for JSON and for the table."""
        assert piece.token.logprobs is not None

        def text(token_id: int) -> str:
            return self.tokenizer.decode([token_id])

        found = piece.token.logprobs
        top = [{"id": i, "text": text(i), "logprob": round(value, 6)} for i, value in found.top]
        return {"id": piece.token.id, "text": text(piece.token.id), "logprob": round(found.chosen, 6), "top": top}


def _line(token: dict[str, Any]) -> str:
    """Return a line of the table: log-probability, token, and the most likely tokens with theirs."""
    others = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
    return f"{token['logprob']:8.3f}  {token['text']!r:16}  {others}".rstrip() + "\n"


def converse(writer: Writer, requests: Any) -> None:
    """Ask for prompts and print what follows them, until the end of the input. Ctrl-C ends a text."""
    from gpt2.errors import UserError

    with contextlib.suppress(ImportError):  # on Windows
        import readline  # noqa: F401  # gives input() a history
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            writer.run(prompt, requests(prompt))
        except KeyboardInterrupt:
            print(SEPARATOR, flush=True)
        except UserError as error:
            note(str(error))
