"""Arguments that several commands take, with the text that `--help` shows for them."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.training.config import TrainConfig
from gpt2.training.setting import OUTPUT, PATH, PROCESSES

RecipeArg = Annotated[
    str | None,
    PATH,
    Parameter(help="A built-in recipe (shakespeare_char, gpt2, …), a TOML file or a nanoGPT config file."),
]
SettingsArg = Annotated[TrainConfig, Parameter(name="*")]
"""All settings of a training run, each with its own flag."""
ModelArg = Annotated[
    str,
    PATH,
    Parameter(
        help="A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of "
        "nanoGPT, build-nanogpt, llm.c or llama.cpp."
    ),
]
DatasetArg = Annotated[
    str,
    PATH,
    Parameter(
        help="A prepared folder, token files (a folder, file or glob pattern), a name under data_dir, or the name of "
        "a corpus."
    ),
]
SplitArg = Annotated[Literal["train", "val"], Parameter(help="Split of the dataset.")]
DataDirArg = Annotated[str, PATH, Parameter(help="Folder that holds the prepared datasets.")]
TokenizerArg = Annotated[
    str | None,
    PATH,
    Parameter(
        help="Tokenizer for a model that comes without one: gpt2, byte, or the file or folder of a dataset or a "
        "model. Default: the model's own."
    ),
]
DeviceArg = Annotated[
    str, Parameter(help="Device to compute on: auto, cpu, cuda, cuda:N or mps. auto takes a GPU if there is one.")
]
DTypeArg = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Parameter(help="Dtype of matrix products.")]
QuantizeArg = Annotated[
    Literal["none", "int8"],
    Parameter(help="int8 stores each row of a matrix as 8-bit integers and a scale, for faster decoding."),
]
NprocArg = Annotated[
    str,
    PROCESSES,
    Parameter(
        help="Number of processes on this machine that share the work, or auto for one per GPU. torchrun can start "
        "them instead."
    ),
]
OUT = Parameter(name=["--out", "-o"])
"""Names of the option for the file or folder that a command writes."""
OutArg = Annotated[Path, OUTPUT, Parameter(help="Folder or file to write. It must not exist yet.")]
OverwriteFlag = Annotated[bool, Parameter(help="Replace the output that already exists.")]
FieldArg = Annotated[
    str,
    Parameter(
        help="Field that holds the text of a document in .jsonl, .json, .csv, .tsv and .parquet files, such as "
        "meta.text for a field inside another."
    ),
]
FromArg = Annotated[
    Path | None, Parameter(name="--from", help="Local copy of a corpus, to use instead of a download.")
]
JsonFlag = Annotated[bool, Parameter(name="--json", negative=(), help="Print the results as one JSON object.")]
