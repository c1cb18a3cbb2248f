"""Computes the log-likelihoods of the endings of a context, for multiple-choice tasks.

A context is computed once for all its endings. They are packed into one sequence,

    tokens      the cat sat | on a mat | at the
    positions    0   1   2  | 3  4  5  | 3  4
    attends to  earlier tokens of the context and of its own ending, and itself

The last token of an ending is omitted, because nothing is predicted from it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2.device import autocast
from gpt2.distributed.sharding import compute_device
from gpt2.distributed.world import ALONE, World
from gpt2.errors import UserError
from gpt2.evaluation.loss import evaluating
from gpt2.evaluation.scoring import score_targets
from gpt2.model import GPT, GPTConfig

BATCH_TOKENS = {"cpu": 512}
"""Number of tokens in a batch, by type of device. On a CPU it is small enough for the caches."""
OTHER_BATCH_TOKENS = 32_768
"""Number of tokens in a batch on any other device: enough to keep a GPU busy."""
Progress = Callable[[int, int, int], None]
"""A function called after each batch with the tokens computed, all tokens, and the tasks completed. What it raises
ends the evaluation."""
RECOMPUTED_TASKS = 64
"""Number of close tasks that are computed again in float32 at a time."""
SAFETY = 4
"""Factor by which the margin between the two best endings must exceed the largest error seen to count as certain."""
TINY = 1e-9
"""Smallest absolute log-likelihood by which a difference is divided; smaller ones count as this."""


@dataclass(frozen=True)
class Question:
    """A question is a context and the endings whose log-likelihoods are to be computed, all as token ids."""

    context: list[int]
    endings: list[list[int]]


@dataclass(frozen=True)
class Task(Question):
    """A task is a question with one correct ending."""

    lengths: list[int]
    """Length by which the log-likelihood of each ending is divided for the normalised choice."""
    label: int
    """Index of the correct ending."""


@dataclass(frozen=True)
class Score:
    """A score says how likely a model finds an ending."""

    log_likelihood: float
    """Natural logarithm of the ending's probability after its context."""
    greedy: bool
    """True if no other token is likelier at any position of the ending."""


@dataclass(frozen=True)
class PackedSequence:
    """A packed sequence is a context followed by some endings of one task, which the model computes together."""

    task: int
    """Index of the task."""
    context: list[int]
    """Token ids of the context."""
    endings: dict[int, list[int]]
    """Token ids of the endings, by their index in the task."""

    @property
    def length(self) -> int:
        """Return the number of tokens to compute."""
        return len(self.context) + sum(len(ending) - 1 for ending in self.endings.values())


def check_fits(tasks: Sequence[Question], config: GPTConfig) -> None:
    """Raise UserError if an ending is longer than the model's context, or a token id is not in its vocabulary."""
    for number, task in enumerate(tasks):
        if (longest := max(map(len, task.endings))) > config.block_size:
            raise UserError(
                f"task {number} has an ending of {longest} tokens, more than the model's {config.block_size} "
                "positions; use a model with a larger block_size, or a tokenizer that makes fewer tokens"
            )
        if (largest := max(map(max, (task.context, *task.endings)))) >= config.vocab_size:
            raise UserError(
                f"task {number} has the token id {largest}, and the model only {config.vocab_size}; "
                "give the tasks as text, in a .jsonl"
            )


def sequences_of(number: int, task: Question, block_size: int) -> list[PackedSequence]:
    """Pack task `number` into one sequence, or into one for each ending if the context is too long for the longest.

    In the second case each sequence omits as many tokens at the start of the context as necessary, as lm-eval does.
    """
    endings = dict(enumerate(task.endings))
    if len(task.context) + max(map(len, task.endings)) - 1 <= block_size:
        return [PackedSequence(number, task.context, endings)]
    kept = ((i, ending, block_size + 1 - len(ending)) for i, ending in endings.items())
    return [PackedSequence(number, task.context[-count:], {i: ending}) for i, ending, count in kept]


