"""From a configuration to a run, in six steps: machine, data, model, state, compile, run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt2 import accounting, checkpoint, device
from gpt2.answers import Answers
from gpt2.checkpoint import TrainState
from gpt2.chunked_loss import TrainingLoss
from gpt2.data.batches import Batches
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.data.shards import Tokens
from gpt2.distributed.gradients import GradientSync, synchronize_gradients
from gpt2.distributed.world import ALONE, World
from gpt2.errors import Log, UserError
from gpt2.evaluation.choices import Task, check_fits
from gpt2.evaluation.hellaswag import read_tasks, validation_file
from gpt2.formats.run_folder import read_description
from gpt2.formats.source import is_plain
from gpt2.model import GPT
from gpt2.optim.optimizers import load_named_state, make_optimizers
from gpt2.tokenizers import Tokenizer
from gpt2.training.budget import fit_to_processes, last_step, log_late_decay, log_rising_rate
from gpt2.training.compile import checkpoint_activations, choose_kernels, compile_pieces, compiled_loss
from gpt2.training.config import TrainConfig
from gpt2.training.periodic import sample_prompts
from gpt2.training.resume import checkpoint_to_resume, log_changed_machine, log_changed_settings
from gpt2.training.run import Run
from gpt2.training.session import require_trackers
from gpt2.training.timing import Ledger, device_clock
from gpt2.training.weights import MODEL_SETTINGS, make_model, optimizer_state, run_tokenizer


@dataclass(frozen=True)
class Machine:
    """A machine is what this process computes on."""

    device: torch.device
    dtype: str
    peak_flops: float
    peak_origin: str
    """Whether the peak rate is from a data sheet or measured."""
    facts: dict[str, str | int]
    """See `Run.machine`."""


@dataclass(frozen=True)
class Data:
    """Holds what a run trains on, and the checkpoint that it resumes."""

    dataset: Dataset
    train_tokens: Tokens
    val_tokens: Tokens
    restored: Path | None
    """Folder of the checkpoint; None for a run that begins."""


@dataclass(frozen=True)
class Prepared:
    """Holds a model on its device, and the settings with which it trains."""

    model: GPT
    config: TrainConfig
    """The settings with every default filled in, and with the shape of the model."""
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    """See `Run.prompts`."""
    own_layers: bool
    """See `Run.own_layers`."""
    optimizer_state: dict[str, torch.Tensor] | None
    """The state that came with an imported model, where resume_optimizer asks for it."""


def set_up(
    given: TrainConfig, log: Log, world: World = ALONE, ledger: Ledger | None = None, model: GPT | None = None
) -> Run:
    """Build a run and find out whether it can work; its folder is not touched yet.

    All processes take each step together: `agreed` raises an error of one process in all of them, and `main_first`
    lets the main process download and prepare before the others. log: receives lines that say what was chosen.
    ledger: receives the time of each phase and becomes the run's. model: trained in place of the one that the
    settings describe. Raises UserError, in all processes or in none.
    """
    ledger = ledger or Ledger()
    log = log if world.is_main else _silent
    machine = world.agreed(lambda: set_up_machine(given, world))
    ledger.mark("peak")
    data = world.main_first(lambda: set_up_data(given, log))
    ledger.mark("data")
    prepared = world.agreed(lambda: set_up_model(given, machine, data, world, log, model))
    state = world.agreed(lambda: set_up_state(prepared, data, machine, log))
    ledger.mark("model")
    loss_of = world.agreed(lambda: set_up_loss(machine, prepared, data, world, log))
    ledger.mark("compile")
    run = make_run(machine, data, prepared, state, loss_of, world, ledger, log)
    ledger.mark("optimizer")
    return run


def set_up_machine(given: TrainConfig, world: World) -> Machine:
    """Step 1: choose device and dtype, and find the device's peak rate."""
    where = device.pick_device(given.device, world.local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.set_float32_matmul_precision("high" if given.tf32 else "highest")
    if given.deterministic:
        device.make_deterministic()
    dtype = device.pick_dtype(given.dtype, where)
    peak, origin = device.peak_flops(where, dtype)
    facts = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": 1 if given.deterministic else world.size,  # deterministic sums do not depend on their number
        "torch": torch.__version__,
    }
    return Machine(where, dtype, peak, origin, facts)


def set_up_data(given: TrainConfig, log: Log) -> Data:
    """Step 2: find the checkpoint to resume, and open the dataset, which is prepared if it must be."""
    restored = checkpoint_to_resume(given, Path(given.out_dir), log)
    dataset = open_dataset(given.dataset, given.data_dir, log)
    if restored is None and not given.eval_only:
        dataset.require_elsewhere(Path(given.out_dir))
    splits = dataset.split("train", given.block_size), dataset.split("val", given.block_size)
    return Data(dataset, *splits, restored)


