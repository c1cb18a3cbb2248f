"""From a configuration to everything a run needs: device, data, model, optimizer, records; fresh or restored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gpt2 import checkpoint, device
from gpt2.data.batches import document_numbers, gather
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.data.shards import Tokens
from gpt2.distributed import engines
from gpt2.distributed.engines import Engine
from gpt2.distributed.world import ALONE, World
from gpt2.errors import UserError, first_line
from gpt2.evaluate.choices import Task
from gpt2.formats.run_folder import read_description, saved_steps
from gpt2.generation.engine import encode_prompt, read_prompt
from gpt2.model import GPT, Objective
from gpt2.optim.optimizers import load_named_state, make_optimizers
from gpt2.runlog.trackers import require
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.ending import last_step
from gpt2.training.hellaswag import hellaswag_tasks
from gpt2.training.ledger import Ledger
from gpt2.training.ownership import require_room
from gpt2.training.weights import SHAPE, make_model, moments

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
    last_step: int
    """Updates after which it ends: max_iters, or what the other budgets allow."""
    ledger: Ledger
    """What the time of this process went into."""
    prompts: tuple[str, ...]
    """What is sampled from, where that is asked for."""
    peak_flops: float
    saved_step: int | None = None
    """Step of the newest checkpoint on disk; None for a run that has none yet."""
    engine: Engine = field(init=False)
    """What is trained, `model` compiled where that is asked for and works, and how its gradients are added up."""
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    hellaswag: list[Task] = field(default_factory=list)
    """The tasks to measure with while training; none where that is off."""
    is_whole: bool = True
    """Whether weights, optimizer state and step count belong together, so that they can be saved."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Context in which weights and optimizer state change; an exception in it leaves them unfit to be saved."""
        self.is_whole = False
        yield
        self.is_whole = True

    @property
    def machine(self) -> dict[str, str | int]:
        """What the last bits of a result depend on besides the settings and the data."""
        is_cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if is_cuda else self.device.type,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "processes": 1 if self.config.deterministic else self.world.size,
            "torch": torch.__version__,
        }


