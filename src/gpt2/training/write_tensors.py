"""llm.c's `--write_tensors`: the model as it is before training, for llm.c's programs to load and to compare with."""

import copy
from collections.abc import Callable

import torch

from gpt2.data.batches import gather
from gpt2.files import publish
from gpt2.formats import llmc
from gpt2.formats.export import fit
from gpt2.formats.source import Extras
from gpt2.training.setup import Run
from gpt2.training.step import row_starts


def write_tensors(run: Run, note: Callable[[str], None]) -> None:
    """Write llm.c's files to `llmc/` of the run, the debug state for the first micro-batch; makes no update."""
    cpu = torch.device("cpu")
    model = fit(copy.deepcopy(run.model).to(cpu).eval(), run.tokenizer, "llmc", note)
    batch = gather(run.train_tokens, row_starts(run)[: run.config.batch_size], run.config.block_size, cpu)
    with publish(run.out_dir / "llmc") as folder:
        folder.mkdir()
        llmc.write(model, Extras(run.tokenizer, run.out_dir.name, "float32", batch), folder)
    note(f"wrote {run.out_dir / 'llmc'} for llm.c")
