"""llm.c's `--write_tensors`: the model before training, for llm.c's programs to load and to compare with."""

import torch

from gpt2.data.batches import gather
from gpt2.errors import Log
from gpt2.formats import llmc
from gpt2.formats.export import fit
from gpt2.formats.open import build
from gpt2.formats.source import Extras, Source, StoredTensor
from gpt2.training.run import Run


def write_tensors(run: Run, log: Log) -> None:
    """Write llm.c's files to `llmc/` of the run; this makes no optimizer step.

    The debug state is of the beginning of the first micro-batch: at most llm.c's usual 4 sequences of 64 tokens, and
    without a document mask, which llm.c does not have.
    """
    config = run.model.config
    tensors = {
        name: StoredTensor(tuple(p.shape), lambda p=p: p.detach().cpu()) for name, p in run.model.named_parameters()
    }
    model = build(Source(config, tensors, lambda: run.tokenizer, str(run.out_dir))).eval()
    model = fit(model, run.tokenizer, "llmc", log)
    columns = min(llmc.COLUMNS, config.block_size)
    batch = gather(
        run.batches.tokens,
        run.batches.starts(run.state.step)[: min(llmc.ROWS, run.config.batch_size)],
        columns,
        torch.device("cpu"),
    )
    folder = run.out_dir / "llmc"
    folder.mkdir(exist_ok=True)
    llmc.write(model, Extras(run.tokenizer, run.out_dir.name, "float32", log, batch), folder)
    log(f"wrote {folder} for llm.c")