def set_up(config: TrainConfig, note: Note, world: World = ALONE, ledger: Ledger | None = None) -> Run:
    """Build the run and find out whether it can work; the folder it writes to is not touched yet.

    `note` receives lines that say what was chosen. The time it takes is booked in the `ledger`, which becomes the
    run's. Raises UserError, in all processes of the `world` or in none.
    """
    ledger = ledger or Ledger()
    note = note if world.is_main else lambda line: None
    restored, dataset = world.main_first(lambda: _find(config, note))
    ledger.mark("data")
    if config.compile:
        engines.compile_sparingly()
    run, forward, imported = world.agreed(lambda: _build(config, restored, dataset, world, note, ledger))
    run.hellaswag = world.main_first(lambda: hellaswag_tasks(run.config, run.tokenizer, run.model.config, note))
    run.engine = engines.wrapped(
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
    run.optimizers = make_optimizers(
        run.model,
        config.learning_rate,
        (config.beta1, config.beta2),
        config.weight_decay,
        muon=muon_settings(config) if config.optimizer == "muon" else None,
        shared=config.zero_stage > 0 and world.size > 1,
    )
    if restored is not None:
        _note_other_machine(run, read_description(restored), note)
        checkpoint.restore_optimizers(restored, run.optimizers)
    elif imported is not None:
        load_named_state(run.optimizers, imported)
    ledger.mark("optimizer")
    return run


def muon_settings(config: TrainConfig) -> dict[str, Any]:
    """What `Muon` takes, but for the parameters."""
    return {
        "lr": config.muon_learning_rate,
        "momentum": config.muon_momentum,
        "weight_decay": config.muon_weight_decay,
        "iterations": config.muon_iterations,
        "dtype": torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
    }


def _find(config: TrainConfig, note: Note) -> tuple[Path | None, Dataset]:
    """The checkpoint to resume, if one is, and the data."""
    return (
        _checkpoint_to_resume(config, Path(config.out_dir), note),
        open_dataset(config.dataset, config.data_dir, note),
    )


def _build(
    config: TrainConfig, restored: Path | None, dataset: Dataset, world: World, note: Note, ledger: Ledger
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
    train_tokens = dataset.split("train", config.block_size)
    val_tokens = dataset.split("val", config.block_size)
    told = note if restored is None else lambda line: None  # a resumed run tells what is left of its budgets
    last = last_step(config, len(train_tokens), checkpoint.TrainState(), told)
    resolved = replace(config, max_iters=last).resolved()  # the learning rate falls until then
    config = replace(resolved, max_iters=config.max_iters, **chosen)

    engines.check(
        world,
        micro_batches=config.accumulation,
        deterministic=config.deterministic,
        parallel=config.parallel,
        zero_stage=config.zero_stage,
        dtype=config.dtype,
    )
    _require_end_of_text(config, dataset)
    boundary = dataset.tokenizer.eot if config.document_mask else None
    prompts = tuple(map(read_prompt, config.prompts)) if config.sample_interval else ()
    for prompt in prompts:
        encode_prompt(dataset.tokenizer, prompt)
    model, source = make_model(config, dataset, restored, asked, note)
    model.to(where)
    config = replace(config, **{name: getattr(model.config, name) for name in SHAPE})

    found = moments(source, config) if config.resume_optimizer and restored is None else None
    scaler = torch.amp.GradScaler(where.type, enabled=config.dtype == "float16")
    state = checkpoint.TrainState()
    if restored is not None:
        state = checkpoint.restore(restored, model)
        if state.scaler:
            scaler.load_state_dict(state.scaler)
        last = last_step(config, len(train_tokens), state, note)
        config = _note_changes(config, last, dataset, read_description(restored), note)
        note(f"resuming {restored} at step {state.step}")
        if 0 < config.max_minutes * 60 <= state.seconds:
            note(f"max_minutes={config.max_minutes:g} is used up; raise it, or give 0 for no limit")

    ledger.mark("model")
    peak, how = device.peak_flops(where, config.dtype)
    ledger.mark("peak")
    note(f"device {device.describe(where)} · {config.dtype} · peak {peak / 1e12:.3g} TFLOP/s ({how})")
    note(
        f"tokens per step {config.tokens_per_step:,} = gradient_accumulation_steps {config.accumulation} × "
        f"batch_size {config.batch_size} × block_size {config.block_size}"
        + (f", shared by {world.size} processes" if world.size > 1 else "")
    )
    note(f"model {model.num_params():,} parameters · dataset {dataset.path}, {len(train_tokens):,} training tokens")

    if config.activation_checkpointing:
        engines.recompute(model.transformer.h)
    forward: nn.Module = Objective(model)
    if not config.eval_only:
        _require_trackers(config)
    if not config.eval_only and (config.parallel == "ddp" or world.size == 1):  # else nobody has all of the model
        forward = _try_out(model, train_tokens, boundary, config, note)
    ledger.mark("compile")
    run = Run(
        config=config,
        ledger=ledger,
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
        last_step=last,
        prompts=prompts,
        peak_flops=peak,
        saved_step=state.step if restored is not None else None,
    )
    return run, forward, found


def _checkpoint_to_resume(config: TrainConfig, out_dir: Path, note: Note) -> Path | None:
    """The checkpoint to go on from; None for a run that begins anew, for which out_dir must have room."""
    has_checkpoints = bool(saved_steps(out_dir))
    if config.init_from == "resume" or (config.init_from == "auto" and has_checkpoints):
        return checkpoint.latest(out_dir, note)
    if config.eval_only:
        return None
    if has_checkpoints and not config.overwrite:
        raise UserError(
            f"{out_dir} already holds a run; continue it with --init_from=resume, choose another --out_dir, or "
            "delete it with --overwrite"
        )
    require_room(out_dir, config, keep_history=not config.overwrite and config.init_from != "auto")
    return None


def _require_end_of_text(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UserError where a setting heeds documents and the dataset's tokenizer puts nothing between them."""
    heed = [name for name in ("document_mask", "align_documents") if getattr(config, name)]
    if heed and dataset.tokenizer.eot is None:
        raise UserError(
            f"{' and '.join(heed)}: the {dataset.tokenizer.kind} tokenizer of {dataset.path} has no end-of-text to "
            "tell documents by; prepare the text with --tokenizer=byte, bpe or gpt2, or give "
            f"{' '.join(f'--{name}=False' for name in heed)}"
        )


def _note_changes(
    config: TrainConfig, last: int, dataset: Dataset, before: dict[str, Any], note: Note
) -> TrainConfig:
    """Say what differs from the run that `before` describes; returns the settings with that run's origin."""
    settings, defaults = before["train"], TrainConfig().as_dict()
    for name, value in config.as_dict().items():
        earlier = settings.get(name, defaults.get(name, "not set"))
        if name not in ("init_from", "overwrite", "out_dir") and earlier not in (value, "auto"):
            note(f"changed for this resume: {name}={value} (was {earlier})")
    if last > config.decay_end:
        note(f"the learning rate has its end at lr_decay_iters={config.decay_end}; raise it with max_iters")
    earlier = before["dataset"]  # empty for an imported run, without the hashes of contents for an older one
    if any(earlier[key] != value for key, value in dataset.fingerprint.items() if key in earlier):
        note(f"changed for this resume: the tokens in {dataset.path} are not those the run began with")
    return replace(config, init_from=settings["init_from"])


def _note_other_machine(run: Run, before: dict[str, Any], note: Note) -> None:
    """Say what differs from the machine of the run that `before` describes, where that changes results."""
    earlier = before.get("machine", {})
    changed = [
        f"{name}={value} (was {earlier[name]})"
        for name, value in run.machine.items()
        if name in earlier and earlier[name] != value
    ]
    if changed:
        note(
            f"changed for this resume: {', '.join(changed)}; from here on results differ in their last bits from "
            "those of a run that was never stopped"
        )


def _try_out(model: GPT, tokens: Tokens, boundary: int | None, config: TrainConfig, note: Note) -> nn.Module:
    """What to train: the model, compiled where that is asked for and works.

    A batch is tried before the run begins. Raises UserError where it does not fit the device's memory.
    """
    where = next(model.parameters()).device
    objective = Objective(model)
    x, y = gather(tokens, [0] * config.batch_size, config.block_size, where)

    def attempt(forward: Callable[..., Any]) -> None:
        with device.autocast(where, config.dtype):
            loss = forward(x, y, document_numbers(x, boundary))
        loss.backward()
        model.zero_grad(set_to_none=True)

    try:
        if config.compile:
            note("compiling the model; the first time takes a minute")
            try:
                compiled = cast(nn.Module, torch.compile(objective, fullgraph=True))
                attempt(compiled)
                return compiled
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing compiler, an unsupported GPU: inductor raises many kinds
                note(f"torch.compile cannot work here ({first_line(error)}); training without it")
                torch._dynamo.reset()
                model.zero_grad(set_to_none=True)
        if where.type == "cuda":
            attempt(objective)
        return objective
    except torch.OutOfMemoryError:
        raise UserError(
            f"batch_size={config.batch_size} of block_size={config.block_size} does not fit the memory of {where}; "
            "lower --batch_size, and raise --gradient_accumulation_steps to keep the tokens per step"
        ) from None


def _require_trackers(config: TrainConfig) -> None:
    """Raise UserError where a tracker's package is missing."""
    if config.wandb_log:
        require("wandb", "wandb_log")
    if config.trackio_log:
        require("trackio", "trackio_log")
    if config.tensorboard_log:
        require("torch.utils.tensorboard", "tensorboard_log")
