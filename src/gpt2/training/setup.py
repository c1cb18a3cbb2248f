"""From a configuration to everything a run needs: device, data, model, optimizer, records; fresh or restored."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gpt2 import checkpoint, device, distributed
from gpt2.data.batches import document_numbers, gather
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.data.shards import Tokens
from gpt2.distributed import ALONE, Engine, World
from gpt2.errors import UserError, first_line
from gpt2.files import locked, write_text
from gpt2.formats.layout import read_description, saved_steps
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Source
from gpt2.generation.engine import encode_prompt
from gpt2.model import GPT, GPTConfig
from gpt2.optim.adamw import adamw, load_named_state
from gpt2.runlog.trackers import TensorBoardTracker, Tracker, WandbTracker, require
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml, parse_toml

# Settings that a model brings with it when it is not built from scratch.
SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias", "gelu")
# What a run writes into its folder, and so all that starting anew removes.
RUN_FILES = (
    "config.toml",
    "log.jsonl",
    "checkpoints/*step_*",
    "checkpoints/best.json",
    "llmc/gpt2_*.bin",
    "samples/step_*.txt",
    "tensorboard/events.*",
)

Note = Callable[[str], None]


@dataclass
class Run:
    """A run in progress."""

    config: TrainConfig
    """With every default filled in."""
    out_dir: Path
    device: torch.device
    tokenizer: Tokenizer
    data_fingerprint: dict[str, str]
    train_tokens: Tokens
    val_tokens: Tokens
    boundary: int | None
    """The end-of-text token, over which attention does not look back; None without document_mask."""
    model: GPT
    """The plain module: this is what is evaluated, sampled and saved."""
    world: World
    scaler: torch.amp.GradScaler
    state: checkpoint.TrainState
    peak_flops: float
    saved_step: int | None = None
    """Step of the newest checkpoint on disk; None for a run that has none yet."""
    engine: Engine = field(init=False)
    """What is trained, `model` compiled where that is asked for and works, and how its gradients are added up."""
    optimizer: torch.optim.Optimizer = field(init=False)
    trackers: list[Tracker] = field(default_factory=list)
    """Filled while the run has its folder."""


def set_up(config: TrainConfig, note: Note, world: World = ALONE) -> Run:
    """Build the run and find out whether it can work; the folder it writes to is not touched yet.

    `note` receives lines that say what was chosen. Raises UserError, in all processes of the `world` or in none.
    """
    note = note if world.is_main else lambda line: None
    restored, dataset = world.main_first(lambda: _find(config, note))
    run, forward, moments = world.agreed(lambda: _build(config, restored, dataset, world, note))
    run.engine = distributed.wrapped(
        run.model,
        run.model.transformer.h,
        forward,
        world,
        run.device,
        micro_batches=config.accumulation,
        deterministic=config.deterministic,
        parallel=config.parallel,
        compile_blocks=config.compile,
        cpu_offload=config.cpu_offload,
    )
    betas, shared = (config.beta1, config.beta2), config.zero_stage > 0 and world.size > 1
    run.optimizer = adamw(run.model, config.learning_rate, betas, config.weight_decay, shared)
    if restored is not None:
        checkpoint.restore_optimizer(restored, run.optimizer)
    elif moments is not None:
        load_named_state(run.optimizer, moments)
    return run


def _find(config: TrainConfig, note: Note) -> tuple[Path | None, Dataset]:
    """The checkpoint to resume, if one is, and the data."""
    return (
        _checkpoint_to_resume(config, Path(config.out_dir), note),
        open_dataset(config.dataset, config.data_dir, note),
    )


def _build(
    config: TrainConfig, restored: Path | None, dataset: Dataset, world: World, note: Note
) -> tuple[Run, nn.Module, dict[str, torch.Tensor] | None]:
    """The run but for its engine and optimizer, what the engine is to train, and the state of an imported optimizer.

    The processes do not talk here.
    """
    asked = {name: value if (value := getattr(config, name)) != "auto" else None for name in SHAPE}
    where = device.pick_device(config.device, world.local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.deterministic:
        device.make_deterministic()
    chosen: dict[str, Any] = {
        "device": config.device if world.size > 1 else str(where),
        "dtype": device.pick_dtype(config.dtype, where),
    }
    config = replace(config.resolved(), **chosen)

    distributed.check(
        world,
        micro_batches=config.accumulation,
        deterministic=config.deterministic,
        parallel=config.parallel,
        zero_stage=config.zero_stage,
        dtype=config.dtype,
    )
    _require_end_of_text(config, dataset)
    boundary = dataset.tokenizer.eot if config.document_mask else None
    if config.sample_interval:
        encode_prompt(dataset.tokenizer, config.sample_start)
    model, source = _make_model(config, dataset, restored, asked, note)
    model.to(where)
    config = replace(config, **{name: getattr(model.config, name) for name in SHAPE})
    train_tokens = dataset.split("train", config.block_size)
    val_tokens = dataset.split("val", config.block_size)

    moments = _moments(source, config) if config.resume_optimizer and restored is None else None
    scaler = torch.amp.GradScaler(where.type, enabled=config.dtype == "float16")
    state = checkpoint.TrainState()
    if restored is not None:
        state = checkpoint.restore(restored, model)
        if state.scaler:
            scaler.load_state_dict(state.scaler)
        config = _note_changes(config, dataset, read_description(restored), note)
        note(f"resuming {restored} at step {state.step}")
        if 0 < config.max_minutes * 60 <= state.seconds:
            note(f"max_minutes={config.max_minutes:g} is used up; raise it, or give 0 for no limit")

    peak, how = device.peak_flops(where, config.dtype)
    note(f"device {device.describe(where)} · {config.dtype} · peak {peak / 1e12:.3g} TFLOP/s ({how})")
    note(
        f"tokens per step {config.tokens_per_step:,} = gradient_accumulation_steps {config.accumulation} × "
        f"batch_size {config.batch_size} × block_size {config.block_size}"
        + (f", shared by {world.size} processes" if world.size > 1 else "")
    )
    note(f"model {model.num_params():,} parameters · dataset {dataset.path}, {len(train_tokens):,} training tokens")

    if config.activation_checkpointing:
        distributed.recompute(model.transformer.h)
    forward: nn.Module = model
    if not config.eval_only:
        _require_trackers(config)
    if not config.eval_only and (config.parallel == "ddp" or world.size == 1):  # else nobody has all of the model
        forward = _try_out(model, train_tokens, boundary, config, note)
    run = Run(
        config=config,
        out_dir=Path(config.out_dir),
        device=where,
        tokenizer=dataset.tokenizer,
        data_fingerprint=dataset.fingerprint,
        train_tokens=train_tokens,
        val_tokens=val_tokens,
        boundary=boundary,
        model=model,
        world=world,
        scaler=scaler,
        state=state,
        peak_flops=peak,
        saved_step=state.step if restored is not None else None,
    )
    return run, forward, moments


def _checkpoint_to_resume(config: TrainConfig, out_dir: Path, note: Note) -> Path | None:
    """The checkpoint to go on from; None for a run that starts afresh, whose out_dir must be free."""
    if config.init_from == "resume" or (config.init_from == "auto" and saved_steps(out_dir)):
        return checkpoint.latest(out_dir, note)
    if config.overwrite or config.eval_only:
        return None
    if saved_steps(out_dir):
        raise UserError(
            f"{out_dir} already holds a run; continue it with --init_from=resume, choose another --out_dir, or "
            "delete it with --overwrite"
        )
    if (out_dir / "config.toml").exists() and not _is_a_runs(out_dir / "config.toml"):
        raise UserError(
            f"{out_dir / 'config.toml'} is no run's; choose another --out_dir, or delete it with --overwrite"
        )
    return None


def _is_a_runs(config_file: Path) -> bool:
    """Whether a run wrote this configuration, which has every setting: one that came to no checkpoint is replaced."""
    try:
        found = parse_toml(config_file.read_text(encoding="utf-8"), str(config_file))
    except (OSError, UnicodeDecodeError, UserError):
        return False
    return found.keys() >= {"out_dir", "init_from", "max_iters", "dataset", "learning_rate", "eval_interval"}


def _require_end_of_text(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UserError where a setting heeds documents and the dataset's tokenizer puts nothing between them."""
    heed = [name for name in ("document_mask", "align_documents") if getattr(config, name)]
    if heed and dataset.tokenizer.eot is None:
        raise UserError(
            f"{' and '.join(heed)}: the {dataset.tokenizer.kind} tokenizer of {dataset.path} has no end-of-text to "
            "tell documents by; prepare the text with --tokenizer=byte, bpe or gpt2, or give "
            f"{' '.join(f'--{name}=False' for name in heed)}"
        )


