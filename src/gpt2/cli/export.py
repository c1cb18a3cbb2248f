"""`gpt2 export`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import DataDirArg, JsonFlag, ModelArg, OutArg, TokenizerArg
from gpt2.cli.results import print_difference
from gpt2.runlog.console import note
from gpt2.training.setting import CONTEXT, PATH, SEQUENCES


def export(
    format_: Annotated[Literal["hf", "nanogpt", "llmc", "gguf", "safetensors"], Parameter(name="FORMAT")],
    model: ModelArg,
    out: OutArg,
    /,
    *,
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32",
    tokenizer: TokenizerArg = None,
    dataset: Annotated[str | None, PATH] = None,
    batch_size: Annotated[int | None, SEQUENCES] = None,
    block_size: Annotated[int | None, CONTEXT] = None,
    data_dir: DataDirArg = "data",
    json_: JsonFlag = False,
) -> None:
    """Write a model in the format of another program, read it back, and compare the logits with the model's.

    `hf` is a folder for transformers, `nanogpt` a folder with ckpt.pt, `llmc` a folder with the four files of
    llm.c's --write_tensors, `gguf` a file for llama.cpp, `safetensors` a file that also holds configuration and
    tokenizer.

    Parameters
    ----------
    format_
        Format to write.
    dtype
        Dtype of the weights; q8_0 is only for gguf. llmc always writes both float32 and bfloat16.
    dataset
        For llmc: take the debug state's batch from this dataset's validation split. Default: random ids.
    batch_size
        For llmc: number of sequences in that batch. Default: 4.
    block_size
        For llmc: number of tokens in a sequence of that batch. Default: 64, or the model's context length if that is
        less.
    """
    from gpt2.errors import UserError
    from gpt2.formats.export import export as write
    from gpt2.formats.open import open_model
    from gpt2.training.llmc_batch import debug_batch

    asked = (dataset, batch_size, block_size)
    if format_ != "llmc" and asked != (None, None, None):
        raise UserError(f"{format_} has no debug state; leave --dataset, --batch_size and --block_size out")
    source = open_model(model, tokenizer)
    batch = debug_batch(source, *asked, data_dir, note) if format_ == "llmc" else None
    print_difference(write(source, format_, out, note, dtype, batch), json_)
