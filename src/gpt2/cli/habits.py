"""Options of nanoGPT, llm.c, build-nanogpt and Hugging Face's run_clm, and what they are called in this program.

An option with the same meaning is replaced, and a line on the console reports it. For any other, the command ends
with the right command line.
"""

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from gpt2.training.config import HINTS, Size

Typed = Mapping[str, str]
"""The options of a command line with their values, by name without dashes; a flag without a value is `True`."""
Target = str | Mapping[str, str] | Callable[[str, Typed], str]
"""What stands for an option of another program.

Text that begins with `--` is one option of this program: without `=`, it takes the value that was typed. Empty text
omits the option, which changes nothing here. Any other text is an answer: what to do instead.
A mapping has such a text for each value, under `*` for all others, and a function returns it.
"""
SWITCH_VALUES = {"0": "False", "1": "True", "false": "False", "true": "True", "no": "False", "yes": "True"}
"""The values that an option which is on or off can have."""
SWITCHES = frozenset(name for name, hint in HINTS.items() if hint is bool)
"""The settings of a run that are on or off."""
SPLIT = re.compile(r"(?:^|(?<=[_.-]))(train|val)(?=[_.-])")
"""Marks the split in the name of a token file, as in `data/dataset.py`."""
PER_PROCESS = (
    "each process has that number of its own; here give --batch_size and --gradient_accumulation_steps, which counts "
    "the micro-batches of all processes"
)


def is_path(word: str) -> bool:
    """Return whether a word of a command line names something that exists."""
    return os.path.exists(word)  # noqa: PTH110 (a Path raises OSError for a long name)


def switch(on: str, off: str = "") -> Target:
    """Return the target of an option that is on or off."""
    return {"True": on, "False": off}


def token_files(value: str, typed: Typed) -> str:
    """Return --dataset for llm.c's training and validation files, if one pattern matches both and nothing else."""
    path = Path(value)
    marks = list(SPLIT.finditer(path.name))
    if not marks or marks[-1][1] != "train":
        return "give --dataset=, a folder or pattern of files whose names contain train and val"
    before, after = path.name[: marks[-1].start()], path.name[marks[-1].end() :]
    both, val = path.with_name(f"{before}*{after}"), path.with_name(f"{before}val{after}")
    typed_val = typed.get("input_val_bin") or typed.get("-j") or str(val)
    if Path(typed_val) != val or _matched(both) != _matched(path) | _matched(val):
        return f"give --dataset=, a folder or pattern that matches both {value} and {typed_val} and nothing else"
    return f"--dataset={both}"


def _matched(pattern: Path) -> set[str]:
    return set(glob.glob(str(pattern)))  # noqa: PTH207 (a Path raises ValueError for some patterns)


def validation_files(value: str, typed: Typed) -> str:
    """Return --dataset for llm.c's validation files, the same as for its training files."""
    return token_files(typed.get("input_bin") or typed.get("-i") or value, typed)


def final_rate(value: str, typed: Typed) -> str:
    """Return --min_lr for llm.c's fraction of the learning rate that is left at the end."""
    rate = typed.get("learning_rate") or typed.get("-l") or typed.get("max_lr")
    try:
        if rate is None:
            return f"give --learning_rate, and --min_lr as {float(value):g} times the learning rate"
        return f"--min_lr={float(value) * float(rate):.10g}"
    except ValueError:
        return "give --min_lr, the learning rate at the end"


def per_process(name: str) -> Target:
    """Return the target of an option that counts for each process: `name` where only one process is asked for."""
    return lambda value, typed: name if typed.get("nproc", "1") == "1" else PER_PROCESS


def start(value: str, typed: Typed) -> str:
    """Return the target of llm.c's `-e`, a size or a file of weights."""
    size = value.removeprefix("gpt2:")
    if size in get_args(Size):
        return f"--model={size}"
    if value.startswith("gpt3:c"):
        return f"give the shape of the model: --n_layer, --n_head and --n_embd={value.removeprefix('gpt3:c')}"
    if typed.get("-y") == "1":
        return f"-y 1 resumes as well; start with --init_from={value}, and continue with --init_from=resume"
    return f"--init_from={value}"


def hellaswag(value: str, typed: Typed) -> str:
    """Return the target of llm.c's `-h`, which evaluates HellaSwag as often as the validation loss."""
    return f"--hellaswag_interval={typed.get('-v', '20')}" if value == "1" else ""


def overrides(value: str, typed: Typed) -> str:
    """Return the answer to run_clm's changes of a configuration, such as `n_embd=256,n_positions=512`."""
    pairs = [
        pair.replace("n_positions=", "block_size=").replace("n_ctx=", "block_size=") for pair in value.split(",")
    ]
    return f"give {' '.join(f'--{pair}' for pair in pairs)}"


