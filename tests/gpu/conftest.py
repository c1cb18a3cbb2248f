"""The device of these tests: a CUDA GPU, or with `GPT2_TEST_GPU=cpu` a CPU, on which they are rehearsed."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from gpt2 import device
from gpt2.training.config import TrainConfig

WHERE = os.environ.get("GPT2_TEST_GPU", "cuda")


@pytest.fixture
def where() -> Iterator[torch.device]:
    """The device. Tests are skipped without one."""
    if WHERE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU; GPT2_TEST_GPU=cpu rehearses this on a CPU")
    precision = torch.get_float32_matmul_precision()
    torch._dynamo.reset()
    yield device.pick_device(WHERE)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def nothing_waits(where: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Makes a context in which an operation that waits for the GPU raises an error."""

    @contextmanager
    def watch() -> Iterator[None]:
        if where.type != "cuda":
            yield
            return
        torch.cuda.synchronize(where)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watch


@pytest.fixture
def compiler(where: torch.device) -> Callable[[Any], Any]:
    """Compiles as a run does; on a CPU without code generation, which would take minutes."""
    backend = "inductor" if where.type == "cuda" else "aot_eager"
    return lambda function: torch.compile(function, fullgraph=True, backend=backend)


@pytest.fixture
def on_gpu(where: torch.device, tiny: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """Makes the configuration of a short run on the device, with changes. A rehearsal does not compile."""

    def make(**changes: object) -> TrainConfig:
        changes = {"device": str(where), "n_embd": 64, "block_size": 32, "tf32": False, **changes}
        if where.type == "cpu":
            changes["compile"] = False
        return tiny(**changes)

    return make
