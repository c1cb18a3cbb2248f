"""A table of GPUs: their memory, their rate of matrix products and their memory bandwidth.

Every figure is from the vendor's data sheet or architecture white paper: dense rates, without sparsity.
"""

import re
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
    GPU("A10G", 24, 70, 600),  # NVIDIA A10G data sheet, 2021; the A10 of AWS, with half of its tensor cores' rate
    GPU("A40", 48, 149.7, 696),  # NVIDIA A40 data sheet, 2021
    GPU("RTX-A6000", 48, 154.8, 768),  # NVIDIA RTX A6000 data sheet, 2021, half of its rate with sparsity
    GPU("L4", 24, 121, 300),  # NVIDIA L4 data sheet, 2023, half of its rate with sparsity
    GPU("L40S", 48, 362, 864),  # NVIDIA L40S data sheet, 2023
    GPU("RTX-6000-Ada", 48, 364, 960),  # NVIDIA RTX 6000 Ada data sheet, 2023: a quarter of FP8's rate with sparsity
    # GeForce: sums in float32 halve the rate of these tensor cores, which leaves twice the FP32 rate of the shaders,
    # as the white papers list it. Without a white paper named, the FP32 rate is that of the cores and the boost clock
    # on NVIDIA's product page.
    GPU("RTX-3060", 12, 25.5, 360),  # 12.7 TFLOP/s in FP32; there is one of 8 GB
    GPU("RTX-3060-Ti", 8, 32.4, 448),  # 16.2 TFLOP/s in FP32
    GPU("RTX-3070", 8, 40.6, 448),  # 20.3 TFLOP/s in FP32
    GPU("RTX-3070-Ti", 8, 43.5, 608),  # 21.7 TFLOP/s in FP32
    GPU("RTX-3080", 10, 59.5, 760),  # NVIDIA Ampere GA102 white paper, 2021, appendix A
    GPU("RTX-3080-Ti", 12, 68.2, 912),  # 34.1 TFLOP/s in FP32
    GPU("RTX-3090", 24, 71, 936),  # NVIDIA Ampere GA102 white paper, 2021, appendix A
    GPU("RTX-3090-Ti", 24, 80, 1008),  # 40 TFLOP/s in FP32
    GPU("RTX-4060", 8, 30.2, 272),  # 15.1 TFLOP/s in FP32
    GPU("RTX-4060-Ti", 8, 44.1, 288),  # 22.1 TFLOP/s in FP32; there is one of 16 GB
    GPU("RTX-4070", 12, 58.3, 504),  # 29.1 TFLOP/s in FP32
    GPU("RTX-4070-Super", 12, 71, 504),  # 35.5 TFLOP/s in FP32
    GPU("RTX-4070-Ti", 12, 80.2, 504),  # 40.1 TFLOP/s in FP32
    GPU("RTX-4070-Ti-Super", 16, 88.2, 672),  # 44.1 TFLOP/s in FP32
    GPU("RTX-4080", 16, 97.5, 717),  # 48.7 TFLOP/s in FP32
    GPU("RTX-4080-Super", 16, 104.4, 736),  # 52.2 TFLOP/s in FP32
    GPU("RTX-4090", 24, 165, 1008),  # NVIDIA Ada architecture white paper, 2023, appendix A
    GPU("RTX-5070", 12, 61.7, 672),  # 30.9 TFLOP/s in FP32
    GPU("RTX-5070-Ti", 16, 87.9, 896),  # 43.9 TFLOP/s in FP32
    GPU("RTX-5080", 16, 112.6, 960),  # NVIDIA RTX Blackwell architecture white paper, 2025, appendix A
    GPU("RTX-5090", 32, 209.5, 1792),  # NVIDIA RTX Blackwell architecture white paper, 2025, appendix A
    GPU("A100-40GB", 40, 312, 1555),  # NVIDIA A100 data sheet, 2020
    GPU("A100", 80, 312, 2039),  # NVIDIA A100 data sheet, 2022, SXM; the PCIe card has 1,935 GB/s
    GPU("H100-PCIe", 80, 756, 2000),  # NVIDIA H100 data sheet, 2023, half of its rate with sparsity
    GPU("H100-NVL", 94, 835, 3900),  # NVIDIA H100 data sheet, 2024, half of its rate with sparsity
    GPU("H100", 80, 989, 3350),  # NVIDIA H100 data sheet, 2023, SXM, half of its rate with sparsity
    GPU("H200-NVL", 141, 835, 4800),  # NVIDIA H200 data sheet, 2024, half of its rate with sparsity
    GPU("H200", 141, 989, 4800),  # NVIDIA H200 data sheet, 2024, SXM, half of its rate with sparsity
    GPU("B200", 180, 2250, 8000),  # NVIDIA HGX B200 data sheet, 2025, half of its rate with sparsity, per GPU
    GPU("MI300X", 192, 1307, 5300),  # AMD Instinct MI300X data sheet, 2023
)
OTHER_NAMES = {
    "A100-80GB": "A100",
    "A100-SXM4-80GB": "A100",
    "A100-80GB-PCIe": "A100",
    "A100-SXM4-40GB": "A100-40GB",
    "A100-PCIE-40GB": "A100-40GB",
    "H100-SXM": "H100",
    "H100-80GB-HBM3": "H100",
    "V100-SXM2-16GB": "V100",
    "V100-SXM2-32GB": "V100",
    "RTX-6000-Ada-Generation": "RTX-6000-Ada",
}
"""Further names of GPUs in the table, most of them the driver's."""
MAKERS = re.compile(r"(NVIDIA |AMD |GeForce |Tesla |Instinct )*")
"""What the driver puts before the name of a GPU."""


def find_gpu(name: str, memory: float | None = None) -> GPU:
    """Return the GPU called `name`, with `memory` GB if given. Case, spaces and dashes do not matter.

    Raises UserError for a GPU that is not in the table.
    """
    found = known_gpu(name)
    if found is None:
        close = nearest(name, [gpu.name for gpu in GPUS])
        hint = f"did you mean {close}?" if close else f"choose from {', '.join(gpu.name for gpu in GPUS)}"
        raise UserError(f"no GPU {name!r} in the table; {hint}")
    return found if memory is None else replace(found, memory=memory)


def known_gpu(name: str) -> GPU | None:
    """Return the GPU that has this name in the table or that the driver calls so; None if it is not in the table."""
    wanted = _plain(MAKERS.sub("", name, count=1))
    wanted = next((_plain(usual) for other, usual in OTHER_NAMES.items() if _plain(other) == wanted), wanted)
    return next((gpu for gpu in GPUS if _plain(gpu.name) == wanted), None)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
