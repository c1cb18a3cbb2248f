"""Makes this program's models available to EleutherAI's lm-evaluation-harness, under the name `gpt2-toolkit`.

It needs lm-eval. Any model is evaluated as lm-eval's `hf` model evaluates a Hugging Face folder: with the same
tokens, the same windows and, up to rounding, the same figures.
"""

import functools
import itertools
import json
from collections.abc import Sequence
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
from gpt2.generation.request import Request as Generation
from gpt2.generation.sampling import Sampling
from gpt2.generation.text import decode, encode_prompt, engine_for
from gpt2.generation.weights import for_decoding
from gpt2.model import GPT
from gpt2.special_tokens import END_OF_TEXT

NAME = "gpt2-toolkit"
"""Name of the model type in lm-eval's `--model`."""
NEW_TOKENS = 256
"""Maximum number of tokens of an answer if the task sets none, as in lm-eval's `hf`."""
TOP_K = 50
"""Number of likeliest tokens to draw from if the task samples but sets no top_k, as in transformers' `generate`."""
ANSWERS = {"cpu": 8}
"""Number of answers generated at a time, by type of device."""
OTHER_ANSWERS = 32
"""Number of answers generated at a time on other devices. With the 124M model, keys and values take 2.4 GB in
float32."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts of context and ending, the token ids of the context, and those of the ending, as lm-eval passes them."""