def batches_of(sequences: Sequence[PackedSequence], batch_tokens: int) -> list[list[PackedSequence]]:
    """Group the sequences, longest first, into batches of at most `batch_tokens` tokens, padding included.

    A longer sequence gets a batch for itself.
    """
    batches: list[list[PackedSequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: -sequence.length):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].length > batch_tokens:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def tensors_of(
    batch: Sequence[PackedSequence], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `score_targets` after the model, for a batch whose first sequence is the longest."""
    size = batch[0].length
    idx, positions = torch.zeros(2, len(batch), size, dtype=torch.long)
    branch = torch.full((len(batch), size), -1)  # 0 is the context, 1 and more are endings, -1 is padding
    sources: list[int] = []
    targets: list[int] = []
    for i, sequence in enumerate(batch):
        start = end = len(sequence.context)
        idx[i, :end], positions[i, :end], branch[i, :end] = torch.tensor(sequence.context), torch.arange(end), 0
        for number, ending in enumerate(sequence.endings.values(), start=1):
            begin, end = end, end + len(ending) - 1
            sources += [i * size + offset for offset in (start - 1, *range(begin, end))]
            targets += ending
            idx[i, begin:end] = torch.tensor(ending[:-1])
            positions[i, begin:end] = torch.arange(start, start + end - begin)
            branch[i, begin:end] = number
    same, to_context = branch[:, :, None] == branch[:, None, :], (branch == 0)[:, None, :]
    mask = (same | to_context).tril()[:, None]  # (B, 1, T, T)
    tensors = (idx, positions, mask, torch.tensor(sources), torch.tensor(targets))
    idx, positions, mask, source_offsets, target_ids = (tensor.to(device) for tensor in tensors)
    return idx, positions, mask, source_offsets, target_ids


@torch.no_grad()
def scores(
    model: GPT,
    tasks: Sequence[Question],
    *,
    dtype: str,
    batch_tokens: int | None = None,
    world: World = ALONE,
    progress: Progress = lambda done, total, tasks: None,
) -> list[list[Score]]:
    """Return the score of each ending of each task.

    `batch_tokens` is the number of tokens in a batch, padding included; its default depends on the device. The
    processes of a `world` share the batches and compute the same number of forward passes, which a sharded model
    requires. All of them return the same scores, which do not depend on the number of processes. The model keeps its
    mode (train or eval). Raises UserError if an ending does not fit the model, or the model gives no finite numbers.
    """
    device = compute_device(next(model.parameters()))
    check_fits(tasks, model.config)
    sequences = [s for i, task in enumerate(tasks) for s in sequences_of(i, task, model.config.block_size)]
    batches = batches_of(sequences, batch_tokens or BATCH_TOKENS.get(device.type, OTHER_BATCH_TOKENS))
    total, done, completed = sum(sequence.length for sequence in sequences), 0, 0
    local: list[tuple[int, int, Score]] = []  # index of the task, index of the ending, and its score
    with evaluating(model):
        for first in range(0, len(batches), world.size):
            world.beat("an evaluation")
            batch = batches[(first + world.rank) % len(batches)]  # without a batch left, repeat one of the first
            with autocast(device, dtype):
                log_probs, is_best = score_targets(model, *tensors_of(batch, device))
            predictions = iter(zip(log_probs.tolist(), is_best.tolist(), strict=True))
            for sequence in batch:
                for i, ending in sequence.endings.items():
                    values, are_best = zip(*itertools.islice(predictions, len(ending)), strict=True)
                    local.append((sequence.task, i, Score(sum(values), all(are_best))))
            computed = [sequence for batch in batches[first : first + world.size] for sequence in batch]
            done += sum(sequence.length for sequence in computed)
            completed += sum(0 in sequence.endings for sequence in computed)
            progress(done, total, completed)
    by_index = {(task, i): score for task, i, score in itertools.chain.from_iterable(world.gather(local))}
    if not all(-float("inf") < s.log_likelihood for s in by_index.values()):  # the comparison is false for NaN
        raise UserError("the model gives no finite numbers: its weights are damaged, or training diverged")
    return [[by_index[number, i] for i in range(len(task.endings))] for number, task in enumerate(tasks)]


def log_likelihoods(model: GPT, tasks: Sequence[Question], **settings: Any) -> list[list[float]]:
    """Return the log-likelihood of each ending of each task, in nats. Settings and errors are those of `scores`."""
    return [[score.log_likelihood for score in of_task] for of_task in scores(model, tasks, **settings)]


@dataclass(frozen=True)
class Result:
    """Holds the endings that a model chose in a list of tasks, and the correct ones."""

    log_likelihoods: list[list[float]]
    """Log-likelihood of each ending of each task, in nats."""
    predictions: list[int]
    """Index of the likeliest ending of each task; the first one of equally likely endings."""
    predictions_norm: list[int]
    """Index of the ending of each task with the highest log-likelihood per unit of its length."""
    labels: list[int]
    """Index of the correct ending of each task."""

    @property
    def acc(self) -> float:
        """Return the share of tasks whose likeliest ending is the correct one."""
        return self._share(self.predictions)

    @property
    def acc_norm(self) -> float:
        """Return the share of tasks whose ending with the highest normalised log-likelihood is the correct one."""
        return self._share(self.predictions_norm)

    def _share(self, predictions: list[int]) -> float:
        """Return the share of `predictions` that are correct."""
        return sum(map(int.__eq__, predictions, self.labels)) / len(self.labels)

    def standard_error(self, share: float) -> float | None:
        """Return the standard error of `acc` or `acc_norm`; None for a single task.

        It is estimated from the variance of the sample, as lm-eval does.
        """
        return math.sqrt(share * (1 - share) / (len(self.labels) - 1)) if len(self.labels) > 1 else None


def choose(
    model: GPT,
    tasks: Sequence[Task],
    *,
    dtype: str,
    batch_tokens: int | None = None,
    world: World = ALONE,
    progress: Progress = lambda done, total, tasks: None,
) -> Result:
    """Let the model choose an ending in each task. Arguments and errors are those of `scores`.

    With a `dtype` other than float32, the tasks with the smallest margin between their two best endings are computed
    again in float32, until the margin is larger than the errors seen so far could change. So the choices are those of
    float32.
    """

    def compute(some: Sequence[Task], dtype: str) -> list[list[float]]:
        return log_likelihoods(model, some, dtype=dtype, batch_tokens=batch_tokens, world=world, progress=progress)

    values = compute(tasks, dtype)
    if dtype != "float32":
        margins = list(map(margin, tasks, values))
        closest = sorted(range(len(tasks)), key=margins.__getitem__)
        error = 0.0  # the largest so far, as a share of the log-likelihood
        for first in range(0, len(tasks), RECOMPUTED_TASKS):
            numbers = closest[first : first + RECOMPUTED_TASKS]
            if first > 0 and margins[numbers[0]] > SAFETY * error:
                break
            for i, exact in zip(numbers, compute([tasks[i] for i in numbers], "float32"), strict=True):
                error = max(error, *(abs(a - e) / max(-e, TINY) for a, e in zip(values[i], exact, strict=True)))
                values[i] = exact
    by_length = map(normalised, tasks, values)
    return Result(values, [argmax(v) for v in values], [argmax(v) for v in by_length], [t.label for t in tasks])


def argmax(values: Sequence[float]) -> int:
    """Return the index of the largest value; the first one of equal values."""
    return max(range(len(values)), key=values.__getitem__)


def normalised(task: Task, values: Sequence[float]) -> list[float]:
    """Return the log-likelihoods of a task's endings, each divided by the length of its ending."""
    return [value / length for value, length in zip(values, task.lengths, strict=True)]


def margin(task: Task, values: Sequence[float]) -> float:
    """Return the difference of the two best endings' log-likelihoods, as a share of the second best.

    It is computed for the log-likelihoods and the normalised ones; the result is the smaller of the two.
    """
    margins = []
    for compared in (values, normalised(task, values)):
        second, first = sorted(compared)[-2:]
        margins.append((first - second) / max(-second, TINY))
    return min(margins)
