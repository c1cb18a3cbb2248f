"""How fast the training of GPT-2 has been on GPUs, and the speed that a plan assumes for them."""

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
