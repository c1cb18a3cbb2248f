"""A table of GPUs to plan for, and how fast the training of GPT-2 has been on such hardware.

Every figure is from the vendor's data sheet or architecture white paper: dense rates, without sparsity.
"""

from dataclasses import dataclass, replace

from gpt2.errors import UserError
from gpt2.spelling import nearest


@dataclass(frozen=True)
class GPU:
    """A GPU as its data sheet describes it."""

    name: str
    memory: float
    """Memory in GB."""
    tflops: float
    """Dense TFLOP/s of matrix products in bfloat16 with sums in float32, or in float16 where bfloat16 is missing."""
    bandwidth: float
    """Memory bandwidth in GB/s."""
    has_bfloat16: bool = True
    """Whether it multiplies bfloat16; float16 is used otherwise."""

    @property
    def dtype(self) -> str:
        """Return the dtype that `--dtype=auto` chooses on this GPU."""
        return "bfloat16" if self.has_bfloat16 else "float16"


GPUS = (
    GPU("T4", 16, 65, 300, has_bfloat16=False),  # NVIDIA T4 data sheet, 2019
    GPU("V100", 32, 125, 900, has_bfloat16=False),  # NVIDIA V100 data sheet, 2020, SXM2; there is one of 16 GB
    GPU("A10", 24, 125, 600),  # NVIDIA A10 data sheet, 2021
    GPU("L4", 24, 121, 300),  # NVIDIA L4 data sheet, 2023, half of its rate with sparsity
    GPU("RTX-3090", 24, 71, 936),  # NVIDIA Ampere GA102 white paper, 2021, appendix A
    GPU("RTX-4090", 24, 165, 1008),  # NVIDIA Ada architecture white paper, 2023, appendix A
    GPU("RTX-5090", 32, 209.5, 1792),  # NVIDIA RTX Blackwell architecture white paper, 2025, appendix A
    GPU("A100-40GB", 40, 312, 1555),  # NVIDIA A100 data sheet, 2020
    GPU("A100", 80, 312, 2039),  # NVIDIA A100 data sheet, 2022, SXM; the PCIe card has 1,935 GB/s
    GPU("L40S", 48, 362, 864),  # NVIDIA L40S data sheet, 2023
    GPU("H100-PCIe", 80, 756, 2000),  # NVIDIA H100 data sheet, 2023, half of its rate with sparsity
    GPU("H100", 80, 989, 3350),  # NVIDIA H100 data sheet, 2023, SXM, half of its rate with sparsity
    GPU("H200", 141, 989, 4800),  # NVIDIA H200 data sheet, 2024, SXM, half of its rate with sparsity
    GPU("B200", 180, 2250, 8000),  # NVIDIA HGX B200 data sheet, 2025, half of its rate with sparsity, per GPU
    GPU("MI300X", 192, 1307, 5300),  # AMD Instinct MI300X data sheet, 2023
)

ASSUMED_MFU = (0.25, 0.40)
"""Lowest and highest share of a GPU's rate that a plan assumes for training in PyTorch.

It is what published PyTorch runs of the 124M model reached; see `PUBLISHED`.
"""

PUBLISHED = (
    ("nanoGPT", "A100", 108_000),
    ("modded-nanogpt, slowest early record", "H100", 303_000),
    ("modded-nanogpt, fastest early record", "H100", 453_000),
    ("llm.c (CUDA)", "H100", 468_000),
    ("llm.c (CUDA)", "A100", 218_000),
)
"""Published speeds of training GPT-2 124M: program, GPU, tokens/s of one GPU.

They are reported in the repositories karpathy/nanoGPT, KellerJordan/modded-nanogpt and karpathy/llm.c.
"""


def find_gpu(name: str, memory: float | None = None) -> GPU:
    """Return the GPU called `name`, with `memory` GB if given. Case, spaces and dashes do not matter.

    Raises UserError for a GPU that is not in the table.
    """
    plain = {_plain(gpu.name): gpu for gpu in GPUS} | {"a10080gb": find("A100"), "h100sxm": find("H100")}
    found = plain.get(_plain(name))
    if found is None:
        close = nearest(name, [gpu.name for gpu in GPUS])
        hint = f"did you mean {close}?" if close else f"choose from {', '.join(gpu.name for gpu in GPUS)}"
        raise UserError(f"no GPU {name!r} in the table; {hint}")
    return found if memory is None else replace(found, memory=memory)


def find(name: str) -> GPU:
    """Return the GPU whose name in the table is exactly `name`."""
    return next(gpu for gpu in GPUS if gpu.name == name)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
