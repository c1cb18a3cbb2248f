"""From a configuration to everything a run needs: device, data, model, optimizer, records; fresh or restored."""

import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2 import checkpoint, device
from gpt2.data.batches import gather
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.data.shards import Tokens
from gpt2.errors import UserError
from gpt2.files import write_text
from gpt2.formats.native import read_description, saved_steps
from gpt2.formats.open import build, open_model
from gpt2.generation.engine import encode_prompt
from gpt2.model import GPT, GPTConfig
from gpt2.optim.adamw import adamw
from gpt2.runlog import trackers
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml

# Settings that a model brings with it when it is not built from scratch.
SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias", "gelu")
RUN_FILES = ("config.toml", "log.jsonl", "checkpoints", "samples", "tensorboard")

Note = Callable[[str], None]


@dataclass
class Run:
    """A run in progress."""

    config: TrainConfig
    """With every default filled in."""
    out_dir: Path
    device: torch.device
    tokenizer: Tokenizer
    train_tokens: Tokens
    val_tokens: Tokens
    model: GPT
    """The plain module: this is what is evaluated, sampled and saved."""
    forward: Callable[..., Any]
    """`model`, compiled where that is asked for and works: this is what is trained."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: checkpoint.TrainState
    peak_flops: float
    trackers: list[trackers.Tracker]
    saved_step: int | None = None
    """Step of the newest checkpoint on disk."""


def set_up(config: TrainConfig, note: Note) -> Run:
    """Build the run; nothing on disk is touched before everything has been found in order.

    `note` receives lines that say what was chosen. Raises UserError.
    """
    out_dir = Path(config.out_dir)
    restored = _checkpoint_to_resume(config, out_dir, note)
    where = device.pick_device(config.device)
    if where.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    chosen: dict[str, Any] = {"device": str(where), "dtype": device.pick_dtype(config.dtype, where)}
    config = replace(config.resolved(), **chosen)

    dataset = open_dataset(config.dataset, config.data_dir, note)
    if config.sample_interval:
        encode_prompt(dataset.tokenizer, config.sample_start)
    model = _make_model(config, dataset, restored).to(where)
    config = replace(config, **{name: getattr(model.config, name) for name in SHAPE})
    train_tokens = dataset.split("train", config.block_size)
    val_tokens = dataset.split("val", config.block_size)

    betas = (config.beta1, config.beta2)
    optimizer = adamw(model, config.learning_rate, betas, config.weight_decay)
    scaler = torch.amp.GradScaler(where.type, enabled=config.dtype == "float16")
    state = checkpoint.TrainState()
    if restored is not None:
        state = checkpoint.restore(restored, model, optimizer)
        scaler.load_state_dict(state.scaler)
        _note_changes(config, out_dir, note)
        note(f"resuming {restored} at step {state.step}")

    peak, source = device.peak_flops(where, config.dtype)
    note(f"device {device.describe(where)} · {config.dtype} · peak {peak / 1e12:.3g} TFLOP/s ({source})")
    note(
        f"tokens per step {config.tokens_per_step:,} = gradient_accumulation_steps {config.accumulation} × "
        f"batch_size {config.batch_size} × block_size {config.block_size}"
    )
    note(f"model {model.num_params():,} parameters · dataset {dataset.path}, {len(train_tokens):,} training tokens")

    forward: Callable[..., Any] = model
    run_trackers: list[trackers.Tracker] = []
    if not config.eval_only:
        batch = gather(train_tokens, [0] * config.batch_size, config.block_size, where)
        if config.compile:
            forward = _compile(model, batch, config, note)
        _prepare_folder(config, out_dir, fresh=restored is None)
        if config.wandb_log:
            name = config.wandb_run_name or str(out_dir)
            run_trackers.append(trackers.WandbTracker(config.wandb_project, name, config.as_dict()))
        if config.tensorboard_log:
            run_trackers.append(trackers.TensorBoardTracker(out_dir / "tensorboard"))
    return Run(
        config=config,
        out_dir=out_dir,
        device=where,
        tokenizer=dataset.tokenizer,
        train_tokens=train_tokens,
        val_tokens=val_tokens,
        model=model,
        forward=forward,
        optimizer=optimizer,
        scaler=scaler,
        state=state,
        peak_flops=peak,
        trackers=run_trackers,
        saved_step=state.step if restored is not None else None,
    )


def _checkpoint_to_resume(config: TrainConfig, out_dir: Path, note: Note) -> Path | None:
    """The checkpoint to go on from; None for a run that starts afresh, whose out_dir must be free."""
    if config.init_from == "resume" or (config.init_from == "auto" and saved_steps(out_dir)):
        return checkpoint.latest(out_dir, note)
    if saved_steps(out_dir) and not config.overwrite and not config.eval_only:
        raise UserError(
            f"{out_dir} already holds a run; continue it with --init_from=resume, choose another --out_dir, or "
            "delete it with --overwrite"
        )
    return None


def _make_model(config: TrainConfig, dataset: Dataset, restored: Path | None) -> GPT:
    """The network on the CPU: initialised from the seed, or with the weights of a model or checkpoint."""
    runtime = {"dropout": config.dropout, "flash": config.flash, "pad_vocab": config.pad_vocab}
    tokenizer = dataset.tokenizer
    if restored is not None:
        description = read_description(restored)
        _refuse_other_tokenizer(description["tokenizer"], tokenizer, f"the run in {config.out_dir}", dataset)
        shape = {name: description["model"][name] for name in SHAPE}
        for name, value in shape.items():
            if (asked := getattr(config, name)) not in (None, value):
                raise UserError(
                    f"the run in {config.out_dir} has {name}={value}, not {asked}; leave --{name} out to resume "
                    f"it, or start a new run from it with --init_from={config.out_dir}"
                )
        return GPT(GPTConfig(**shape, **runtime))
    if config.init_from in ("scratch", "auto"):
        vocab_size = config.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"vocab_size={vocab_size} is too small: {dataset.path} uses {tokenizer.vocab_size} token ids; "
                "leave --vocab_size out"
            )
        assert config.n_layer and config.n_head and config.n_embd, "the configuration is resolved"
        torch.manual_seed(config.seed)
        return GPT(
            GPTConfig(
                block_size=config.block_size,
                vocab_size=vocab_size,
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_embd=config.n_embd,
                bias=config.bias,
                gelu=config.gelu,
                **runtime,
            )
        )
    source = open_model(config.init_from)
    _refuse_other_tokenizer(source.tokenizer.to_json(), tokenizer, source.origin, dataset)
    model = build(source, **runtime)
    if config.block_size != model.config.block_size:
        model.crop_block_size(config.block_size)
    return model


def _refuse_other_tokenizer(theirs: dict[str, Any], ours: Tokenizer, whose: str, dataset: Dataset) -> None:
    if theirs != ours.to_json():
        raise UserError(
            f"{dataset.path} was tokenised with {ours.kind} ({ours.vocab_size} ids), but {whose} uses another "
            f"{theirs['kind']} tokenizer; prepare the text again with that one"
        )


def _note_changes(config: TrainConfig, out_dir: Path, note: Note) -> None:
    """Say which settings differ from those the run had."""
    try:
        before = tomllib.loads((out_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return
    for name, value in config.as_dict().items():
        if name not in ("init_from", "overwrite") and before.get(name, value) != value:
            note(f"changed for this resume: {name}={value} (was {before[name]})")


def _compile(
    model: GPT, batch: tuple[torch.Tensor, torch.Tensor], config: TrainConfig, note: Note
) -> Callable[..., Any]:
    """The compiled model, tried on a batch; the model itself where compiling cannot work here."""
    note("compiling the model; the first time takes a minute")
    forward = torch.compile(model)
    try:
        with device.autocast(batch[0].device, config.dtype):
            _, loss = forward(*batch)
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing compiler, an unsupported GPU: inductor raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        note(f"torch.compile cannot work here ({reason}); training without it")
        torch._dynamo.reset()
        forward = model
    model.zero_grad(set_to_none=True)
    return forward


def _prepare_folder(config: TrainConfig, out_dir: Path, fresh: bool) -> None:
    """Make the run folder and write its configuration; a fresh run first clears what an old one left."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES if fresh else ():
            path = out_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (out_dir / "checkpoints").mkdir(exist_ok=True)
        # As a recipe it must not delete the run it describes.
        settings = {name: value for name, value in config.as_dict().items() if name != "overwrite"}
        write_text(out_dir / "config.toml", dump_toml(settings))
    except OSError as error:
        raise UserError(f"cannot write to out_dir={out_dir} ({error.strerror}); choose another --out_dir") from None
