"""llm.c's `--write_tensors`: the model as it is before training, for llm.c's programs to load and to compare with."""

from collections.abc import Callable

import torch

from gpt2.data.batches import gather
from gpt2.formats import llmc
from gpt2.formats.export import fit
from gpt2.formats.open import build
from gpt2.formats.source import Extras, Source, StoredTensor
from gpt2.training.setup import Run
from gpt2.training.step import row_starts


def write_tensors(run: Run, note: Callable[[str], None]) -> None:
    """Write llm.c's files to `llmc/` of the run; makes no update.

    The debug state is of the beginning of the first micro-batch, as much as llm.c's usual 4 rows of 64, and
    without a document mask, which llm.c does not know.
    """
    config = run.model.config
    tensors = {
        name: StoredTensor(tuple(p.shape), lambda p=p: p.detach().cpu()) for name, p in run.model.named_parameters()
    }
    model = build(Source(config, tensors, lambda: run.tokenizer, str(run.out_dir))).eval()
    model = fit(model, run.tokenizer, "llmc", note)
    columns = min(llmc.COLUMNS, config.block_size)
    batch = gather(
        run.train_tokens,
        row_starts(run, run.state.step)[: min(llmc.ROWS, run.config.batch_size)],
        columns,
        torch.device("cpu"),
    )
    folder = run.out_dir / "llmc"
    folder.mkdir(exist_ok=True)
    llmc.write(model, Extras(run.tokenizer, run.out_dir.name, "float32", note, batch), folder)
    note(f"wrote {folder} for llm.c")
