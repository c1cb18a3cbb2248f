"""Every setting of a training run. The text under a setting is its `--help`."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from gpt2.optim.schedule import SCHEDULES
from gpt2.training.setting import (
    CONTEXT,
    DATA,
    EVALUATION,
    FRACTION,
    MACHINE,
    MICRO_BATCHES,
    MODEL,
    OPTIMIZER,
    PATH,
    PROBABILITY,
    PROCESSES,
    QUOTED,
    RATE,
    RECORDS,
    RUN,
    SAMPLES,
    SEED,
    SEQUENCES,
    STEPS,
    TEMPERATURE,
    TOKENS,
    Bounds,
    DataOrder,
    check_batch,
    check_combinations,
    check_schedule,
    check_step,
    converted,
    expanded,
    within,
)

Size = Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "d6", "d12", "d24", "d36", "d48"]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. Their names are nanoGPT's where nanoGPT has the setting.

    Raises UserError for values that are out of bounds or that contradict each other.
    """

    out_dir: Annotated[str, RUN, PATH] = "out"
    """Folder of the run: its configuration, log, checkpoints and samples."""
    init_from: Annotated[str, RUN, PATH] = "scratch"
    """Where the weights come from: `scratch` (random initialisation), `resume` (continue the run in out_dir exactly),
    `auto` (resume if out_dir holds a run, else scratch), or a MODEL to fine-tune (a path or a Hugging Face name)."""
    resume_optimizer: Annotated[bool, RUN] = False
    """Start fine-tuning with the optimizer state that is stored with the MODEL of init_from."""
    overwrite: Annotated[bool, RUN] = False
    """Delete the run that is already in out_dir and start a new one."""
    seed: Annotated[int, RUN, SEED] = 1337
    """Seed of the weight initialisation, the batches, the dropout and the samples."""
    max_iters: Annotated[int, RUN, STEPS] = 600_000
    """Total number of optimizer steps in the run."""
    max_minutes: Annotated[float, RUN, within(0, 10**9)] = 0.0
    """Maximum training time in minutes. The run then ends as if max_iters were reached. 0 means no limit."""
    max_tokens: Annotated[int, RUN, TOKENS] = 0
    """Maximum number of training tokens. The run ends at this limit or at max_iters, whichever comes first. 0 means
    no limit."""
    max_epochs: Annotated[float, RUN, within(0, 10**9)] = 0.0
    """Maximum number of passes over the training tokens. The run ends at this limit or at max_iters, whichever comes
    first. 0 means no limit."""
    early_stopping_patience: Annotated[int, RUN, STEPS] = 0
    """End the run after this number of evaluations, one every eval_interval optimizer steps, without a lower
    validation loss. 0 disables early stopping."""

    dataset: Annotated[str, DATA, PATH] = ""
    """A prepared folder, token files of nanoGPT, llm.c or build-nanogpt (a folder, file or glob pattern), a name
    under data_dir, or the name of a corpus, which is prepared first if necessary."""
    data_dir: Annotated[str, DATA, PATH] = "data"
    """Folder that holds the prepared datasets."""
    data_order: Annotated[DataOrder, DATA] = "random"
    """`random` draws windows at random offsets, as nanoGPT does. `shuffled` visits every block once per epoch, in
    random order. `sequential` reads the token files from start to end, as llm.c does."""
    document_mask: Annotated[bool, DATA] = False
    """Mask attention across end-of-text tokens, in training and in the evaluations of the loss."""
    align_documents: Annotated[bool, DATA] = False
    """Move the start of each random window forward to the next end-of-text token, if one is within block_size tokens.
    Needs data_order=random."""
    loss_after: Annotated[str, DATA] = ""
    """Train and evaluate only on answers: the tokens after this special token, such as <|assistant|>, up to and
    including the next special token. Default: all tokens."""
    batch_size: Annotated[int, DATA, SEQUENCES] = 12
    """Number of sequences in a micro-batch."""
    block_size: Annotated[int, DATA, CONTEXT] = 1024
    """Number of tokens in a sequence; also the model's context length when it is built from scratch."""
    gradient_accumulation_steps: Annotated[int | None, DATA, MICRO_BATCHES] = None
    """Number of micro-batches in an optimizer step, over all processes. Default: what total_batch_size implies, else
    1."""
    total_batch_size: Annotated[int | None, DATA, within(1, 10**12)] = None
    """Number of tokens in an optimizer step, over all processes. Sets gradient_accumulation_steps."""
    overfit_step: Annotated[int | None, DATA, within(0, 10**9)] = None
    """Train only on the batch of this optimizer step, counted from 0, to check that the model can learn or to examine
    a harmful batch. Default: off."""

    model: Annotated[Size, MODEL] = "gpt2"
    """Size of a model that is built from scratch: one of GPT-2's, or one of llm.c's, named after the number of
    layers."""
    n_layer: Annotated[int | None, MODEL, within(1, 4096)] = None
    """Number of transformer blocks. Default: that of the size."""
    n_head: Annotated[int | None, MODEL, within(1, 10**6)] = None
    """Number of attention heads. Default: that of the size."""
    n_embd: Annotated[int | None, MODEL, within(1, 10**6)] = None
    """Embedding dimension. Default: that of the size."""
    vocab_size: Annotated[int | None, MODEL, within(1, 10**9)] = None
    """Number of token ids. Default: that of the dataset's tokenizer."""
    dropout: Annotated[float, MODEL, FRACTION] = 0.0
    """Dropout probability of embeddings, attention weights and residual branches. 0 disables dropout."""
    bias: Annotated[bool, MODEL] = True
    """Use biases in the Linear and LayerNorm layers."""
    gelu: Annotated[Literal["auto", "tanh", "erf"], MODEL] = "auto"
    """Variant of the GELU activation: `tanh` is GPT-2's approximation, `erf` the exact function, which nanoGPT uses.
    `auto` is the variant of the MODEL in init_from, else tanh."""
    flash: Annotated[bool, MODEL] = True
    """Use fused attention kernels. False computes the attention matrix explicitly."""
    pad_vocab: Annotated[int, MODEL, within(1, 2**16)] = 64
    """Pad the vocabulary dimension of the output layer to a multiple of this number while computing, for speed. The
    padding is neither saved nor sampled."""

    optimizer: Annotated[Literal["adamw", "muon"], OPTIMIZER] = "adamw"
    """`adamw` trains all parameters with AdamW. `muon` trains the matrices of the transformer blocks with Muon, and
    the embeddings, biases and LayerNorms with AdamW."""
    learning_rate: Annotated[float, OPTIMIZER, RATE] = 6e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: Annotated[float, OPTIMIZER, RATE] = 0.02
    """Peak learning rate of Muon. It follows the same schedule as that of AdamW, in proportion."""
    muon_momentum: Annotated[float, OPTIMIZER, FRACTION] = 0.95
    """Momentum of Muon."""
    muon_weight_decay: Annotated[float, OPTIMIZER, RATE] = 0.01
    """Weight decay of Muon."""
    muon_iterations: Annotated[Literal[3, 4, 5], OPTIMIZER] = 5
    """Number of iterations that orthogonalise an update of Muon. Fewer are faster and less exact."""
    lr_schedule: Annotated[Literal["cosine", "linear", "constant", "wsd"], OPTIMIZER] = "cosine"
    """Schedule of the learning rate after the warmup. `wsd` (warmup-stable-decay) keeps it constant and decays it at
    the end."""
    decay_lr: Annotated[bool, OPTIMIZER] = True
    """Use the warmup and the schedule. False keeps the learning rate constant from the first optimizer step, as in
    nanoGPT."""
    warmup_iters: Annotated[int | None, OPTIMIZER, STEPS] = None
    """Number of optimizer steps of linear warmup. Default: a twentieth of lr_decay_iters, at most 2000."""
    lr_decay_iters: Annotated[int | str | None, OPTIMIZER, STEPS] = None
    """Optimizer step at which the decay of the learning rate ends. Default: the end of the run. A resumed run keeps
    its number; `auto` takes the run's new end."""
    min_lr: Annotated[float | None, OPTIMIZER, RATE] = None
    """Learning rate at the end of the schedule. Default: a tenth of learning_rate."""
    wsd_decay_fraction: Annotated[float, OPTIMIZER, Bounds(lambda value: 0 < value <= 1, "lie in (0, 1]")] = 0.2
    """Fraction of lr_decay_iters during which the `wsd` schedule decays the learning rate."""
    weight_decay: Annotated[float, OPTIMIZER, RATE] = 0.1
    """Weight decay of AdamW, applied to matrices and embeddings."""
    beta1: Annotated[float, OPTIMIZER, FRACTION] = 0.9
    """Decay rate of AdamW's moving average of the gradient."""
    beta2: Annotated[float, OPTIMIZER, FRACTION] = 0.95
    """Decay rate of AdamW's moving average of the squared gradient."""
    grad_clip: Annotated[float, OPTIMIZER, within(0, 1e30)] = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it. 0 disables clipping."""
    rollback_on_spike: Annotated[float, OPTIMIZER, within(0, 10**9)] = 0.0
    """Return to the last checkpoint and skip the batches since then when a loss is more than this number of standard
    deviations above the mean of the previous 128 losses. 0 disables this."""

    eval_interval: Annotated[int | None, EVALUATION, STEPS] = None
    """Number of optimizer steps between evaluations of the loss; there are also one at the start and one at the end.
    0 evaluates only at the end. Default: a twentieth of the run, at most 2,000."""
    eval_iters: Annotated[int | None, EVALUATION, STEPS] = None
    """Number of batches in an evaluation of a split, at fixed offsets spread over the split. 0 takes the complete
    split. Default: as many as take a tenth of the time, at most 20 per micro-batch of a step and 200 in all."""
    hellaswag_interval: Annotated[int, EVALUATION, STEPS] = 0
    """Number of optimizer steps between HellaSwag evaluations; there are also one at the start and one at the end. 0
    disables them."""
    hellaswag_limit: Annotated[int, EVALUATION, STEPS] = 0
    """Number of HellaSwag tasks to evaluate, from the first one on. 0 takes all 10,042."""
    hellaswag_data: Annotated[str, EVALUATION, PATH] = ""
    """File of HellaSwag tasks: a .jsonl, or llm.c's hellaswag_val.bin. Default: the validation tasks, downloaded into
    data_dir once."""
    eval_only: Annotated[bool, EVALUATION] = False
    """Evaluate once and stop, without training."""

    log_interval: Annotated[int, RECORDS, within(1, 10**15)] = 1
    """Number of optimizer steps between lines on the console. log.jsonl records every step."""
    always_save_checkpoint: Annotated[bool, RECORDS] = True
    """Save a checkpoint at every evaluation. False saves one only when the validation loss is the lowest so far, and
    at the end."""
    checkpoint_interval: Annotated[int, RECORDS, STEPS] = 0
    """Number of optimizer steps between additional checkpoints. 0 saves no additional ones."""
    async_checkpoint: Annotated[bool, RECORDS] = False
    """Write checkpoints in the background, from a copy in CPU memory that is as large as the model and its optimizer
    state."""
    write_tensors: Annotated[bool, RECORDS] = False
    """Write the model, a debug state and the tokenizer to out_dir/llmc, as llm.c does, before the first optimizer
    step of a new run."""
    keep_checkpoints: Annotated[int, RECORDS, STEPS] = 2
    """Number of newest checkpoints to keep, in addition to the best one. 0 keeps all checkpoints."""
    snapshot_interval: Annotated[int | str, RECORDS, STEPS] = 0
    """Number of optimizer steps between snapshots: the weights alone, in bfloat16, which stay in out_dir/snapshots.
    `geometric` keeps those of steps 0, 1, 2, 4, 8, …; both also keep that of the end. 0 disables them."""
    sample_interval: Annotated[int, RECORDS, STEPS] = 0
    """Number of optimizer steps between samples, which are written to out_dir/samples and shown on the console. 0
    disables them."""
    sample_start: Annotated[str | tuple[str, ...], RECORDS, QUOTED] = "\n"
    """Prompt of the samples, or FILE:path to read the prompt from a file. For several prompts, give a list or repeat
    the flag."""
    num_samples: Annotated[int, RECORDS, SAMPLES] = 1
    """Number of samples for each prompt. The seeds are seed, seed + 1, and so on, and are the same every time."""
    sample_tokens: Annotated[int, RECORDS, CONTEXT] = 200
    """Maximum number of tokens in a sample."""
    sample_temperature: Annotated[float, RECORDS, TEMPERATURE] = 0.8
    """Temperature of the samples: a lower one is more predictable. 0 always takes the most likely token."""
    sample_top_k: Annotated[int, RECORDS, STEPS] = 200
    """Draw each token of a sample from this number of most likely ones. 0 means all."""
    sample_top_p: Annotated[float, RECORDS, PROBABILITY] = 1.0
    """Draw each token of a sample from the most likely ones whose probabilities add up to this number."""
    wandb_log: Annotated[bool, RECORDS] = False
    """Also log to Weights & Biases."""
    trackio_log: Annotated[bool, RECORDS] = False
    """Also log to trackio, on this machine."""
    wandb_project: Annotated[str, RECORDS] = "gpt2"
    """Name of the project in Weights & Biases and trackio."""
    wandb_run_name: Annotated[str, RECORDS] = ""
    """Name of the run in Weights & Biases and trackio. Default: out_dir."""
    tensorboard_log: Annotated[bool, RECORDS] = False
    """Also write event files for TensorBoard to out_dir/tensorboard."""
    llmc_log: Annotated[bool, RECORDS] = False
    """Also write out_dir/llmc/main.log, as llm.c does."""
    build_nanogpt_log: Annotated[bool, RECORDS] = False
    """Also write out_dir/build-nanogpt/log.txt, as build-nanogpt does."""

    device: Annotated[str, MACHINE] = "auto"
    """Device to train on: auto, cpu, cuda, cuda:N or mps. auto takes a GPU if there is one."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], MACHINE] = "auto"
    """Dtype of the matrix products. Weights stay in float32, and float16 uses gradient scaling. `auto` is bfloat16 on
    GPUs that support it and on CPUs with AMX, float16 on older GPUs, and float32 on every other device."""
    compile: Annotated[bool, MACHINE] = True
    """Use torch.compile. Where it does not work, a warning is logged and training runs without it."""
    tf32: Annotated[bool, MACHINE] = True
    """Allow TF32 in the float32 matrix products of training on CUDA. Evaluations always use float32."""
    activation_checkpointing: Annotated[bool, MACHINE] = False
    """Keep only the input of each transformer block for the backward pass and recompute the rest, which saves memory
    and costs time."""

    backend: Annotated[Literal["auto", "nccl", "gloo"], PROCESSES] = "auto"
    """Communication library between processes: nccl for GPUs, gloo for CPUs. auto takes the one for the device."""
    parallel: Annotated[Literal["ddp", "fsdp", "hsdp"], PROCESSES] = "ddp"
    """How the processes hold the model. `ddp` (data parallel) keeps the full model in every process. `fsdp` (fully
    sharded data parallel) shards every parameter, gradient and optimizer state over the processes. `hsdp` (hybrid
    sharded) shards them over the processes of a machine, so that every machine has all of the model."""
    hsdp_shards: Annotated[int | None, PROCESSES, within(2, 10**6)] = None
    """Number of processes over which hsdp shards the model. Default: those of a machine."""
    zero_stage: Annotated[Literal[0, 1], PROCESSES] = 0
    """`1` shards the optimizer state over the processes of ddp (ZeRO stage 1). `0` keeps all of it in every
    process."""
    cpu_offload: Annotated[bool, PROCESSES] = False
    """Keep the shards of fsdp or hsdp in CPU memory while they are not in use."""
    deterministic: Annotated[bool, PROCESSES] = False
    """Sum gradients in an order that does not depend on the number of processes, so that the weights are
    bit-identical with 1, 2, 4, … processes. On a CPU, each process then uses OMP_NUM_THREADS threads, by default
    1."""
    dist_timeout: Annotated[float, PROCESSES, within(1, 10**7)] = 600.0
    """Seconds without progress after which a process reports which process the others wait for, and ends the run."""

    def __post_init__(self) -> None:
        for name in HINTS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        for name, bounds in BOUNDS:
            bounds.check(name, getattr(self, name))
        check_combinations(self)
        check_batch(self)
        check_step(self)
        check_schedule(self)

    @property
    def accumulation(self) -> int:
        """Number of micro-batches in an optimizer step, over all processes."""
        if self.total_batch_size is not None:
            return self.total_batch_size // (self.batch_size * self.block_size)
        return self.gradient_accumulation_steps or 1

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens in an optimizer step, over all processes."""
        return self.accumulation * self.batch_size * self.block_size

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts in sample_start, one or several."""
        return (self.sample_start,) if isinstance(self.sample_start, str) else self.sample_start

    @property
    def decay_end(self) -> int:
        """The optimizer step at which the learning rate reaches min_lr."""
        return self.lr_decay_iters if isinstance(self.lr_decay_iters, int) else self.max_iters

    def resolved(self, last_step: int | None = None) -> Self:
        """Return the same configuration with every default that depends on another setting filled in.

        last_step: the optimizer step at which the run ends, where that is not max_iters.
        """
        from gpt2.model import PRESETS  # imported here so that --help does not wait for PyTorch

        sizes = PRESETS[self.model]
        last = self.max_iters if last_step is None else last_step
        decay_end = self.lr_decay_iters if isinstance(self.lr_decay_iters, int) else last
        interval = max(1, min(2000, last // 20)) if self.eval_interval is None else self.eval_interval
        # An evaluation computes two splits forward; a step computes forward and backward, three times as much.
        iters = max(1, min(20 * self.accumulation, 3 * self.accumulation * interval // 20, 200))
        return replace(
            self,
            eval_interval=interval,
            eval_iters=iters if self.eval_iters is None else self.eval_iters,
            n_layer=self.n_layer or sizes["n_layer"],
            n_head=self.n_head or sizes["n_head"],
            n_embd=self.n_embd or sizes["n_embd"],
            gelu="tanh" if self.gelu == "auto" else self.gelu,
            lr_decay_iters=decay_end,
            warmup_iters=min(2000, decay_end // 20) if self.warmup_iters is None else self.warmup_iters,
            min_lr=self.learning_rate / 10 if self.min_lr is None else self.min_lr,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every setting that has a value, in the order of the fields, as TOML and JSON files hold it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


HINTS = get_type_hints(TrainConfig)
MARKS = [
    (name, mark)
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items()
    for mark in hint.__metadata__
]
BOUNDS = [(name, mark) for name, mark in MARKS if isinstance(mark, Bounds)]
"""The bounds of the settings that are numbers."""
PATHS = {name for name, mark in MARKS if mark == PATH}
"""The settings that can be paths."""
assert get_args(HINTS["lr_schedule"]) == SCHEDULES, "the schedules of optim/schedule.py"


def checked(name: str, value: Any) -> Any:
    """Return `value` as the type of the setting `name`, a path with its home folder. Raises UserError."""
    value = converted(name, value, HINTS[name])
    return expanded(name, value, TrainConfig.__dataclass_fields__[name].default) if name in PATHS else value