def set_up_model(
    given: TrainConfig, machine: Machine, data: Data, world: World, log: Log, own: GPT | None = None
) -> Prepared:
    """Step 3: fill in the settings' defaults, check that they fit each other and the data, and make the model."""
    resolved = fit_to_processes(_resolved(given, machine, data, world, log), world, log)
    _require_end_of_text(resolved, data.dataset)
    prompts = sample_prompts(resolved, data.dataset.tokenizer)
    if not resolved.eval_only:
        require_trackers(resolved)
    model, source = make_model(given, resolved, data.dataset, data.restored, log, own)
    model.to(machine.device).train()
    shape = {name: getattr(model.config, name) for name in (*MODEL_SETTINGS, "dropout")}
    before = {} if data.restored is None else read_description(data.restored)["train"]
    config = replace(resolved, **shape, init_from=before.get("init_from") or resolved.init_from)
    imported = optimizer_state(source, config) if config.resume_optimizer and data.restored is None else None
    peak = f"peak {machine.peak_flops / 1e12:.3g} TFLOP/s ({machine.peak_origin})"
    log(f"device {device.describe(machine.device)} · {machine.dtype} · {peak}")
    log(
        f"tokens per step {config.tokens_per_step:,} = gradient_accumulation_steps {config.accumulation} × "
        f"batch_size {config.batch_size} × block_size {config.block_size}"
        + (f", shared by {world.size} processes" if world.size > 1 else "")
    )
    size, tokens = accounting.num_params(model.config), len(data.train_tokens)
    log(f"model {size:,} parameters · dataset {data.dataset.path}, {tokens:,} training tokens")
    tokenizer, own_layers = run_tokenizer(data.dataset, data.restored, source), own is not None and not is_plain(own)
    return Prepared(model, config, tokenizer, prompts, own_layers, imported)


def set_up_state(prepared: Prepared, data: Data, machine: Machine, log: Log) -> TrainState:
    """Step 4: begin at step 0, or load the weights of the checkpoint and continue where it was saved."""
    if data.restored is None:
        return TrainState()
    state = checkpoint.restore(data.restored, prepared.model)
    config, before = prepared.config, read_description(data.restored)
    log_changed_settings(config, last_step(config, len(data.train_tokens), state, log), data.dataset, before, log)
    log_changed_machine(machine.facts, before, log)
    log(f"resuming {data.restored} at step {state.step}")
    if 0 < config.max_minutes * 60 <= state.seconds:
        log(f"max_minutes={config.max_minutes:g} is used up; raise it, or give 0 for no limit")
    return state


def set_up_loss(machine: Machine, prepared: Prepared, data: Data, world: World, log: Log) -> nn.Module:
    """Step 5: make the module that computes the training loss; compile it, and try it where it could fail."""
    config = prepared.config
    loss_of = TrainingLoss(prepared.model, data.dataset.tokenizer.eot if config.document_mask else None)
    if config.activation_checkpointing:
        checkpoint_activations(prepared.model.transformer.h)
    if config.compile:
        choose_kernels(loss_of, config, world, machine.device)
    if config.parallel != "ddp" and world.size > 1:  # the model may not fit into one process, so nothing is tried
        if config.compile:
            compile_pieces(loss_of)
        return loss_of
    if config.eval_only or (not config.compile and machine.device.type == "cpu"):
        return loss_of
    sums_during_backward = world.size > 1 and not config.deterministic
    return compiled_loss(loss_of, data.train_tokens, config, log, in_pieces=sums_during_backward)


def make_run(
    machine: Machine,
    data: Data,
    prepared: Prepared,
    state: TrainState,
    loss_of: nn.Module,
    world: World,
    ledger: Ledger,
    log: Log,
) -> Run:
    """Step 6: synchronize gradients between processes, shard where that is asked for, and make the optimizers."""
    config, model, tokenizer = prepared.config, prepared.model, prepared.tokenizer
    hellaswag = world.main_first(lambda: _hellaswag_tasks(config, tokenizer, model, log))
    return Run(
        config=config,
        out_dir=Path(config.out_dir),
        world=world,
        device=machine.device,
        machine=machine.facts,
        peak_flops=machine.peak_flops,
        tokenizer=tokenizer,
        data_fingerprint=data.dataset.fingerprint,
        batches=_batches(config, data),
        val_tokens=data.val_tokens,
        prompts=prepared.prompts,
        hellaswag=hellaswag,
        own_layers=prepared.own_layers,
        model=model,
        gradients=_gradient_sync(config, machine.device, loss_of, world),
        optimizers=_optimizers(prepared, data.restored, world),
        scaler=_scaler(config, machine.device, state),
        last_step=last_step(config, len(data.train_tokens), state, _silent),
        ledger=ledger,
        clock=device_clock(machine.device),
        state=state,
        saved_step=None if data.restored is None else state.step,
    )


