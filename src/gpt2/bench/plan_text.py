"""The texts and JSON objects of `gpt2 plan`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2.accounting import flops_per_token
from gpt2.bench.plan import CHINCHILLA, Estimate, Plan
from gpt2.bench.probe import CPU_MFU
from gpt2.bench.published import ASSUMED_MFU, PUBLISHED
from gpt2.data.corpora import TOKEN_BYTES
from gpt2.files import free_bytes
from gpt2.gpus import GPUS, find_gpu
from gpt2.model import GPTConfig
from gpt2.spelling import counted

KINDS = {
    "parameters": "weights, in float32",
    "gradients": "in float32; those of a single micro-batch replace activations",
    "optimizer": "state of the optimizer, in float32",
    "gathered": "full tensors of FSDP",
    "activations": "kept for the backward pass; grow with batch_size",
    "logits": "of a chunk of positions, and the gradient of the head",
    "process": "Python, PyTorch and compiled code",
    "allocator": "freed memory that does not fit what is allocated next",
}
"""What each kind of memory is for."""
UNITS = (
    ("years", 31_557_600, 63_115_200),
    ("days", 86_400, 172_800),
    ("hours", 3600, 5400),
    ("minutes", 60, 90),
    ("seconds", 1, 0),
)
"""Units of time: name, seconds, and the number of seconds from which on they are used."""
SHORTEST = 0.1
"""Seconds that any time is rounded up to."""


def figures(found: Plan, time: Estimate | None, price: float | None) -> dict[str, Any]:
    """Return the plan as a JSON object. Sizes are in bytes and times in seconds."""
    hardware, work = found.hardware, found.work
    result: dict[str, Any] = {
        "batch_size": found.config.batch_size,
        "gradient_accumulation_steps": found.config.accumulation,
        "parameters": found.parameters,
        "hardware": {
            "name": hardware.name,
            "device": hardware.device,
            "dtype": hardware.dtype,
            "processes": hardware.processes,
            "gpu": None if hardware.gpu is None else asdict(hardware.gpu),
        },
        "data": asdict(found.data),
        "memory": asdict(found.memory) | {"total": found.memory.total},
        "available": hardware.available,
        "steps": work.steps,
        "tokens_per_step": found.config.tokens_per_step,
        "tokens": work.tokens,
        "epochs": found.epochs,
        "tokens_per_parameter": found.tokens_per_parameter,
        "flops_per_token": flops_per_token(found.shape),
        "flops": found.flops,
        "workload": asdict(work),
        "disk": work.disk,
        "time": None,
    }
    if time is not None:
        result["time"] = {
            "origin": time.origin,
            "tokens_per_second": [time.slow.tokens_per_second, time.fast.tokens_per_second],
            "shortest": asdict(time.shortest) | {"total": time.shortest.total},
            "longest": asdict(time.longest) | {"total": time.longest.total},
            "cost": None if price is None else [cost(t.total, found, price) for t in (time.shortest, time.longest)],
        }
    return result


def cost(seconds: float, found: Plan, price: float) -> float:
    """Return the price of all GPUs for a time, at `price` for an hour of one of them."""
    return seconds / 3600 * found.hardware.processes * price


def described(found: Plan) -> str:
    """Return the arithmetic of a plan as lines of text."""
    config, shape, work = found.config, found.shape, found.work
    layers, heads = counted(shape.n_layer, "layer"), counted(shape.n_head, "head")
    head = f"{found.parameters:,} parameters: {layers}, {heads}, {shape.n_embd} channels"
    chosen = f"--batch_size={config.batch_size} --gradient_accumulation_steps={config.accumulation}"
    lines = [
        f"model     {head}, {shape.vocab_size:,} tokens",
        *_about_data(found),
        f"training  {counted(work.steps, 'step')} × {config.tokens_per_step:,} tokens = {short(work.tokens)} tokens"
        + ("" if found.epochs is None else f", {_epochs(found.epochs)}"),
        f"          {found.tokens_per_parameter:,.3g} tokens per parameter; Chinchilla recommends {CHINCHILLA}",
        f"          {flops_per_token(shape) / 1e9:,.3g} GFLOP per token, {found.flops:.3g} FLOP in all",
        f"step      {chosen}",
        f"memory    {gb(found.memory.total)} of {gb(found.hardware.available)} "
        + ("free here" if found.hardware.gpu is None else f"on each {found.hardware.gpu.name}")
        + f", in {found.hardware.dtype}",
    ]
    for kind, size in asdict(found.memory).items():
        if size or kind == "gradients":
            lines.append(f"          {gb(size):>9} {kind:<11} {KINDS[kind]}")
    checkpoints = f"{work.kept} × {gb(work.checkpoint)} of checkpoints"
    snapshots = f", {work.snapshots} × {gb(work.snapshot)} of snapshots" if work.snapshots else ""
    lines.append(f"disk      {gb(work.disk)}: {checkpoints}{snapshots}, {gb(work.log)} of log")
    if found.hardware.gpu is None and work.disk > (free := free_bytes(Path(found.config.out_dir))):
        lines.append(f"          only {gb(free)} are free there; --keep_checkpoints=1 keeps fewer checkpoints")
    return "\n".join(lines)


def described_time(found: Plan, time: Estimate, price: float | None) -> str:
    """Return the time of a plan, and its price, as lines of text."""
    rates = [short(float(f"{speed.tokens_per_second:.2g}")) for speed in (time.slow, time.fast)]
    rate = rates[0] if rates[0] == rates[1] else f"{rates[0]} to {rates[1]}"
    lines = [
        f"time      {span(time.shortest.total, time.longest.total)} on {found.hardware.name}",
        f"          at {rate} tokens/s ({_origin(found, time)})",
    ]
    if time.origin == "published":
        lines.append("          (gpt2 plan --gpu=list shows the published runs behind this share)")
    work = found.work
    kinds = {
        "training": f"{work.steps:,} optimizer steps",
        "evaluation": counted(work.evaluations, "time") if work.evaluated_tokens else "",
        "sampling": counted(work.sampled_tokens, "token") if work.sampled_tokens else "",
        "checkpoints": f"{work.checkpoints:,} at most" if work.checkpoints else "",
        "snapshots": f"{work.snapshots:,}" if work.snapshots else "",
    }
    for kind, count in kinds.items():
        if count:
            lines.append(
                f"          {span(getattr(time.shortest, kind), getattr(time.longest, kind)):>16} {kind}, {count}"
            )
    if price is not None:
        low, high = (cost(t.total, found, price) for t in (time.shortest, time.longest))
        lines.append(f"price     {_number(low)} to {_number(high)} at {price:g} per hour of one GPU")
    return "\n".join(lines)


def gpu_table() -> str:
    """Return the table of GPUs as lines of text."""
    lines = [f"{'--gpu=':<18}{'memory':>9}{'TFLOP/s':>9}  {'dtype':<10}{'bandwidth':>11}"]
    for g in GPUS:
        lines.append(f"{g.name:<18}{g.memory:>6g} GB{g.tflops:>9,g}  {g.dtype:<10}{g.bandwidth:>6,g} GB/s")
    return "\n".join([*lines, "", "Dense rates by the vendors' data sheets.", *_published()])


def gpu_figures() -> list[dict[str, Any]]:
    """Return the table of GPUs as JSON values: GB, TFLOP/s and GB/s."""
    return [asdict(g) | {"dtype": g.dtype} for g in GPUS]


def published_mfu(gpu: str, tokens_per_second: float) -> float:
    """Return the share of a GPU's data-sheet rate with which the 124M model trains at this speed."""
    return tokens_per_second * flops_per_token(GPTConfig()) / (find_gpu(gpu).tflops * 1e12)


