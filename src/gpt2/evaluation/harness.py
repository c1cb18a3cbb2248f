"""The models of this toolkit as EleutherAI's lm-evaluation-harness takes them, under the name `gpt2-toolkit`.

Needs lm-eval. What its `hf` model does with a Hugging Face folder is done here with any MODEL: the same tokens, the
same windows, the same figures up to rounding.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from gpt2.device import pick_device, pick_dtype
from gpt2.errors import UserError
from gpt2.evaluation.choices import Question, Score, scores
from gpt2.formats.open import build, open_model
from gpt2.generation.batch import stream_batch
from gpt2.generation.engine import encode_prompt
from gpt2.tokenizers import END_OF_TEXT

NAME = "gpt2-toolkit"
NEW_TOKENS = 256
"""How long an answer may get where the task does not say, as in lm-eval's `hf`."""
TOP_K = 50
"""Among how many tokens a task draws that only says that it draws, as in transformers' `generate`."""
ROWS = {"cpu": 8}
"""Answers generated at a time, by device."""
OTHER_ROWS = 32
"""Likewise on any other device: with the 124M model their keys and values take 2.4 GB in float32."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts, and the tokens of context and ending, as lm-eval passes them around."""


@register_model(NAME)
class ToolkitLM(TemplateLM):
    """Any model of ours: `lm_eval.simple_evaluate(model=ToolkitLM("out"), tasks=["lambada_openai"])`.

    pretrained: MODEL, a path or a name. tokenizer: one for a model that brings none. dtype: format of the matrix
    products; logits are in float32 always. batch_size: how many rows of the model's whole context are computed at a
    time, and how many answers generated; `auto` is what suits the device, and at most `max_batch_size`.
    Raises UserError for what is no model, has no tokenizer, or does not go together.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        source = open_model(str(pretrained), tokenizer)
        where = pick_device(device or "auto")
        self.dtype = pick_dtype(dtype, where)
        self.rows = rows_at_a_time(batch_size, max_batch_size)
        self.origin = source.origin
        self.vocabulary = source.tokenizer
        self.model = build(source).to(where).eval()
        self.max_length = self.model.config.block_size

    @property
    def device(self) -> torch.device:
        return self.model.transformer.wte.weight.device

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it: end-of-text, or what a tokenizer without it has."""
        return encode_prompt(self.vocabulary, "")[0]

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model."""
        return {
            "model_source": self.origin,
            "model_dtype": self.dtype,
            "model_num_parameters": self.model.get_num_params(non_embedding=False),
        }

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None: lm-eval asks for one where its user does. Raises UserError then."""
        if chat_template:
            raise UserError("GPT-2 knows no chat template; leave --apply_chat_template out")
        return ""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, in which `<|endoftext|>` is the token."""
        return self.vocabulary.encode(string, specials=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # nothing is left of a context that is white space alone, since the ending takes it over
        asked = [(texts, context or [self.prefix_token_id], ending) for texts, context, ending in requests]
        return [(score.log_likelihood, score.greedy) for score in self.scores(asked, disable_tqdm)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in nats: every token once, after as many before it as fit."""
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [make_disjoint_window(pair) for pair in found]
            windows += [(None, *pair) for pair in pairs]
            counts.append(len(pairs))
        found = iter(self.scores(windows, disable_tqdm))
        return [sum(score.log_likelihood for score in itertools.islice(found, count)) for count in counts]

    def scores(self, requests: Sequence[Request], quiet: bool) -> list[Score]:
        """How likely each ending is after its context, which loses its beginning where both do not fit.

        Raises UserError where an ending is empty or longer than the model's context.
        """
        questions = questions_of(requests, self.max_length)
        batch_tokens = self.rows and self.rows * self.max_length
        with tqdm(total=len(questions), desc="Running loglikelihood requests", disable=quiet) as bar:

            def progress(done: int, total: int, finished: int) -> None:
                bar.update(finished - bar.n)

            rows = scores(self.model, questions, dtype=self.dtype, batch_tokens=batch_tokens, progress=progress)
        return [score for row in rows for score in row]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of the task's stop texts or end-of-text.

        Raises UserError where a task asks for more tokens than fit, or for what is not known here.
        """
        answers = [""] * len(requests)
        asked: list[Any] = [request.args for request in requests]  # pairs of a context and the task's settings
        prompts = [encode_prompt(self.vocabulary, context) for context, _ in asked]
        groups: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(asked):
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        rows = self.rows or ROWS.get(self.device.type, OTHER_ROWS)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for group in groups.values():
                group.sort(key=lambda i: -len(prompts[i]))
                for first in range(0, len(group), rows):
                    numbers = group[first : first + rows]
                    found = self.answers([prompts[i] for i in numbers], asked[numbers[0]][1])
                    for i, answer in zip(numbers, found, strict=True):
                        answers[i] = answer
                        self.cache_hook.add_partial("generate_until", asked[i], answer)
                    bar.update(len(numbers))
        return answers

    def answers(self, prompts: Sequence[list[int]], asked: dict[str, Any]) -> list[str]:
        """What follows each of the prompts, which lose their beginnings where they leave no room for the answers."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
        stops = handle_stop_sequences(settings.pop("until"), eos=END_OF_TEXT)
        count, samples = settings.pop("max_gen_toks"), settings.pop("do_sample")
        temperature, top_k = settings.pop("temperature", 0.0), settings.pop("top_k", TOP_K)
        top_p = settings.pop("top_p", None)
        if settings:
            raise UserError(f"the task wants to generate with {', '.join(settings)}, unknown here; leave it out")
        if not 0 < count < self.max_length:
            raise UserError(
                f"the task wants up to {count} new tokens, and the model has {self.max_length} positions for the "
                f"prompt and them; give --gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        tokens = stream_batch(
            self.model,
            [prompt[-(self.max_length - count) :] for prompt in prompts],
            temperature=temperature if samples else 0.0,
            top_k=top_k,
            top_p=top_p,
            vocab_size=self.vocabulary.vocab_size,
            dtype=self.dtype,
        )
        texts = self.until(itertools.islice(tokens, count), len(prompts), [stop.encode() for stop in stops if stop])
        return [postprocess_generated_text(text.decode(errors="replace"), stops, None) for text in texts]

    def until(self, tokens: Iterator[torch.Tensor], count: int, stops: Sequence[bytes]) -> list[bytes]:
        """The bytes of `count` rows of tokens, drawn until each has come to end-of-text or one of the stops."""
        texts = [b""] * count
        running = set(range(count))
        for token in tokens:
            ids = token[:, 0].tolist()
            for i in list(running):
                if ids[i] != self.vocabulary.eot:
                    texts[i] += self.vocabulary.decode_bytes([ids[i]])
                if ids[i] == self.vocabulary.eot or any(stop in texts[i] for stop in stops):
                    running.remove(i)
            if not running:
                break
        return texts


def rows_at_a_time(batch_size: int | str, most: int | None) -> int | None:
    """The rows of a batch that lm-eval's settings ask for; None leaves them to the device. Raises UserError."""
    if str(batch_size).startswith("auto"):
        return most
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise UserError(f"batch_size is {batch_size}; it must be a number of rows, at least 1, or auto")
    return int(batch_size)


def questions_of(requests: Sequence[Request], block_size: int) -> list[Question]:
    """The endings that follow each other and share a context, together, as far as a row of `block_size` tokens holds.

    In the order of the requests. Raises UserError for an empty ending.
    """
    questions: list[Question] = []
    room = 0
    for texts, context, ending in requests:
        if not ending:
            raise UserError(f"an ending after {texts and texts[0][-80:]!r} has no tokens; mend the task")
        room -= len(ending) - 1
        if not questions or questions[-1].context != context or room < 0:
            questions.append(Question(context, []))
            room = block_size - len(context) - len(ending) + 1
        questions[-1].endings.append(ending)
    return questions
