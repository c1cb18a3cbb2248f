"""Multiple choice: how likely a model finds each ending of a context.

A context is computed once for its endings. They follow it in one row,

    tokens      the cat sat | on a mat | at the
    positions    0   1   2  | 3  4  5  | 3  4
    sees        itself and what is before it in the context and in its own ending

and the last token of an ending, after which nothing is to be predicted, stays out.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2.device import autocast
from gpt2.distributed.world import ALONE, World
from gpt2.errors import UserError
from gpt2.evaluation.loss import evaluating
from gpt2.evaluation.scoring import score_targets
from gpt2.model import GPT, GPTConfig

BATCH_TOKENS = {"cpu": 512}
"""Tokens to compute at a time, by device: few enough for a CPU's caches."""
OTHER_BATCH_TOKENS = 32_768
"""Likewise on any other device: enough to keep a GPU busy."""
Progress = Callable[[int, int, int], None]
"""Called after each batch with the tokens computed, of all, and the tasks done; what it raises ends the work."""
CLOSE_CALLS = 64
"""Tasks computed again in float32 at a time."""
SAFETY = 4
"""How many times the largest error seen must fit between the two best endings for their order to count as certain."""
TINY = 1e-9
"""Log-likelihoods nearer to 0 count as this where something is divided by them."""


@dataclass(frozen=True)
class Question:
    """A context, and endings of which is asked how likely they are."""

    context: list[int]
    endings: list[list[int]]


@dataclass(frozen=True)
class Task(Question):
    """A context, endings to choose from, and which of them is right."""

    lengths: list[int]
    """What the log-likelihood of each ending is divided by where endings compete by their mean."""
    label: int


@dataclass(frozen=True)
class Score:
    """What the model makes of an ending."""

    log_likelihood: float
    """In nats."""
    greedy: bool
    """Whether no token is likelier than that of the ending, at any of its places."""


@dataclass(frozen=True)
class Row:
    """What is computed together: a context and some endings of a task."""

    task: int
    context: list[int]
    endings: dict[int, list[int]]
    """By their number in the task."""

    @property
    def length(self) -> int:
        """Tokens to compute."""
        return len(self.context) + sum(len(ending) - 1 for ending in self.endings.values())


def check_fits(tasks: Sequence[Question], config: GPTConfig) -> None:
    """Raise UserError where an ending alone is longer than the model's context, or a token is none of the model's."""
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


def rows_of(number: int, task: Question, block_size: int) -> list[Row]:
    """One row, or, where the positions do not suffice for the longest ending, a row for each ending.

    Each of those then loses as much of the context's beginning as it must, as in lm-eval.
    """
    endings = dict(enumerate(task.endings))
    if len(task.context) + max(map(len, task.endings)) - 1 <= block_size:
        return [Row(number, task.context, endings)]
    kept = ((i, ending, block_size + 1 - len(ending)) for i, ending in endings.items())
    return [Row(number, task.context[-count:], {i: ending}) for i, ending, count in kept]