def span(low: float, high: float) -> str:
    """Return a range of seconds with two significant digits in one unit, such as `2.4 to 3.8 hours`."""
    low, high = max(low, SHORTEST), max(high, SHORTEST)
    unit, size = next((unit, size) for unit, size, least in UNITS if high >= least)
    ends = [_number(low / size), _number(high / size)]
    return f"{ends[0]} {unit}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} {unit}"


def short(number: float) -> str:
    """Return a number with three significant digits in words, such as `9.95 billion`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.4g} {name}"
    return f"{number:,.0f}"


def gb(size: float) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _number(value: float) -> str:
    """Return a number with two significant digits."""
    return f"{float(f'{value:.2g}'):,g}"


def _percent(shares: tuple[float, float]) -> str:
    return f"{shares[0]:.0%} to {shares[1]:.0%}"


def _origin(found: Plan, time: Estimate) -> str:
    """Return where the speed comes from, in words."""
    if found.hardware.gpu is not None:
        return f"assumed: {_percent(ASSUMED_MFU)} of the data sheet's {found.hardware.gpu.tflops:,g} TFLOP/s"
    if time.origin == "probe":
        return "measured just now"
    return f"not measured, as it is slow here: {_percent(CPU_MFU)} of the speed of matrix products"


def _about_data(found: Plan) -> list[str]:
    """Return the lines about the dataset."""
    data, splits = found.data, found.data.splits
    if data.is_prepared:
        sizes = " and ".join(f"{size:,} {name}" for name, size in splits.items())
        return [f"data      {data.name}: {sizes} tokens"]
    if not data.name:
        return ["data      no dataset is named, so the number of epochs is unknown"]
    source = f"reads {gb(data.download)} on this machine" if data.is_local else f"downloads {gb(data.download)}"
    about = f" (about {short(splits['train'])} tokens)" if "train" in splits else ""
    prepares = f"{gb(TOKEN_BYTES * splits['train'])} of tokens" if "train" in splits else "it"
    return [
        f"data      {data.name}{about} is not prepared yet:",
        f"          gpt2 train {source} and prepares {prepares} first",
    ]


def _epochs(number: float) -> str:
    """Return a number of epochs with three digits, and never with an exponent."""
    figure = f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
    return f"{figure} {'epoch' if figure == '1' else 'epochs'}"


def _published() -> list[str]:
    """Return the lines that say where the assumed share of a GPU's rate comes from."""
    runs = [
        f"  {name} on {gpu}: {rate:,} tokens/s per GPU, {published_mfu(gpu, rate):.0%}"
        for name, gpu, rate in PUBLISHED
    ]
    first = (
        f"Plans assume {_percent(ASSUMED_MFU)} of that rate (the MFU), as published PyTorch runs of the 124M model:"
    )
    return [first, *runs]
