"""Snapshots: the weights alone, kept at some optimizer steps, so that one can see later how the model came to be."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from gpt2.distributed.sharding import shards_of
from gpt2.distributed.world import World
from gpt2.errors import UserError
from gpt2.files import publish, temporary_of
from gpt2.formats.run_folder import snapshot_file, snapshot_metadata
from gpt2.tensor_file import Layout, TensorShard, specs_of
from gpt2.training.periodic import is_due, leave_out
from gpt2.training.session import Session


class Snapshots:
    """Keeps the weights in bfloat16, every N optimizer steps or at steps 0, 1, 2, 4, 8, … and at the end."""

    def __init__(self, session: Session) -> None:
        self.session, self.setting = session, session.run.config.snapshot_interval

    @property
    def interval(self) -> int:
        """N; with the setting `geometric`, the first power of two that is not below the current step."""
        if isinstance(self.setting, int):
            return self.setting
        return 1 << max(0, self.session.run.state.step - 1).bit_length()

    def due(self, ending: str | None) -> bool:
        """Return whether to keep a snapshot of the current step."""
        return is_due(self.session.run, self.interval) or ending is not None

    def run(self) -> None:
        """Write the snapshot of the current step; all processes together. A resumed run writes the same one again."""
        session, run = self.session, self.session.run
        run.world.beat("a snapshot")
        step, began = run.state.step, time.perf_counter()
        path = snapshot_file(run.out_dir, step)
        metadata = snapshot_metadata(run.model.config, run.tokenizer, step, run.own_layers)
        try:
            write(path, shards_of(run.model), metadata, run.world)
            session.log.write("snapshot", step, path=path.name, seconds=time.perf_counter() - began)
        except UserError as error:
            leave_out(session, "snapshot", "snapshots", error)
        run.ledger.mark("snapshots")


def write(path: Path, shards: dict[str, TensorShard], metadata: dict[str, str], world: World) -> None:
    """Write a file of weights in bfloat16; every process of the `world` writes its own shards into it.

    The file does not depend on the number of processes. Raises UserError, in all processes, where it cannot be
    written; a file that was there before is then unchanged.
    """
    shards = {
        name: replace(shard, values=shard.values.cpu().to(torch.bfloat16))
        for name, shard in shards.items()
        if not shard.is_copy and (world.is_main or not shard.is_full)
    }
    specs = {name: spec for held in world.gather(specs_of(shards)) for name, spec in held.items()}
    layout = Layout(specs, metadata)

    def begin() -> None:
        layout.create(stack.enter_context(publish(path, needed=layout.size)))

    def write_shards() -> None:
        layout.write(temporary_of(Path(os.path.realpath(path))), shards)

    with ExitStack() as stack:
        world.main_only(lambda: _on_disk(begin, path))
        world.agreed(lambda: _on_disk(write_shards, path))
        world.main_only(lambda: _on_disk(stack.close, path))  # publishes


def _on_disk(work: Callable[[], object], path: Path) -> None:
    """Do the work. Raises UserError where the disk does not allow it."""
    try:
        work()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
