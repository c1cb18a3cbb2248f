"""What is chosen on machines of every kind, none of which is needed."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt2 import device
from gpt2.errors import UserError
from gpt2.gpus import GPUS, OTHER_NAMES, find_gpu


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Makes this a machine with `count` CUDA GPUs, or with Apple's GPU, and PyTorch a build for some GPUs."""

    def machine(
        count: int = 0,
        mps: bool = False,
        capability: tuple[int, int] = (9, 0),
        built_for: Sequence[str] = ("sm_75", "sm_90", "sm_120", "compute_120"),
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "Tesla X")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built_for))

    return machine


@pytest.mark.parametrize(
    ("count", "mps", "name", "local_rank", "expected"),
    [
        (0, False, "auto", 0, "cpu"),
        (0, False, "auto", 3, "cpu"),
        (0, False, "cpu:0", 0, "cpu"),
        (0, True, "auto", 0, "mps"),
        (0, True, "mps:0", 0, "mps"),
        (1, True, "auto", 0, "cuda:0"),
        (1, False, "cuda", 0, "cuda:0"),
        (8, False, "auto", 7, "cuda:7"),
        (8, False, "cuda", 2, "cuda:2"),
        (3, False, "cuda:1", 0, "cuda:1"),
        (3, False, "cuda:1", 1, "cuda:2"),
        (3, False, "cpu", 1, "cpu"),
    ],
)
def test_every_process_has_a_device_of_its_own(gpus, count, mps, name, local_rank, expected) -> None:
    gpus(count, mps)
    found = device.pick_device(name, local_rank)
    assert str(found) == expected
    assert found.type != "cuda" or found.index is not None  # torch.cuda.set_device refuses one without