@register_model(NAME)
class ToolkitLM(TemplateLM):
    """Evaluates a model of this program with lm-eval.

    Example: `lm_eval.simple_evaluate(model=ToolkitLM("out"), tasks=["lambada_openai"])`.

    pretrained: the model, a path or a name. tokenizer: a tokenizer for a model without one. dtype: the dtype of
    matrix products; logits are always float32. batch_size: the number of sequences of the model's context length in a
    batch, and of answers generated at a time; `auto` chooses it for the device, up to `max_batch_size`.
    Raises UserError if there is no such model, it has no tokenizer, or the two do not fit together.
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
        self.sequences_per_batch = sequences_per_batch(batch_size, max_batch_size)
        self.origin = source.origin
        self.our_tokenizer = source.tokenizer  # lm-eval expects one of transformers under the name `tokenizer`
        self.model = build(source).to(where).eval()
        self.max_length = self.model.config.block_size

    @functools.cached_property
    def decoder(self) -> GPT:
        """Return the model that generates, with matrices in `dtype`."""
        return for_decoding(self.model, self.dtype)

    @property
    def device(self) -> torch.device:
        """Return the device of the model's weights."""
        return self.model.transformer.wte.weight.device

    @property
    def eot_token_id(self) -> int:
        """Return the id that precedes a text without context: end-of-text, or a substitute if there is none."""
        return encode_prompt(self.our_tokenizer, "")[0]

    def get_model_info(self) -> dict[str, Any]:
        """Return the facts about the model that lm-eval writes into its results."""
        return {
            "model_source": self.origin,
            "model_dtype": self.dtype,
            "model_num_parameters": self.model.get_num_params(non_embedding=False),
        }

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return an empty template. Raises UserError if the user asks for a chat template, because GPT-2 has none."""
        if chat_template:
            raise UserError("GPT-2 has no chat template; omit --apply_chat_template")
        return ""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the token ids of a text, in which `<|endoftext|>` is the special token."""
        return self.our_tokenizer.encode(string, specials=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood in nats of each ending after its context, and whether it is the greedy one."""
        # a context of white space alone is empty now, because lm-eval moves trailing white space to the ending
        asked = [(texts, context or [self.prefix_token_id], ending) for texts, context, ending in requests]
        return [(score.log_likelihood, score.greedy) for score in self.scores(asked, disable_tqdm)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text in nats. Each token counts once, with all context that fits."""
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [make_disjoint_window(pair) for pair in rolling]
            windows += [(None, *pair) for pair in pairs]
            counts.append(len(pairs))
        of_windows = iter(self.scores(windows, disable_tqdm))
        return [sum(score.log_likelihood for score in itertools.islice(of_windows, count)) for count in counts]

    def scores(self, requests: Sequence[Request], quiet: bool) -> list[Score]:
        """Return the score of each ending after its context, which loses its first tokens if both do not fit.

        Raises UserError if an ending is empty or longer than the model's context.
        """
        questions = questions_of(requests, self.max_length)
        batch_tokens = self.sequences_per_batch and self.sequences_per_batch * self.max_length
        with tqdm(total=len(questions), desc="Running loglikelihood requests", disable=quiet) as bar:

            def progress(done: int, total: int, completed: int) -> None:
                bar.update(completed - bar.n)

            results = scores(self.model, questions, dtype=self.dtype, batch_tokens=batch_tokens, progress=progress)
        return [score for of_question in results for score in of_question]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each context, up to the first of the task's stop texts or end-of-text.

        Raises UserError if a task asks for more tokens than fit, or for settings that are not supported.
        """
        answers = [""] * len(requests)
        asked: list[Any] = [request.args for request in requests]  # pairs of a context and the task's settings
        prompts = [encode_prompt(self.our_tokenizer, context) for context, _ in asked]
        groups: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(asked):
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        at_a_time = self.sequences_per_batch or ANSWERS.get(self.device.type, OTHER_ANSWERS)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for group in groups.values():
                group.sort(key=lambda i: -len(prompts[i]))
                for first in range(0, len(group), at_a_time):
                    numbers = group[first : first + at_a_time]
                    generated = self.answers([prompts[i] for i in numbers], asked[numbers[0]][1])
                    for i, answer in zip(numbers, generated, strict=True):
                        answers[i] = answer
                        self.cache_hook.add_partial("generate_until", asked[i], answer)
                    bar.update(len(numbers))
        return answers

    def answers(self, prompts: Sequence[list[int]], asked: dict[str, Any]) -> list[str]:
        """Return the text that follows each prompt (token ids), generated with the task's settings `asked`.

        A prompt that leaves no space for the answer loses its first tokens. Errors are those of `generate_until`.
        """
        settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
        end = self.our_tokenizer.special.named(self.our_tokenizer.eot) or END_OF_TEXT
        stops = handle_stop_sequences(settings.pop("until"), eos=end)
        count, samples = settings.pop("max_gen_toks"), settings.pop("do_sample")
        temperature, top_k = settings.pop("temperature", 0.0), settings.pop("top_k", TOP_K)
        top_p = settings.pop("top_p", None)
        if settings:
            raise UserError(f"the task generates with {', '.join(settings)}, which is not supported; omit it")
        if not 0 < count < self.max_length:
            raise UserError(
                f"the task asks for up to {count} new tokens, and the model has {self.max_length} positions for the "
                f"prompt and them; give --gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        sampling = Sampling(temperature if samples else 0.0, top_k, top_p)
        ends = frozenset(self.our_tokenizer.special.ends)
        requests = [
            Generation(prompt[-(self.max_length - count) :], count, sampling, seed, ends)
            for prompt, seed in zip(prompts, torch.randint(1 << 62, (len(prompts),)).tolist(), strict=True)
        ]
        texts = [""] * len(requests)
        engine = engine_for(self.decoder, self.our_tokenizer, requests)
        for piece in decode(engine, self.our_tokenizer, requests, stops):
            texts[piece.number] += piece.text
        return [postprocess_generated_text(text, stops, None) for text in texts]


def sequences_per_batch(batch_size: int | str, most: int | None) -> int | None:
    """Return the number of sequences in a batch by lm-eval's settings; None leaves it to the device.

    Raises UserError if `batch_size` is neither a positive number nor begins with auto.
    """
    if str(batch_size).startswith("auto"):
        return most
    if not str(batch_size).isdecimal() or len(str(batch_size)) > 9 or int(batch_size) < 1:
        raise UserError(f"batch_size is {batch_size}; it must be a number of sequences, at least 1, or auto")
    return int(batch_size)


def questions_of(requests: Sequence[Request], block_size: int) -> list[Question]:
    """Group adjacent endings of one context into questions, as far as they fit a sequence of `block_size` tokens.

    The order of the requests stays. Raises UserError for an empty ending.
    """
    questions: list[Question] = []
    space = 0
    for texts, context, ending in requests:
        if not ending:
            raise UserError(f"an ending after {texts and texts[0][-80:]!r} has no tokens; fix the task")
        space -= len(ending) - 1
        if not questions or questions[-1].context != context or space < 0:
            questions.append(Question(context, []))
            space = block_size - len(context) - len(ending) + 1
        questions[-1].endings.append(ending)
    return questions