def _make_model(
    config: TrainConfig, dataset: Dataset, restored: Path | None, asked: dict[str, Any], note: Note
) -> tuple[GPT, Source | None]:
    """The network on the CPU: initialised from the seed, or with the weights of a model or checkpoint.

    `asked` is the shape as the user gave it, before defaults were filled in. The model's source comes with it
    where there is one.
    """
    runtime: dict[str, Any] = {"dropout": config.dropout, "flash": config.flash, "pad_vocab": config.pad_vocab}
    tokenizer = dataset.tokenizer
    if restored is not None:
        description = read_description(restored)
        dataset.require_tokenizer(description["tokenizer"], f"the run in {config.out_dir}")
        shape = {name: description["model"][name] for name in SHAPE}
        _refuse_other_shape(asked, shape, f"the run in {config.out_dir}")
        return GPT(GPTConfig(**shape, **runtime)), None
    if config.init_from in ("scratch", "auto"):
        vocab_size = config.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"vocab_size={vocab_size} is too small: {dataset.path} uses {tokenizer.vocab_size} token ids; "
                "leave --vocab_size out"
            )
        assert config.n_layer and config.n_head and config.n_embd, "the configuration is resolved"
        torch.manual_seed(config.seed)
        shape = GPTConfig(
            block_size=config.block_size,
            vocab_size=vocab_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            bias=config.bias,
            gelu=config.gelu,
            **runtime,
        )
        return GPT(shape), None
    source = open_model(config.init_from)
    if source.known_tokenizer:
        dataset.require_tokenizer(source.known_tokenizer.to_json(), source.origin)
    dataset.require_vocabulary(source.config.vocab_size, source.origin)
    fixed = ("vocab_size", "n_layer", "n_head", "n_embd")
    _refuse_other_shape(asked, {name: getattr(source.config, name) for name in fixed}, source.origin)
    for line in source.notes:
        note(line)
    if asked["gelu"] not in (None, source.config.gelu):
        note(f"computing the {asked['gelu']} GELU, where {source.origin} has the {source.config.gelu} one")
        runtime["gelu"] = asked["gelu"]
    model = build(source, **runtime)
    if config.block_size != model.config.block_size:
        model.crop_block_size(config.block_size)
    return model, source


