"""Every setting of a training run. The text under each is its `--help`."""

import math
import numbers
import os
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from gpt2.errors import UserError
from gpt2.optim.schedule import SCHEDULES


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Names are nanoGPT's where nanoGPT has the setting.

    Raises UserError for values that cannot work or that contradict each other.
    """

    # -- the run --
    out_dir: str = "out"
    """Folder of the run: configuration, log, checkpoints, samples."""
    init_from: str = "scratch"
    """`scratch`, `resume` (continue the run in out_dir exactly), `auto` (resume if there is one), or any
    MODEL to fine-tune."""
    resume_optimizer: bool = False
    """Fine-tune with the AdamW state that comes with init_from's MODEL."""
    overwrite: bool = False
    """Delete the run already in out_dir and start anew."""
    seed: int = 1337
    """Seed of initialisation, batches, dropout and samples."""
    max_iters: int = 600_000
    """Optimizer updates to make in all."""
    max_minutes: float = 0.0
    """Stop after this many minutes of training, as if max_iters were reached; 0 is no limit."""
    max_tokens: int = 0
    """Train on at most this many tokens, where that is less than max_iters; 0 is no limit."""
    max_epochs: float = 0.0
    """Train on at most this many times the dataset's training tokens, where that is less than max_iters; 0 is no
    limit."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations, one every eval_interval, without a better validation loss; 0 is off."""

    # -- data --
    dataset: str = ""
    """A prepared folder, token files of nanoGPT, llm.c or build-nanogpt (a folder, file or glob), a name under
    data_dir, or a corpus, which is prepared on the spot."""
    data_dir: str = "data"
    """Where prepared datasets live."""
    data_order: Literal["random", "shuffled", "sequential"] = "random"
    """`random` windows, as nanoGPT; `shuffled`, every block once an epoch; `sequential`, as llm.c walks."""
    document_mask: bool = False
    """Attention does not look back over an end-of-text token, in training and in its evaluations."""
    align_documents: bool = False
    """Move a random window forward to the next end-of-text token, if one is within block_size tokens."""
    batch_size: int = 12
    """Rows of a micro-batch."""
    block_size: int = 1024
    """Tokens of a row; also the model's context when it is built from scratch."""
    gradient_accumulation_steps: int | None = None
    """Micro-batches of an update, over all processes. Default: what total_batch_size asks for, else 1."""
    total_batch_size: int | None = None
    """Tokens of an update, over all processes; sets gradient_accumulation_steps."""
    overfit_step: int | None = None
    """Train for ever on the batch of this update, counted from 0: to see that the model can learn, or to look at a
    batch that did harm."""

    # -- model --
    model: Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "d6", "d12", "d24", "d36", "d48"] = "gpt2"
    """Size when built from scratch."""
    n_layer: int | None = None
    """Blocks. Default: the size's."""
    n_head: int | None = None
    """Attention heads. Default: the size's."""
    n_embd: int | None = None
    """Width. Default: the size's."""
    vocab_size: int | None = None
    """Token ids. Default: the dataset's."""
    dropout: float = 0.0
    """Dropout on embeddings, attention weights and residual branches."""
    bias: bool = True
    """Biases in Linear and LayerNorm."""
    gelu: Literal["auto", "tanh", "erf"] = "auto"
    """`tanh` is GPT-2's; nanoGPT computes `erf`. auto: what init_from's model computes, else tanh."""
    flash: bool = True
    """Fused attention; False writes it out."""
    pad_vocab: int = 64
    """Round the head's matrix product up to a multiple of this for speed; never saved, never sampled."""

    # -- optimizer --
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for embeddings, biases and LayerNorms."""
    learning_rate: float = 6e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, which follows AdamW's up and down."""
    muon_momentum: float = 0.95
    """Muon's memory of the gradient."""
    muon_weight_decay: float = 0.01
    """Muon's decay of its matrices."""
    muon_iterations: Literal[3, 4, 5] = 5
    """Steps in which Muon makes an update orthogonal; fewer are quicker and rougher."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after the warmup."""
    decay_lr: bool = True
    """False: a constant learning rate without warmup, as in nanoGPT."""
    warmup_iters: int | None = None
    """Updates of linear warmup. Default: a twentieth of max_iters, at most 2000."""
    lr_decay_iters: int | None = None
    """Update at which the learning rate reaches min_lr. Default: max_iters, or where max_tokens or max_epochs end."""
    min_lr: float | None = None
    """Learning rate at the end. Default: a tenth of learning_rate."""
    wsd_decay_fraction: float = 0.2
    """Share of lr_decay_iters in which wsd falls."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices and embeddings."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of its square."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 is off."""

    rollback_on_spike: float = 0.0
    """Where a loss lies this many standard deviations above the mean of the 128 before it, go back to the last
    checkpoint and pass over the batches since; 0 is off."""

    # -- evaluation, records, checkpoints --
    eval_interval: int = 2000
    """Updates between evaluations; also at the start and the end. 0: only at the end."""
    eval_iters: int = 200
    """Batches an evaluation averages, at fixed places spread over each split; 0 is the whole split."""
    hellaswag_interval: int = 0
    """Updates between HellaSwag evaluations, also at the start and the end; 0 is off."""
    hellaswag_limit: int = 0
    """Take only this many of its tasks, from the first on; 0 is all 10,042."""
    hellaswag_data: str = ""
    """A .jsonl of its tasks, or llm.c's hellaswag_val.bin. Default: downloaded into data_dir once."""
    eval_only: bool = False
    """Evaluate once and stop."""
    log_interval: int = 1
    """Updates between lines on the console; log.jsonl has every update."""
    always_save_checkpoint: bool = True
    """Save at every evaluation; False: only when the validation loss is the best so far, and at the end."""
    checkpoint_interval: int = 0
    """Save every so many updates as well; 0 is off."""
    async_checkpoint: bool = False
    """Write checkpoints beside the training, from a copy in the CPU's memory as large as model and optimizer."""
    write_tensors: bool = False
    """Before a fresh run's first update write the model, a debug state and the tokenizer to out_dir/llmc, as llm.c
    does."""
    keep_checkpoints: int = 2
    """Keep this many newest checkpoints, and the best; 0 keeps all."""
    sample_interval: int = 0
    """Updates between samples written to samples/ and shown; 0 is off."""
    sample_start: str | tuple[str, ...] = "\n"
    """Prompt of those samples, or FILE:path to read it from. Several: a list, or the flag once for each."""
    num_samples: int = 1
    """Samples of each prompt: the first with seed, the next ones counting up, the same at every step."""
    sample_tokens: int = 200
    """Length of those samples in tokens."""
    wandb_log: bool = False
    """Also log to Weights & Biases."""
    trackio_log: bool = False
    """Also log to trackio, on this machine."""
    wandb_project: str = "gpt2"
    """Project of both."""
    wandb_run_name: str = ""
    """Run name of both. Default: out_dir."""
    tensorboard_log: bool = False
    """Also log for TensorBoard, to out_dir/tensorboard."""
    llmc_log: bool = False
    """Also write out_dir/llmc/main.log, as llm.c's trainer does."""
    build_nanogpt_log: bool = False
    """Also write out_dir/build-nanogpt/log.txt, as build-nanogpt does."""

    # -- machine --
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Format of matrix products; float16 scales its gradients. Weights stay float32. `auto` is bfloat16 on a GPU that
    has it and on a CPU with AMX, float16 on an older GPU, and float32 on every other device."""
    compile: bool = True
    """torch.compile; where it cannot work here, a line says so and training goes on without."""
    tf32: bool = True
    """Let float32 matrix products use TF32 on CUDA."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """How processes talk: nccl between GPUs, gloo between CPUs. auto: what the device takes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the model: ddp, every process has all of it; fsdp, each has a part of every
    parameter, gradient and optimizer state."""
    zero_stage: Literal[0, 1] = 0
    """1: with ddp, each process keeps the optimizer state of some parameters and updates those for all (ZeRO)."""
    cpu_offload: bool = False
    """With fsdp, keep the parts in the CPU's memory while they are not computed with."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, more work."""
    deterministic: bool = False
    """Add gradients up in an order that does not depend on the number of processes: the weights are then the same bit
    for bit with 1, 2, 4, … of them. On a CPU each process computes with OMP_NUM_THREADS threads, 1 unless given."""
    dist_timeout: float = 600.0
    """Seconds without progress after which a process of several says which one all wait for, and ends the run."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        at_least = {
            "max_iters": 0, "batch_size": 1, "block_size": 1, "eval_interval": 0, "eval_iters": 0,
            "log_interval": 1, "checkpoint_interval": 0, "keep_checkpoints": 0, "sample_interval": 0,
            "sample_tokens": 1, "learning_rate": 0, "weight_decay": 0, "grad_clip": 0, "seed": 0,
            "muon_learning_rate": 0, "muon_weight_decay": 0,
            "max_minutes": 0, "max_tokens": 0, "max_epochs": 0, "early_stopping_patience": 0, "num_samples": 1,
            "pad_vocab": 1, "gradient_accumulation_steps": 1, "total_batch_size": 1,
            "n_layer": 1, "n_head": 1, "n_embd": 1, "vocab_size": 1, "warmup_iters": 0, "lr_decay_iters": 0,
            "min_lr": 0, "overfit_step": 0, "rollback_on_spike": 0, "dist_timeout": 1, "hellaswag_interval": 0,
            "hellaswag_limit": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        for name in ("beta1", "beta2", "dropout", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not 0 < self.wsd_decay_fraction <= 1:
            raise UserError(f"wsd_decay_fraction is {self.wsd_decay_fraction}; it must lie in (0, 1]")
        if not self.seed < 1 << 63:
            raise UserError(f"seed is {self.seed}; it must be below 2^63")
        if self.align_documents and self.data_order != "random":
            raise UserError(
                f"align_documents moves windows, but data_order={self.data_order} shows every token once an epoch; "
                "use --data_order=random or --align_documents=False"
            )
        if self.early_stopping_patience and not self.eval_interval:
            raise UserError(
                f"early_stopping_patience={self.early_stopping_patience} counts evaluations, and eval_interval=0 "
                "makes none before the end; give --eval_interval or leave --early_stopping_patience at 0"
            )
        if self.optimizer == "muon" and self.dtype == "float16":
            raise UserError("optimizer=muon does not scale gradients; use --dtype=bfloat16 or float32")
        if self.optimizer == "muon" and self.cpu_offload:
            raise UserError(
                "optimizer=muon computes on the device; leave --cpu_offload out, or use --optimizer=adamw"
            )
        self._check_batch()
        if self.decay_lr and self.lr_schedule != "constant" and (self.warmup_iters or 0) > self.decay_end:
            raise UserError(
                f"warmup_iters={self.warmup_iters} is more than lr_decay_iters={self.decay_end}; "
                "lower --warmup_iters or raise --lr_decay_iters"
            )

    def _check_batch(self) -> None:
        """Refuse two sizes of an update that differ, and one that rows do not divide."""
        if self.total_batch_size is None:
            return
        micro = self.batch_size * self.block_size
        if self.total_batch_size % micro:
            below = self.total_batch_size // micro * micro
            nearest = f"{below} or {below + micro}" if below else f"{micro}"
            raise UserError(
                f"total_batch_size={self.total_batch_size} is no multiple of batch_size·block_size = "
                f"{self.batch_size}·{self.block_size} = {micro}; the nearest that are: {nearest}"
            )
        implied = self.total_batch_size // micro
        if self.gradient_accumulation_steps not in (None, implied):
            raise UserError(
                f"total_batch_size={self.total_batch_size} means {implied} micro-batches of {micro} tokens, but "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}; give only one of the two"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches of an update, over all processes."""
        if self.total_batch_size is not None:
            return self.total_batch_size // (self.batch_size * self.block_size)
        return self.gradient_accumulation_steps or 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an update, over all processes."""
        return self.accumulation * self.batch_size * self.block_size

    @property
    def prompts(self) -> tuple[str, ...]:
        """What sample_start says."""
        return (self.sample_start,) if isinstance(self.sample_start, str) else self.sample_start

    @property
    def decay_end(self) -> int:
        """Update at which the learning rate reaches its end."""
        return self.max_iters if self.lr_decay_iters is None else self.lr_decay_iters

    def resolved(self) -> Self:
        """The same run with every default that follows from another setting filled in."""
        from gpt2.model import PRESETS  # here, so that --help need not wait for PyTorch

        sizes = PRESETS[self.model]
        return replace(
            self,
            n_layer=self.n_layer or sizes["n_layer"],
            n_head=self.n_head or sizes["n_head"],
            n_embd=self.n_embd or sizes["n_embd"],
            gelu="tanh" if self.gelu == "auto" else self.gelu,
            lr_decay_iters=self.decay_end,
            warmup_iters=min(2000, self.decay_end // 20) if self.warmup_iters is None else self.warmup_iters,
            min_lr=self.learning_rate / 10 if self.min_lr is None else self.min_lr,
        )

    def as_dict(self) -> dict[str, Any]:
        """Every setting that has a value, in the order above, as a TOML file or JSON holds it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


HINTS = get_type_hints(TrainConfig)
assert get_args(HINTS["lr_schedule"]) == SCHEDULES


def checked(name: str, value: Any) -> Any:
    """`value` as the setting `name` takes it: a path as text, any real number where a float belongs, a list of texts
    as a tuple.

    Raises UserError for any other type, which a TOML file can hold, for a choice there is not, and for
    numbers and text that a TOML file cannot hold.
    """
    hint = HINTS[name]
    kinds = get_args(hint) or (hint,)
    if str in kinds and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if float in kinds and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    texts = [value]
    if get_origin(hint) is Literal:
        if value not in kinds:
            raise UserError(f"{name} is {value!r}; choose from {', '.join(map(str, kinds))}")
    elif tuple[str, ...] in kinds and isinstance(value, list | tuple):
        texts, value = list(value), tuple(value)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{name} is {value!r}; it must be a text or a list of texts")
    elif type(value) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds if k is not type(None))
        raise UserError(f"{name} is {value!r} ({type(value).__name__}); it must be {expected}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    if any(0xD800 <= ord(c) < 0xE000 for text in texts if isinstance(text, str) for c in text):
        raise UserError(f"{name} is {value!r}, which is not valid text; give it in UTF-8")
    return value