@pytest.mark.parametrize(
    ("count", "name", "local_rank", "says"),
    [
        (0, "cuda", 0, "device=cuda.* is not available: PyTorch finds no CUDA GPU on this machine; use --device=cpu"),
        (
            0,
            "cuda:1",
            0,
            "device=cuda.* is not available: PyTorch finds no CUDA GPU on this machine; use --device=cpu",
        ),
        (0, "mps", 0, "device=mps is not available on this machine; use --device=cpu"),
        (1, "cuda:1", 0, "cuda:1 is not available: PyTorch finds 1 GPU \\(cuda:0\\) on"),
        (2, "cuda:2", 0, "cuda:2 is not available: PyTorch finds 2 GPUs \\(cuda:0 to cuda:1\\) on"),
        (2, "cuda:256", 0, "cuda:256 is not available: PyTorch finds 2 GPUs"),
        (2, "cuda:1", 1, "process 1 of this machine needs cuda:2, and PyTorch finds 2 GPUs .* --nproc=1 "),
        (2, "auto", 3, "process 3 of this machine needs cuda:3, and PyTorch finds 2 GPUs .* --nproc=2 "),
        (1, "cuda:x", 0, "no device 'cuda:x'; choose auto, cpu"),
        (1, "cuda:", 0, "no device"),
        (1, "cuda:-1", 0, "no device"),
        (1, "cuda:٣", 0, "no device"),
        (1, "xpu", 0, "no device"),
        (1, "cpu:1", 0, "no device"),
        (1, "mps:1", 0, "no device"),
        (1, "", 0, "no device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_line(gpus, count, name, local_rank, says) -> None:
    gpus(count)
    with pytest.raises(UserError, match=says) as error:
        device.pick_device(name, local_rank)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["auto", "cuda:0"])
def test_a_gpu_that_is_too_old_for_this_pytorch_is_refused_in_one_line(gpus, name: str) -> None:
    """PyTorch would fail in its first kernel; its builds for CUDA 12.8 and later need compute capability 7.5."""
    gpus(1, capability=(7, 0))
    with pytest.raises(UserError, match=r"Tesla X has .* 7\.0, .* built for 7\.5 .*/cu126.*=cpu") as error:
        device.pick_device(name)
    assert "\n" not in str(error.value)
    assert str(device.pick_device("cpu")) == "cpu"
    gpus(1, capability=(7, 0), built_for=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"))
    assert str(device.pick_device(name)) == "cuda:0"
    for capability in ((7, 5), (8, 9), (10, 3)):
        gpus(1, capability=capability)
        assert str(device.pick_device(name)) == "cuda:0"
    gpus(1, capability=(9, 4), built_for=("gfx90a", "gfx942"))
    assert str(device.pick_device(name)) == "cuda:0"


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 NVL", "bfloat16", 835e12),
        ("NVIDIA A100-SXM4-40GB", "float16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA RTX 6000 Ada Generation", "bfloat16", 364e12),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "bfloat16", 88.2e12),
        ("GeForce RTX 3090", "bfloat16", 71e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("Tesla T4", "float16", 65e12),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA L4", "float32", None),
        ("NVIDIA Z1000", "bfloat16", None),
    ],
)
def test_the_drivers_name_of_a_gpu_leads_to_its_data_sheet(
    name: str, dtype: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: name)
    assert device.data_sheet_flops(torch.device("cuda:0"), dtype) == expected


def test_every_gpu_is_found_by_each_of_its_names() -> None:
    for gpu in GPUS:
        for spelling in (gpu.name, gpu.name.lower(), f"NVIDIA GeForce {gpu.name.replace('-', ' ')}"):
            assert find_gpu(spelling) is gpu
    assert {find_gpu(name).name for name in OTHER_NAMES} == set(OTHER_NAMES.values())


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_takes_bfloat16_where_it_has_it(
    has_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda where: asked.append(where) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert device.pick_dtype("auto", torch.device("cuda:1")) == expected
    assert asked == [torch.device("cuda:1")]  # of two GPUs the first may be another kind


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 0 bytes, max allowed: 242.48 MiB). Tried to allocate"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_lack_of_memory_is_known_on_every_device(error: RuntimeError) -> None:
    assert device.is_out_of_memory(error)
    assert not device.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


FLAGS = {
    "a processor with AMX": ("avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8", "bfloat16"),
    "AMX for integers only": ("avx512f avx512_bf16 amx_tile amx_int8", "float32"),
    "AMX without its tiles": ("avx512f avx512_bf16 amx_bf16", "float32"),
    "AVX-512 with bfloat16": ("avx512f avx512vl avx512_bf16", "float32"),
    "AVX-512": ("avx512f avx512vl avx512_vnni", "float32"),
    "AVX2": ("avx avx2 fma f16c", "float32"),
    "a name that only begins alike": ("avx2 amx_bf16x amx_tile2", "float32"),
}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes the system describe its processor by this text, and restricts what oneDNN and PyTorch use of it."""

    def describe(text: str | None, highest: str | None = None, capability: str = "AVX512") -> None:
        monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        if highest is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", highest)

    return describe


def x86(flags: str) -> str:
    core = f"model name\t: amx_bf16 amx_tile\nflags\t\t: fpu vme {flags} sse2\nvmx flags\t: vnmi\nbugs\t\t:\n\n"
    return "processor\t: 0\n" + core + "processor\t: 1\n" + core


@pytest.mark.parametrize(("flags", "expected"), FLAGS.values(), ids=FLAGS)
def test_a_cpu_takes_bfloat16_only_with_amx(processor, flags: str, expected: str) -> None:
    processor(x86(flags))
    assert device.pick_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd bf16 i8mm sve2\nCPU part\t: 0xd4f\n",
        "processor\t: 0\nflags\t\t:\n",
    ],
    ids=["another system", "empty", "ARM", "no flags"],
)
def test_a_processor_that_says_something_else_takes_float32(processor, text: str | None) -> None:
    processor(text)
    assert device.pick_dtype("auto", torch.device("cpu")) == "float32"


@pytest.mark.parametrize(
    ("highest", "expected"),
    [("AVX512_CORE_BF16", "float32"), ("avx2", "float32"), ("AVX512_CORE_AMX", "bfloat16"), ("default", "bfloat16")],
)
def test_a_limit_on_what_onednn_uses_counts(processor, highest: str, expected: str) -> None:
    processor(x86("amx_bf16 amx_tile"), highest)
    assert device.pick_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_amx_needs_pytorchs_avx512(processor, capability: str) -> None:
    """PyTorch's bfloat16 attention raises an error on a processor with AMX whose AVX-512 is switched off."""
    processor(x86("amx_bf16 amx_tile"), capability=capability)
    assert device.pick_dtype("auto", torch.device("cpu")) == "float32"


def test_the_choice_of_a_format_times_nothing(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(device, "time", None)
    monkeypatch.setattr(torch, "randn", never)
    monkeypatch.setattr(torch.Tensor, "__matmul__", never)
    for flags, expected in FLAGS.values():
        processor(x86(flags))
        assert device.pick_dtype("auto", torch.device("cpu")) == expected
    assert device.pick_dtype("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("rate", [1e8, 5e8, 4e9, 3e11, 5e12])
def test_the_peak_is_found_within_its_time_on_slow_and_fast_devices(rate: float) -> None:
    seconds: list[float] = []

    def product(size: int) -> float:
        seconds.append(2 * size**3 / rate + 2e-5)  # and the time to start it
        return seconds[-1]

    found = device.best_rate(product, 2048)
    assert rate * 0.2 < found <= rate
    assert sum(seconds) <= max(device.PEAK_SECONDS, 2 * 256**3 / rate + 2e-5)
    if rate == 5e12:
        assert seconds[-1] == 2 * 2048**3 / rate + 2e-5


def test_a_product_that_was_held_up_does_not_lower_the_peak() -> None:
    took = iter([1e-3, 1e-4, 5e-3] + [1.0] * 20)
    assert device.best_rate(lambda size: next(took), 2048) == pytest.approx(2 * 256**3 / 1e-4)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """A CPU that makes 100 GFLOP/s in float32, 500 in bfloat16 and 1 in float16; gives the products it made."""
    made: list[tuple[str, int]] = []
    speed = {torch.float32: 1e11, torch.bfloat16: 5e11, torch.float16: 1e9}

    def seconds(where: torch.device, dtype: torch.dtype, size: int) -> float:
        made.append((str(dtype), size))
        return 2 * size**3 / speed[dtype]

    monkeypatch.setattr(device, "matmul_seconds", seconds)
    device.measured_flops.cache_clear()
    yield made
    device.measured_flops.cache_clear()


def test_a_cpus_peak_in_16_bits_is_at_least_that_in_float32(rates) -> None:
    cpu = torch.device("cpu")
    assert device.peak_flops(cpu, "bfloat16") == (pytest.approx(5e11), "measured matmul")
    assert device.peak_flops(cpu, "float16") == (pytest.approx(1e11), "measured matmul")
    assert device.peak_flops(cpu, "float32") == (pytest.approx(1e11), "measured matmul")


def test_a_peak_is_measured_once(rates) -> None:
    for _ in range(2):
        for dtype in ("float16", "float32"):
            device.measured_flops(torch.device("cpu"), dtype)
    made = len(rates)
    device.measured_flops(torch.device("cpu"), "float32")
    assert len(rates) == made
    assert max(size for dtype, size in rates if dtype == "torch.float32") == 1024  # 2048 would take 0.17 s of 0.2


def test_a_product_is_made_on_random_numbers_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert 0 < device.matmul_seconds(torch.device("cpu"), torch.float32, 512) < 60
    assert torch.equal(torch.rand(3), expected)


def test_a_process_knows_how_long_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "PROCESS", tmp_path / "stat")
    assert device.seconds_since_process_start() is None  # as on macOS
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", *(str(n) for n in range(4, 53))]
    fields[22 - 3] = str(100 * ticks)  # field 22, counted from 1: proc_pid_stat(5)
    (tmp_path / "stat").write_text(f"4711 (gpt2) 1 (x) {' '.join(fields)}\n")
    clock = SimpleNamespace(CLOCK_BOOTTIME=7, clock_gettime={7: 102.5}.__getitem__)
    monkeypatch.setattr(device, "time", clock)
    assert device.seconds_since_process_start() == pytest.approx(2.5)
    (tmp_path / "stat").write_text("something else")
    assert device.seconds_since_process_start() is None
    (tmp_path / "stat").write_text(f"4711 (gpt2) {' '.join(fields)}\n")
    del clock.CLOCK_BOOTTIME
    assert device.seconds_since_process_start() is None


@pytest.mark.skipif(not device.PROCESS.exists(), reason="needs Linux")
def test_the_time_includes_pythons_own_start() -> None:
    code = "import time; t = time.perf_counter(); from gpt2.device import seconds_since_process_start as s; a = s()\n"
    code += "print(a, time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    since_start, imports = map(float, done.stdout.split())
    assert since_start > imports - 0.02  # the system counts in hundredths of a second