def _moments(source: Source | None, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The optimizer's state that came with the model. Raises UserError where there is none."""
    if source is None or source.progress.optimizer is None:
        raise UserError(f"init_from={config.init_from} has no optimizer state; leave --resume_optimizer out")
    tensors = source.progress.optimizer()
    for key in ("exp_avg", "exp_avg_sq"):
        positions = f"transformer.wpe.weight/{key}"
        tensors[positions] = tensors[positions][: config.block_size].clone()  # as many as the model has kept
    return tensors


def _refuse_other_shape(asked: dict[str, Any], shape: dict[str, Any], whose: str) -> None:
    """Raise UserError where a shape was asked for that the weights do not have."""
    for name, value in shape.items():
        if asked[name] not in (None, value):
            raise UserError(f"{whose} has {name}={value}, not {asked[name]}; leave --{name} out")


def _note_changes(config: TrainConfig, dataset: Dataset, before: dict[str, Any], note: Note) -> TrainConfig:
    """Say what differs from the run that `before` describes; returns the settings with that run's origin."""
    settings, defaults = before["train"], TrainConfig().as_dict()
    for name, value in config.as_dict().items():
        earlier = settings.get(name, defaults.get(name, "not set"))
        if name not in ("init_from", "overwrite", "out_dir") and earlier not in (value, "auto"):
            note(f"changed for this resume: {name}={value} (was {earlier})")
    if config.max_iters > config.decay_end:
        note(f"the learning rate has its end at lr_decay_iters={config.decay_end}; raise it with max_iters")
    if before["dataset"] and before["dataset"] != dataset.fingerprint:  # an imported run knows none
        note(f"changed for this resume: the tokens in {dataset.path} are not those the run began with")
    return replace(config, init_from=settings["init_from"])


def _try_out(model: GPT, tokens: Tokens, boundary: int | None, config: TrainConfig, note: Note) -> nn.Module:
    """What to train: the model, compiled where that is asked for and works.

    A batch is tried before the run begins. Raises UserError where it does not fit the device's memory.
    """
    where = next(model.parameters()).device
    x, y = gather(tokens, [0] * config.batch_size, config.block_size, where)

    def attempt(forward: Callable[..., Any]) -> None:
        with device.autocast(where, config.dtype):
            _, loss = forward(x, y, documents=document_numbers(x, boundary))
        loss.backward()
        model.zero_grad(set_to_none=True)

    try:
        if config.compile:
            note("compiling the model; the first time takes a minute")
            try:
                compiled = cast(nn.Module, torch.compile(model))
                attempt(compiled)
                return compiled
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing compiler, an unsupported GPU: inductor raises many kinds
                note(f"torch.compile cannot work here ({first_line(error)}); training without it")
                torch._dynamo.reset()
                model.zero_grad(set_to_none=True)
        if where.type == "cuda":
            attempt(model)
        return model
    except torch.OutOfMemoryError:
        raise UserError(
            f"batch_size={config.batch_size} of block_size={config.block_size} does not fit the memory of {where}; "
            "lower --batch_size, and raise --gradient_accumulation_steps to keep the tokens per step"
        ) from None


def _require_trackers(config: TrainConfig) -> None:
    """Raise UserError where a tracker's package is missing."""
    if config.wandb_log:
        require("wandb", "wandb_log")
    if config.tensorboard_log:
        require("torch.utils.tensorboard", "tensorboard_log")


def _open_trackers(config: TrainConfig, out_dir: Path) -> list[Tracker]:
    """The trackers that are switched on."""
    opened: list[Tracker] = []
    if config.wandb_log:
        name = config.wandb_run_name or str(out_dir)
        opened.append(WandbTracker(config.wandb_project, name, config.as_dict()))
    if config.tensorboard_log:
        opened.append(TensorBoardTracker(out_dir / "tensorboard"))
    return opened


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """The run folder made ready, and this run's alone, with the trackers open.

    A fresh run first removes what an old one left. Raises UserError where the folder cannot be written or
    another process trains in it.
    """
    with ExitStack() as stack:
        run.world.main_only(lambda: _claim(run, stack))
        yield


def _claim(run: Run, stack: ExitStack) -> None:
    config, out_dir = run.config, run.out_dir
    try:
        (out_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to out_dir={out_dir} ({error.strerror}); choose another --out_dir") from None
    if not stack.enter_context(locked(out_dir / ".lock")):
        raise UserError(f"another process is training in {out_dir}; choose another --out_dir, or stop that one")
    old = [p for name in RUN_FILES for p in out_dir.glob(name)] if run.saved_step is None else []
    for path in {*old, *(out_dir / "checkpoints").glob(".*.tmp")}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    # As a recipe it must not delete the run it describes.
    settings = {name: value for name, value in config.as_dict().items() if name != "overwrite"}
    write_text(out_dir / "config.toml", dump_toml(settings))
    run.trackers = _open_trackers(config, out_dir)
    for tracker in run.trackers:
        stack.callback(tracker.close)