def _resolved(given: TrainConfig, machine: Machine, data: Data, world: World, log: Log) -> TrainConfig:
    """Return the settings with defaults, device and dtype filled in.

    The defaults follow from the step at which the run ends, so that the learning rate decays until then.
    """
    log_if_new = log if data.restored is None else _silent  # a resumed run logs what is left of its budgets later
    last = last_step(given, len(data.train_tokens), TrainState(), log_if_new)
    chosen: dict[str, Any] = {
        "device": given.device if world.size > 1 else str(machine.device),
        "dtype": machine.dtype,
    }
    resolved = replace(given.resolved(last), **chosen)
    log_late_decay(resolved, last, log_if_new)
    log_rising_rate(resolved, log)
    return resolved


def _gradient_sync(config: TrainConfig, where: torch.device, loss_of: nn.Module, world: World) -> GradientSync:
    return synchronize_gradients(
        loss_of,
        world,
        where,
        micro_batches=config.accumulation,
        deterministic=config.deterministic,
        parallel=config.parallel,
        hsdp_shards=config.hsdp_shards,
        cpu_offload=config.cpu_offload,
        dtype=config.dtype,
    )


def _scaler(config: TrainConfig, where: torch.device, state: TrainState) -> torch.amp.GradScaler:
    """Return the gradient scaler of float16, in the state of the checkpoint; it does nothing for other dtypes."""
    scaler = torch.amp.GradScaler(where.type, enabled=config.dtype == "float16")
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    return scaler


def _batches(config: TrainConfig, data: Data) -> Batches:
    return Batches(
        tokens=data.train_tokens,
        block_size=config.block_size,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        order=config.data_order,
        seed=config.seed,
        eot_token=data.dataset.tokenizer.eot,
        align_documents=config.align_documents,
        overfit_step=config.overfit_step,
        answers=Answers.after(config.loss_after, data.dataset.tokenizer.special) if config.loss_after else None,
    )


def _optimizers(prepared: Prepared, restored: Path | None, world: World) -> list[torch.optim.Optimizer]:
    """Return the optimizers, with the state of the checkpoint or of the imported model where there is one."""
    config = prepared.config
    optimizers = make_optimizers(
        prepared.model,
        config.learning_rate,
        (config.beta1, config.beta2),
        config.weight_decay,
        muon=muon_settings(config, world) if config.optimizer == "muon" else None,
        zero_stage=config.zero_stage if world.size > 1 else 0,
    )
    if restored is not None:
        checkpoint.restore_optimizers(restored, optimizers)
    elif prepared.optimizer_state is not None:
        load_named_state(optimizers, prepared.optimizer_state)
    return optimizers


def muon_settings(config: TrainConfig, world: World) -> dict[str, Any]:
    """Return the arguments of `Muon` except for the parameters."""
    # a batched product may round differently with another number of matrices
    is_shared = config.parallel == "ddp" and not config.zero_stage and not config.deterministic
    return {
        "lr": config.muon_learning_rate,
        "momentum": config.muon_momentum,
        "weight_decay": config.muon_weight_decay,
        "iterations": config.muon_iterations,
        "dtype": torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
        "processes": world.size if is_shared else 1,
    }


def _hellaswag_tasks(config: TrainConfig, tokenizer: Tokenizer, model: GPT, log: Log) -> list[Task]:
    """Return HellaSwag's tasks, downloaded if need be, or none where they are off.

    Raises UserError where they are missing, damaged, or do not fit the tokenizer or the model.
    """
    if config.hellaswag_interval == 0:
        return []
    path = Path(config.hellaswag_data) if config.hellaswag_data else validation_file(config.data_dir, log)
    tasks = read_tasks(path, tokenizer, limit=config.hellaswag_limit or None)
    check_fits(tasks, model.config)
    return tasks


def _require_end_of_text(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UserError where a setting needs documents and the dataset's tokenizer puts nothing between them."""
    settings = [name for name in ("document_mask", "align_documents") if getattr(config, name)]
    if settings and dataset.tokenizer.eot is None:
        raise UserError(
            f"{' and '.join(settings)}: the {dataset.tokenizer.kind} tokenizer of {dataset.path} has no end-of-text "
            "token between documents; prepare the text with --tokenizer=byte, bpe or gpt2, or give "
            f"{' '.join(f'--{name}=False' for name in settings)}"
        )


def _silent(line: str) -> None:
    """Log nothing."""