EVERY = "give {}, a number of optimizer steps"
RECOMPUTE = "use --activation_checkpointing, which recomputes complete blocks"
SKIP = "use --rollback_on_spike, which returns to the last checkpoint and skips the batches since then"
SEVERAL_MACHINES = "torchrun starts processes on several machines: torchrun --nnodes=… -m gpt2 train … (launch/)"
MACHINES = dict.fromkeys(("-pn", "-pr", "-pg", "-pi", "-pm", "-ps", "-pf", "-pp"), ("llm.c", SEVERAL_MACHINES))

IGNORED = (
    "cache_dir", "dataloader_num_workers", "ddp_find_unused_parameters", "disable_tqdm", "keep_linebreaks",
    "logging_dir", "logging_first_step", "low_cpu_mem_usage", "overwrite_cache", "trust_remote_code",
    "use_fast_tokenizer",
)  # fmt: skip
"""Options of run_clm that have no meaning here, and no influence on the model."""

TRAIN: dict[str, tuple[str, Target]] = {
    "input_bin": ("llm.c", token_files),
    "input_val_bin": ("llm.c", validation_files),
    "output_dir": ("llm.c and run_clm", "--out_dir"),
    "sequence_length": ("llm.c", "--block_size"),
    "num_iterations": ("llm.c", "--max_iters"),
    "inference_only": ("llm.c", switch("use --eval_only for the loss, or gpt2 bench train for the speed")),
    "learning_rate_decay_frac": ("llm.c", final_rate),
    "val_loss_every": ("llm.c", "--eval_interval"),
    "val_max_steps": ("llm.c", "--eval_iters"),
    "sample_every": ("llm.c", "--sample_interval"),
    "overfit_single_batch": ("llm.c", switch("--overfit_step=0")),
    "tensorcores": ("llm.c", "--tf32"),
    "-i": ("llm.c", token_files),
    "-j": ("llm.c", validation_files),
    "-e": ("llm.c", start),
    "-o": ("llm.c", "--out_dir"),
    "-lg": ("llm.c", ""),
    "-n": ("llm.c", "--checkpoint_interval"),
    "-nk": ("llm.c", "--keep_checkpoints"),
    "-nm": ("llm.c", "no checkpoint is kept for its number; --keep_checkpoints=0 keeps all"),
    "-y": ("llm.c", {"1": "--init_from=auto", "0": ""}),
    "-b": ("llm.c", "--batch_size"),
    "-t": ("llm.c", "--block_size"),
    "-d": ("llm.c", "--total_batch_size"),
    "-x": ("llm.c", {"-1": "--max_epochs=1", "*": "--max_iters"}),
    "-k": ("llm.c", "--lr_schedule"),
    "-l": ("llm.c", "--learning_rate"),
    "-u": ("llm.c", "--warmup_iters"),
    "-q": ("llm.c", final_rate),
    "-c": ("llm.c", "--weight_decay"),
    "-sl": ("llm.c", {"0": "", "0.0": "", "*": SKIP}),
    "-sg": ("llm.c", {"0": "", "0.0": "", "*": SKIP}),
    "-v": ("llm.c", "--eval_interval"),
    "-m": ("llm.c", "--eval_iters"),
    "-s": ("llm.c", "--sample_interval"),
    "-g": ("llm.c", "--sample_tokens"),
    "-h": ("llm.c", hellaswag),
    "-a": ("llm.c", {"1": "--overfit_step=0", "0": ""}),
    "-f": ("llm.c", "--tf32"),
    "-w": ("llm.c", {"1": "", "*": "weights are always float32 here"}),
    "-ge": ("llm.c", ""),
    "-z": (
        "llm.c",
        {"0": "--zero_stage", "1": "--zero_stage", "*": "use --parallel=fsdp, which shards gradients and weights"},
    ),
    "-r": ("llm.c", {"0": "", "*": RECOMPUTE}),
    **MACHINES,
    "B": ("build-nanogpt", "--batch_size"),
    "T": ("build-nanogpt", "--block_size"),
    "grad_accum_steps": ("build-nanogpt", per_process("--gradient_accumulation_steps")),
    "max_lr": ("build-nanogpt", "--learning_rate"),
    "warmup_steps": ("build-nanogpt and run_clm", "--warmup_iters"),
    "max_steps": ("build-nanogpt and run_clm", "--max_iters"),
    "use_compile": ("build-nanogpt", "--compile"),
    "log_dir": ("build-nanogpt", "--out_dir"),
    "val_loss_steps": ("build-nanogpt", "--eval_iters"),
    "model_name_or_path": ("run_clm", "--init_from"),
    "config_name": ("run_clm", "give a size, such as --model=gpt2-medium"),
    "tokenizer_name": ("run_clm", "the tokenizer is that of the dataset: gpt2 prepare FILES --tokenizer="),
    "dataset_name": ("run_clm", "give --dataset, a prepared folder or a corpus that gpt2 prepare --help lists"),
    "train_file": ("run_clm", "prepare the text first: gpt2 prepare FILE --out=data/mine, then --dataset=mine"),
    "validation_file": ("run_clm", "it belongs to the dataset: gpt2 prepare FILE --val FILE --out=data/mine"),
    "per_device_train_batch_size": ("run_clm", per_process("--batch_size")),
    "per_device_eval_batch_size": ("run_clm", "evaluations take batches of --batch_size sequences"),
    "num_train_epochs": ("run_clm", "--max_epochs"),
    "overwrite_output_dir": ("run_clm", "--overwrite"),
    "do_train": ("run_clm", switch("", "use --eval_only to evaluate without training")),
    "do_eval": ("run_clm", switch("", "use --eval_interval=0 to evaluate only at the end")),
    "fp16": ("run_clm", switch("--dtype=float16")),
    "bf16": ("run_clm", switch("--dtype=bfloat16")),
    "torch_compile": ("run_clm", "--compile"),
    "gradient_checkpointing": ("run_clm", "--activation_checkpointing"),
    "lr_scheduler_type": ("run_clm", "use --lr_schedule, which decays to --min_lr"),
    "warmup_ratio": ("run_clm", "give --warmup_iters, a number of optimizer steps"),
    "max_grad_norm": ("run_clm", "--grad_clip"),
    "adam_beta1": ("run_clm", "--beta1"),
    "adam_beta2": ("run_clm", "--beta2"),
    "save_steps": ("run_clm", "--checkpoint_interval"),
    "save_total_limit": ("run_clm", "--keep_checkpoints"),
    "logging_steps": ("run_clm", "--log_interval"),
    "eval_steps": ("run_clm", "--eval_interval"),
    "resume_from_checkpoint": ("run_clm", "use --init_from=resume, which continues the run in --out_dir"),
    "dataset_config_name": ("run_clm", ""),  # the answer to dataset_name replaces it
    "validation_split_percentage": ("run_clm", "it belongs to the dataset: gpt2 prepare FILE --val_fraction="),
    "preprocessing_num_workers": ("run_clm", "it belongs to the dataset: gpt2 prepare FILE --workers="),
    "model_type": ("run_clm", {"gpt2": "", "*": "only GPT-2 is trained here"}),
    "config_overrides": ("run_clm", overrides),
    "torch_dtype": ("run_clm", {"auto": "", "float32": "", "*": "weights are always float32 here; give --dtype"}),
    "optim": ("run_clm", {"adamw_torch": "", "adamw_torch_fused": "", "*": "give --optimizer=adamw or muon"}),
    "adam_epsilon": ("run_clm", {"1e-8": "", "1e-08": "", "*": "it is always 1e-8 here"}),
    "eval_strategy": ("run_clm", {"steps": "", "no": "--eval_interval=0", "*": EVERY.format("--eval_interval")}),
    "evaluation_strategy": (
        "run_clm",
        {"steps": "", "no": "--eval_interval=0", "*": EVERY.format("--eval_interval")},
    ),
    "save_strategy": ("run_clm", {"steps": "", "*": EVERY.format("--checkpoint_interval")}),
    "logging_strategy": ("run_clm", {"steps": "", "*": EVERY.format("--log_interval")}),
    "report_to": (
        "run_clm",
        {
            "none": "",
            "wandb": "--wandb_log=True",
            "tensorboard": "--tensorboard_log=True",
            "*": "use --wandb_log or --tensorboard_log",
        },
    ),
    "run_name": ("run_clm", "--wandb_run_name"),
    "load_best_model_at_end": ("run_clm", ""),  # every command takes the best checkpoint of a run
    "metric_for_best_model": (
        "run_clm",
        {"eval_loss": "", "loss": "", "*": "the best has the lowest validation loss"},
    ),
    "use_cpu": ("run_clm", switch("--device=cpu")),
    "no_cuda": ("run_clm", switch("--device=cpu")),
    "deepspeed": ("run_clm", "use --zero_stage=1, or --parallel=fsdp"),
    "fsdp": ("run_clm", "use --parallel=fsdp"),
    "push_to_hub": ("run_clm", switch("export the run with gpt2 export hf, and upload that folder")),
    **dict.fromkeys(IGNORED, ("run_clm", "")),
    "nproc_per_node": ("torchrun", "--nproc"),
    "standalone": ("torchrun", ""),
    "nnodes": ("torchrun", SEVERAL_MACHINES),
}
"""Options of other programs that train, with the program and what stands for them in `gpt2 train`."""

BENCH: dict[str, tuple[str, Target]] = {
    "profile": ("nanoGPT", switch("--trace=trace.json")),
    "real_data": ("nanoGPT", switch("give --dataset, whose tokens are then used")),
}
"""Further options for `gpt2 bench train`."""
FLAGS = SWITCHES | {"do_train", "do_eval", "fp16", "bf16", "overwrite_output_dir", "gradient_checkpointing"}
FLAGS |= {"torch_compile", "use_compile", "tensorcores", "overfit_single_batch", "inference_only", "standalone"}
FLAGS |= {"load_best_model_at_end", "low_cpu_mem_usage", "overwrite_cache", "use_cpu", "no_cuda", "push_to_hub"}
FLAGS |= {"trust_remote_code", "logging_first_step"}
FLAGS |= {"profile", "real_data", "ui", "json", "probe"}
"""The options that need no value."""
