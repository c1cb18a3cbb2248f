"""Log-likelihoods of endings are those of a loop that computes context and ending together, one ending at a time."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from gpt2.distributed.world import World
from gpt2.errors import UserError
from gpt2.evaluation.choices import (
    PackedSequence,
    Question,
    Result,
    Task,
    batches_of,
    choose,
    log_likelihoods,
    scores,
    sequences_of,
)
from gpt2.model import GPT, GPTConfig

VOCABULARY, BLOCK = 50, 24


def toy(seed: int = 0, **changes: object) -> GPT:
    """Return a model in float64 whose predictions differ much from token to token."""
    torch.manual_seed(seed)
    settings = {"block_size": BLOCK, "vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**settings | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def some_tasks(count: int, longest: int = BLOCK, seed: int = 0) -> list[Task]:
    """Return random tasks with contexts of up to `longest` tokens and four endings of up to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    def tokens(most: int) -> list[int]:
        return [number(VOCABULARY) for _ in range(1 + number(most))]

    tasks = []
    for _ in range(count):
        endings = [tokens(9) for _ in range(4)]
        tasks.append(Task(tokens(longest), endings, [len(e) for e in endings], number(4)))
    return tasks


@torch.no_grad()
def one_by_one(model: GPT, task: Task) -> list[float]:
    """Compute the log-likelihood of each ending alone; a context that is too long loses its first tokens."""
    sums = []
    for ending in task.endings:
        ids = torch.tensor([*task.context, *ending])[-(model.config.block_size + 1) :]
        logits = model.head(model.hidden(ids[None, :-1]))[0]
        sums.append(-F.cross_entropy(logits[-len(ending) :], ids[-len(ending) :], reduction="sum").item())
    return sums


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_the_likelihoods_are_those_of_one_ending_at_a_time(flash: bool, batch_tokens: int) -> None:
    model, tasks = toy(flash=flash), some_tasks(40)
    lengths = [len(t.context) + max(map(len, t.endings)) - 1 for t in tasks]
    assert min(lengths) < BLOCK < max(lengths), "some fit and some do not"
    computed = log_likelihoods(model, tasks, batch_tokens=batch_tokens, dtype="float32")
    for values, task in zip(computed, tasks, strict=True):
        assert values == pytest.approx(one_by_one(model, task), rel=1e-10)


@torch.no_grad()
def greedily(model: GPT, context: list[int], count: int) -> list[int]:
    """Return the `count` likeliest next tokens, one at a time."""
    ids = list(context)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0].argmax()))
    return ids[len(context) :]


def test_an_ending_is_greedy_when_each_of_its_tokens_is_the_likeliest() -> None:
    model, questions, wanted = toy(), [], []
    for context in ([1, 2, 3], [4], [5, 6, 7, 8]):
        likeliest = greedily(model, context, 5)
        swapped = [[*likeliest[:i], (likeliest[i] + 1) % VOCABULARY, *likeliest[i + 1 :]] for i in range(5)]
        questions.append(Question(context, [likeliest, *swapped, likeliest[:1]]))
        wanted.append([True, False, False, False, False, False, True])
    results = scores(model, questions, dtype="float32")
    assert [[score.greedy for score in of_question] for of_question in results] == wanted


def test_an_ending_does_not_depend_on_the_others() -> None:
    [task] = some_tasks(1, longest=5)
    other = Task(task.context, [*task.endings[:2], [1] * len(task.endings[2]), task.endings[3]], task.lengths, 0)
    one, two = log_likelihoods(toy(), [task, other], dtype="float32")
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, False, True]


def test_the_context_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, hidden = [], GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, idx, *rest, **named: seen.append(idx.shape) or hidden(self, idx, *rest, **named)
    )
    task = Task([1, 2, 3, 4, 5], [[6, 7], [8], [9, 10, 11], [12]], [2, 1, 3, 1], 0)
    log_likelihoods(toy(), [task], dtype="float32")
    assert seen == [(1, 5 + 1 + 0 + 2 + 0)]


def test_sequences_are_batched_by_length() -> None:
    def tasks_in_batches(sequences: list[PackedSequence]) -> list[list[int]]:
        return [[sequence.task for sequence in batch] for batch in batches_of(sequences, 20)]

    lengths = [3, 9, 4, 8, 1, 9, 2]
    sequences = [PackedSequence(i, [0] * n, {0: [1]}) for i, n in enumerate(lengths)]
    assert tasks_in_batches(sequences) == [[1, 5], [3, 2], [0, 6, 4]]
    assert tasks_in_batches([PackedSequence(7, [0] * 30, {0: [1]})]) == [[7]]


