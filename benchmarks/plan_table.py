"""Print the table of docs/distributed.md: how to train models of three sizes on 1 to 1,024 GPUs.

    python benchmarks/plan_table.py

The table is calculated, not measured. A GPU has 80 GB and reaches 40 % of 989 TFLOP/s in bfloat16 (data sheet of
NVIDIA's H100). A machine has 8 GPUs. Each GPU sends 400 GB/s within its machine (NVLink) and 50 GB/s between machines
(400 Gbit/s). The table shows the simplest flags that need at most nine tenths of the memory, with the largest
micro-batch that does. As in a run, GELU and LayerNorm are recomputed only where their outputs do not fit.
"""

from gpt2 import accounting
from gpt2.accounting import Memory, Sharing
from gpt2.model import GPTConfig
from gpt2.training.budget import SPARE, training_memory
from gpt2.training.config import TrainConfig

GB = 1e9
MEMORY, PEAK, UTILISATION, GPUS_PER_MACHINE, WITHIN, BETWEEN = 80 * GB, 989e12, 0.4, 8, 400 * GB, 50 * GB
MODELS = {
    "124M": (GPTConfig(), 1 << 19),
    "1.5B": (GPTConfig.preset("gpt2-xl"), 1 << 20),
    "7B-sized": (GPTConfig(n_layer=32, n_head=32, n_embd=4096), 1 << 22),
}
"""Configuration and number of tokens per step of each model."""
GPUS = (1, 8, 64, 1024)


def ways(gpus: int) -> list[tuple[str, Sharing, bool]]:
    """Return the choices, simplest first: flags, sharing, and whether activations are checkpointed."""
    if gpus == 1:
        return [("one process", Sharing(), False), ("--activation_checkpointing", Sharing(), True)]
    return [
        ("ddp", Sharing(gpus), False),
        ("--zero_stage=1", Sharing(gpus, zero_stage=1), False),
        ("--parallel=fsdp", Sharing(gpus, "fsdp"), False),
        ("--parallel=fsdp --activation_checkpointing", Sharing(gpus, "fsdp"), True),
    ]


def plan(config: GPTConfig, tokens_per_step: int, gpus: int) -> tuple[str, Sharing, int, int, Memory] | None:
    """Return flags, sharing, batch_size, micro-batches per process and memory; None where nothing fits."""
    sequences = max(1, tokens_per_step // config.block_size // gpus)
    for flags, sharing, checkpointing in ways(gpus):
        batch_size = min(sequences, 64)
        while batch_size:
            micro_batches = sequences // batch_size
            run = TrainConfig(
                batch_size=batch_size,
                gradient_accumulation_steps=micro_batches * gpus,
                activation_checkpointing=checkpointing,
                dtype="bfloat16",
                compile=True,
            )
            taken, _ = training_memory(run, config, sharing, "cuda", int(MEMORY))
            if taken.total <= (1 - SPARE) * MEMORY:
                return flags, sharing, batch_size, micro_batches, taken
            batch_size //= 2
    return None


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| model | GPUs | flags | batch_size × micro-batches | tokens per step | memory | compute time "
        "| sent | sending time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (config, tokens_per_step) in MODELS.items():
        for gpus in GPUS:
            if (found := plan(config, tokens_per_step, gpus)) is None:
                lines.append(f"| {name} | {gpus:,} | does not fit | | | | | | |")
                continue
            flags, sharing, batch_size, micro_batches, taken = found
            tokens = gpus * batch_size * micro_batches * config.block_size
            seconds = accounting.flops_per_token(config) * tokens / gpus / (UTILISATION * PEAK)
            sent = accounting.communication(config, sharing, micro_batches)
            sending = sent / (WITHIN if gpus <= GPUS_PER_MACHINE else BETWEEN)
            lines.append(
                f"| {name} | {gpus:,} | {flags} | {batch_size} × {micro_batches} | {tokens / 1e6:.1f}M | "
                f"{taken.total / GB:.1f} GB | {seconds:.3g} s | {sent / GB:.1f} GB | {sending:.2g} s |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