def batches_of(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """The rows, longest first, in batches of at most so many tokens with their padding; at least one row each."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].length > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def tensors_of(batch: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments of `score_targets` after the model, for a batch whose first sequence is the longest."""
    size = batch[0].length
    idx, positions = torch.zeros(2, len(batch), size, dtype=torch.long)
    branch = torch.full((len(batch), size), -1)  # 0 is the context, then the endings; -1 pads
    sources: list[int] = []
    targets: list[int] = []
    for i, row in enumerate(batch):
        start = end = len(row.context)
        idx[i, :end], positions[i, :end], branch[i, :end] = torch.tensor(row.context), torch.arange(end), 0
        for number, ending in enumerate(row.endings.values(), start=1):
            begin, end = end, end + len(ending) - 1
            sources += [i * size + place for place in (start - 1, *range(begin, end))]
            targets += ending
            idx[i, begin:end] = torch.tensor(ending[:-1])
            positions[i, begin:end] = torch.arange(start, start + end - begin)
            branch[i, begin:end] = number
    same, to_context = branch[:, :, None] == branch[:, None, :], (branch == 0)[:, None, :]
    mask = (same | to_context).tril()[:, None]  # (B, 1, T, T)
    arguments = (idx, positions, mask, torch.tensor(sources), torch.tensor(targets))
    idx, positions, mask, where, what = (tensor.to(device) for tensor in arguments)
    return idx, positions, mask, where, what


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
    """How likely each ending of each task is.

    batch_tokens: tokens to compute at a time, padding included. Default: what suits the device.
    The processes of a `world` share the batches, each with as many forward passes, as a sharded model needs; all get
    the same figures, which do not depend on how many they are. Leaves the model in the mode (train or eval) it was
    in. Raises UserError where an ending does not fit the model, or the model gives no finite numbers.
    """
    device = next(model.parameters()).device
    check_fits(tasks, model.config)
    rows = [row for i, task in enumerate(tasks) for row in rows_of(i, task, model.config.block_size)]
    batches = batches_of(rows, batch_tokens or BATCH_TOKENS.get(device.type, OTHER_BATCH_TOKENS))
    total, done, finished = sum(row.length for row in rows), 0, 0
    mine: list[tuple[int, int, Score]] = []  # of each ending its task, its number and its score
    with evaluating(model):
        for first in range(0, len(batches), world.size):
            world.beat("an evaluation")
            batch = batches[(first + world.rank) % len(batches)]  # where none is left, one of the first again
            with autocast(device, dtype):
                log_probs, is_best = score_targets(model, *tensors_of(batch, device))
            places = iter(zip(log_probs.tolist(), is_best.tolist(), strict=True))
            for row in batch:
                for i, ending in row.endings.items():
                    values, are_best = zip(*itertools.islice(places, len(ending)), strict=True)
                    mine.append((row.task, i, Score(sum(values), all(are_best))))
            computed = [row for batch in batches[first : first + world.size] for row in batch]
            done += sum(row.length for row in computed)
            finished += sum(0 in row.endings for row in computed)
            progress(done, total, finished)
    found = {(task, i): score for task, i, score in itertools.chain.from_iterable(world.gather(mine))}
    if not all(-float("inf") < s.log_likelihood for s in found.values()):  # NaN is not more than anything
        raise UserError("the model gives no finite numbers: its weights are damaged, or training diverged")
    return [[found[number, i] for i in range(len(task.endings))] for number, task in enumerate(tasks)]


def log_likelihoods(model: GPT, tasks: Sequence[Question], **settings: Any) -> list[list[float]]:
    """The log-likelihood of each ending of each task, in nats; settings and errors as in `scores`."""
    return [[score.log_likelihood for score in row] for row in scores(model, tasks, **settings)]


@dataclass(frozen=True)
class Result:
    """How well a model chose."""

    log_likelihoods: list[list[float]]
    """Of each ending of each task, in nats."""
    predictions: list[int]
    """The likeliest ending of each task; the first of equals."""
    predictions_norm: list[int]
    """The ending with the highest log-likelihood for its length."""
    labels: list[int]

    @property
    def acc(self) -> float:
        """Share of tasks whose likeliest ending is the right one."""
        return self._share(self.predictions)

    @property
    def acc_norm(self) -> float:
        """Share of tasks whose ending of the highest log-likelihood for its length is the right one."""
        return self._share(self.predictions_norm)

    def _share(self, predictions: list[int]) -> float:
        return sum(map(int.__eq__, predictions, self.labels)) / len(self.labels)

    def standard_error(self, share: float) -> float | None:
        """Of `acc` or `acc_norm`, as lm-eval estimates it from the sample's variance; None for a single task."""
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
    """Have the model choose an ending in each task; arguments and errors as in `scores`.

    In another `dtype` than float32 the close calls are computed again in float32, closest first, until the two best
    endings lie so far apart that errors like those found so far could not exchange them: the choice is float32's.
    """

    def compute(some: Sequence[Task], dtype: str) -> list[list[float]]:
        return log_likelihoods(model, some, dtype=dtype, batch_tokens=batch_tokens, world=world, progress=progress)

    found = compute(tasks, dtype)
    if dtype != "float32":
        gaps = list(map(gap, tasks, found))
        closest = sorted(range(len(tasks)), key=gaps.__getitem__)
        error = 0.0  # the largest, as a share of the log-likelihood
        for first in range(0, len(tasks), CLOSE_CALLS):
            numbers = closest[first : first + CLOSE_CALLS]
            if first > 0 and gaps[numbers[0]] > SAFETY * error:
                break
            for i, exact in zip(numbers, compute([tasks[i] for i in numbers], "float32"), strict=True):
                error = max(error, *(abs(a - e) / max(-e, TINY) for a, e in zip(found[i], exact, strict=True)))
                found[i] = exact
    by_length = map(normalised, tasks, found)
    return Result(found, [best(v) for v in found], [best(v) for v in by_length], [task.label for task in tasks])


def best(values: Sequence[float]) -> int:
    """The place of the largest; of equal ones the first."""
    return max(range(len(values)), key=values.__getitem__)


def normalised(task: Task, values: Sequence[float]) -> list[float]:
    """The log-likelihoods of a task's endings for their lengths."""
    return [value / length for value, length in zip(values, task.lengths, strict=True)]


def gap(task: Task, values: Sequence[float]) -> float:
    """How far the best ending leads, as a share of the next one's log-likelihood; the smaller of both measures'."""
    leads = []
    for measure in (values, normalised(task, values)):
        second, first = sorted(measure)[-2:]
        leads.append((first - second) / max(-second, TINY))
    return min(leads)