class ThreadWorld(World):
    """A process of a world that is only a thread."""

    def gather(self, value):
        self.control["values"][self.rank] = value
        self.control["barrier"].wait(timeout=30)
        return list(self.control["values"])


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_batches_and_agree(size: int) -> None:
    models, tasks = [toy() for _ in range(size)], some_tasks(15, longest=8)
    batches = len(batches_of([s for i, t in enumerate(tasks) for s in sequences_of(i, t, BLOCK)], 60))
    assert batches % size, "at the end some processes have no batch"
    alone = log_likelihoods(toy(), tasks, batch_tokens=60, dtype="float32")
    control = {"values": [None] * size, "barrier": threading.Barrier(size)}
    results: list = [None] * size
    forwards = [0] * size

    def run(rank: int) -> None:
        model, compute = models[rank], models[rank].hidden

        def counted(*arguments, **named):
            forwards[rank] += 1
            return compute(*arguments, **named)

        model.hidden = counted
        world = ThreadWorld(rank, size, control=control)
        results[rank] = log_likelihoods(model, tasks, batch_tokens=60, dtype="float32", world=world)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * size
    assert set(forwards) == {-(-batches // size)}, "a sharded model needs every process in each forward pass"


def test_logits_stay_in_float32_under_autocast() -> None:
    model = toy().float()
    with torch.no_grad():  # logits near 100, which bfloat16 would round to halves
        model.transformer.ln_f.weight.mul_(1e-2)
        model.transformer.ln_f.bias.fill_(5)
        model.transformer.wte.weight.add_(1.2)
    [task] = some_tasks(1, longest=5)
    [computed] = log_likelihoods(model, [task], dtype="bfloat16")
    idx = torch.tensor([task.context])
    assert model(idx)[0].abs().min() > 64
    assert computed == pytest.approx(one_by_one(model, task), abs=0.02)


def plain_choices(model: GPT, tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """Return the choices by sum and by mean, computed with `one_by_one`."""
    chosen = []
    for task in tasks:
        sums = torch.tensor(one_by_one(model, task), dtype=torch.float64)
        chosen.append((int(sums.argmax()), int((sums / torch.tensor(task.lengths)).argmax())))
    return chosen


def choices(result: Result) -> list[tuple[int, int]]:
    return list(zip(result.predictions, result.predictions_norm, strict=True))


def test_close_calls_in_bfloat16_are_decided_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy().float()
    with torch.no_grad():  # tokens 0 and 1, 2 and 3, … hardly differ, but the model does not find them equally likely
        wte = model.transformer.wte.weight
        wte[1::2] = wte[::2] + 1e-4 * torch.randn_like(wte[::2])
    clear = some_tasks(500, longest=10)
    close = [
        Task(t.context, [[5, i, 7], [5, i + 1, 7]], [3, 3], 0)
        for t, i in zip(clear[:150], 50 * [20, 30, 40], strict=True)
    ]
    tasks = clear[:250] + close + clear[250:]
    wanted = plain_choices(model, tasks)
    coarse = log_likelihoods(model, tasks, dtype="bfloat16")
    by_sum = [values.index(max(values)) for values in coarse]
    assert by_sum != [first for first, _ in wanted], "bfloat16 alone gets some wrong"
    exact: list[int] = []

    def counting(model, tasks, *, dtype, **rest):
        exact.extend([len(tasks)] if dtype == "float32" else [])
        return log_likelihoods(model, tasks, dtype=dtype, **rest)

    monkeypatch.setattr("gpt2.evaluation.choices.log_likelihoods", counting)
    assert choices(choose(model, tasks, dtype="bfloat16")) == wanted
    assert 0 < sum(exact) < len(tasks)
    assert choices(choose(model, tasks, dtype="float32")) == wanted


def test_figures_of_a_result() -> None:
    result = Result([], predictions=[0, 1, 2, 3], predictions_norm=[0, 0, 0, 0], labels=[0, 1, 2, 0])
    assert (result.acc, result.acc_norm) == (0.75, 0.5)
    assert result.standard_error(0.75) == pytest.approx(0.25)  # deviations ¼, ¼, ¼, -¾: variance ¼; √(¼ / 4)
    assert Result([], [0], [0], [0]).standard_error(1.0) is None


def test_the_first_of_equal_endings_is_chosen_and_lengths_count() -> None:
    model = toy()
    same = Task([1, 2], [[3, 4], [3, 4]], [2, 2], 0)
    longer = Task([1, 2], [[3, 4], [3, 4]], [2, 3], 0)  # a negative number for a longer ending is the higher mean
    result = choose(model, [same, longer], dtype="float32")
    assert result.log_likelihoods[0][0] == pytest.approx(result.log_likelihoods[0][1], rel=1e-12)
    assert result.predictions_norm[1] == 1


def test_the_model_keeps_its_mode() -> None:
    model = toy(dropout=0.5)
    expected = log_likelihoods(model, some_tasks(2), dtype="float32")
    model.train()
    assert log_likelihoods(model, some_tasks(2), dtype="float32") == expected
    assert model.training


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task([1], [[2], [3] * (BLOCK + 1)], [1, 1], 0), f"task 0 has an ending of {BLOCK + 1} tokens"),
        (Task([1], [[2], [VOCABULARY]], [1, 1], 0), f"task 0 has the token id {VOCABULARY}"),
    ],
)
def test_tasks_that_do_not_fit_the_model_are_refused(task: Task, message: str) -> None:
    with pytest.raises(UserError, match=message):
        log_likelihoods(toy(), [task], dtype="float32")


def test_an_ending_as_long_as_the_context_of_the_model_fits() -> None:
    task = Task([1, 2, 3], [[4], [5] * BLOCK], [1, BLOCK], 0)
    model = toy()
    assert log_likelihoods(model, [task], dtype="float32")[0] == pytest.approx(one_by_one(model, task), rel=1e-10)


def test_a_model_without_finite_numbers_is_reported() -> None:
    model = toy()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match="no finite numbers"):
        log_likelihoods(model, some_tasks(2), dtype="float32")
