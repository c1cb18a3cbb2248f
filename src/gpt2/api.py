"""What `import gpt2` offers for datasets, runs and files; the commands of the same names do the same."""

from os import PathLike
from pathlib import Path
from typing import Literal, get_args

from gpt2.errors import Log, UserError, require
from gpt2.evaluation.split_loss import SplitLoss, measure_split
from gpt2.files import write_text
from gpt2.formats.export import Exported
from gpt2.formats.export import export as export_source
from gpt2.formats.open import open_model, path_text
from gpt2.formats.source import Source, StoredTensor, is_plain
from gpt2.generation.arguments import require_number, require_whole_number
from gpt2.model import GPT
from gpt2.reporting.figures import RunReport, report_on
from gpt2.reporting.page import page
from gpt2.reporting.picture import plot_runs
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig

Name = str | PathLike[str]
FormatName = Literal["hf", "nanogpt", "llmc", "gguf", "safetensors"]
AxisName = Literal["steps", "tokens", "flops", "time"]
AXES = get_args(AxisName)


def evaluate(
    model: Name | GPT,
    dataset: Name,
    *,
    split: Literal["train", "val"] = "val",
    tokens: int | None = None,
    stride: int | None = None,
    loss_after: str = "",
    batch_size: int = 16,
    data_dir: str = "data",
    device: str = "auto",
    dtype: str = "auto",
) -> SplitLoss:
    """Return the mean loss, perplexity and bits per byte of a model over a split, as `gpt2 eval loss` does.

    model: a GPT, or any MODEL by path or name. dataset: a prepared folder, token files or a corpus. tokens: number of
    predictions, by default all. stride: number of tokens by which a window moves on, by default the context length.
    loss_after: count only the tokens after this special token, up to and including the next one. Raises UserError.
    """
    for name, value in (("tokens", tokens), ("stride", stride), ("batch_size", batch_size)):
        if value is not None or name == "batch_size":
            require_whole_number(name, value, least=1)
    found = measure_split(
        model if isinstance(model, GPT) else path_text("model", model),
        path_text("dataset", dataset),
        split=split,
        tokens=tokens,
        stride=stride,
        loss_after=loss_after,
        batch_size=batch_size,
        data_dir=path_text("data_dir", data_dir),
        device=str(device),
        dtype=dtype,
    )
    assert found is not None, "a process alone gets the result"
    return found


def export(
    model: Name | GPT,
    format: FormatName,
    out: Name,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    log: Log = lambda line: None,
) -> Exported:
    """Write a model for another program, as `gpt2 export` does, and return how far its logits are from the model's.

    model: a GPT, or any MODEL by path or name. out: must not exist yet. tokenizer: of a GPT; a MODEL has its own.
    dtype: float32, bfloat16, float16 or q8_0, as far as the format has it. log: receives a line about every change
    that the format needs. Raises UserError.
    """
    if isinstance(model, GPT):
        if not is_plain(model):
            raise UserError("the given model has layers of its own, which no file format holds; export a plain GPT")
        _check_tokenizer(tokenizer, model)
        tensors = {name: StoredTensor.of(p.detach().cpu()) for name, p in model.named_parameters()}
        source = Source(model.config, tensors, lambda: _given(tokenizer), "the given model")
    else:
        source = open_model(model)
    return export_source(source, format, Path(path_text("out", out)), log, dtype)


def _check_tokenizer(tokenizer: Tokenizer | None, model: GPT) -> None:
    """Raise UserError for what is given as the tokenizer of a model and cannot be that."""
    if tokenizer is not None:
        is_tokenizer = hasattr(tokenizer, "to_json")
        require(is_tokenizer, f"tokenizer is of type {type(tokenizer).__name__}; give the one that gpt2.load returns")
        n_ids, n_rows = tokenizer.vocab_size, model.config.vocab_size
        require(n_ids <= n_rows, f"tokenizer has {n_ids} ids, but the model has only {n_rows}; give the model's own")


def _given(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer that was given. Raises UserError, which formats that can do without one ignore."""
    if tokenizer is None:
        raise UserError("the given model has no tokenizer; give tokenizer=, the second that gpt2.load returns")
    return tokenizer


def plot(
    *runs: Name,
    out: Name = "plot.png",
    x: AxisName = "steps",
    smooth: float | None = None,
    dark: bool = False,
) -> Path:
    """Draw the curves of one or more runs into a .png, .svg or .pdf, as `gpt2 plot` does; return its path.

    smooth: weight of the earlier values in the moving average of the training loss, below 1; None chooses it. Raises
    UserError.
    """
    picture = Path(path_text("out", out))
    require(x in AXES, f"there is no axis {x!r}; choose from {', '.join(AXES)}")
    if smooth is not None:
        require_number("smooth", smooth)
    plot_runs(_paths(runs), picture, x, smooth, dark=dark)
    return picture


def report(*runs: Name, out: Name | None = "report.html") -> list[RunReport]:
    """Write a page about one or more runs, as `gpt2 report` does, and return the facts of each run.

    out: the page; None writes none. Raises UserError.
    """
    reports = [report_on(run) for run in _paths(runs)]
    if out is not None:
        write_text(Path(path_text("out", out)), page(reports, TrainConfig().as_dict()))
    return reports


def _paths(runs: tuple[Name, ...]) -> list[Path]:
    """Return the folders of runs. Raises UserError where none is given."""
    require(bool(runs), "no run is given; name one or more")
    return [Path(path_text("a run", run)) for run in runs]
