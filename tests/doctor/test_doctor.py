"""`gpt2 doctor` names the cause in broken environments, which are as real as a test can make them."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.cli.doctor import doctor
from gpt2.doctor import examine, files, hardware, software
from gpt2.doctor.finding import Finding, described, guarded, ok, problem, warning
from gpt2.doctor.hardware import Gpus

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def unreachable(address: str) -> str:
    return "the name cannot be resolved"


def reachable(address: str) -> str:
    return ""


def is_about(finding: Finding, verdict: str, found: str, fix: str) -> bool:
    return finding.verdict == verdict and found in finding.found and fix in finding.fix


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_path_without_a_compiler(tmp_path: Path) -> None:
    finding = software.compiler({"PATH": str(tmp_path)}, on_gpu=False)
    assert is_about(finding, "warning", "no C++ compiler on PATH", "--no-compile")
    finding = software.compiler({"PATH": str(tmp_path), "CC": "icx"}, on_gpu=True)
    assert is_about(finding, "warning", "CC=icx is not on PATH", "unset CC")
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    assert software.compiler({"PATH": str(tmp_path), "CXX": "g++"}, on_gpu=False).verdict == "ok"


def test_a_compilation_that_fails_or_hangs() -> None:
    assert is_about(
        software.compilation(20, "raise RuntimeError('no headers')"), "warning", "no headers", "--no-compile"
    )
    assert is_about(
        software.compilation(0.2, "import time; time.sleep(9)"), "warning", "not compiled after", "try it"
    )
    assert software.compilation(20, "pass").verdict == "ok"


def test_a_wrong_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    assert is_about(next(examine.of_torch({})), "problem", "2.4.1+cu121 is too old", "torch>=2.10")
    assert is_about(software.torch_version("2.15.0"), "warning", "newer than 2.10 to 2.14", "install a version")
    assert software.torch_version("2.10.0+cpu").verdict == software.torch_version("2.14.1").verdict == "ok"


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [f.verdict for f in examine.of_torch({})] == ["problem"]
    broken = ImportError("libcudart.so.12: cannot open shared object file")
    assert is_about(software.torch_missing(broken), "problem", "libcudart.so.12", "install it again")


def test_no_network(closed_port: str) -> None:
    finding = files.hub({"HF_ENDPOINT": closed_port}, examine.probe_within(2))
    assert is_about(finding, "warning", f"{closed_port} (from HF_ENDPOINT) cannot be reached", "HTTPS_PROXY")
    assert "refused" in finding.found
    assert files.hub({}, reachable).verdict == "ok"
    assert is_about(files.hub({"HF_HUB_OFFLINE": "1"}, reachable), "warning", "HF_HUB_OFFLINE", "unset")


def test_an_address_that_never_answers_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "reach", lambda address, seconds: examine.threading.Event().wait(60) and "")
    assert examine.probe_within(0.1)("http://x") == "no answer in 0.1 s"


def test_no_space() -> None:
    assert is_about(files.space("disk space", 10**8), "problem", "only 0.1 GB free", "make room")
    assert files.space("disk space", 10**10).verdict == "ok"
    full = files.writable("this folder", Path("/x"), {"write": FULL}, "")
    assert is_about(full, "problem", "no space left", "make room")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args, **kwargs):
        raise FULL

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    assert files.try_folder(tmp_path) == {"write": FULL}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args, **kwargs):
        raise DENIED

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)  # root ignores modes
    found = {f.name: f for f in examine.of_folders({"HF_HOME": str(tmp_path / "hub")})}
    assert is_about(found["this folder"], "problem", "cannot be written (Permission denied)", "another folder")
    assert is_about(found["hub cache"], "problem", str(tmp_path / "hub"), "set HF_HOME to a folder")


def test_a_folder_that_works(tmp_path: Path) -> None:
    results = files.try_folder(tmp_path / "missing" / "deeper")
    assert results == {"write": None, "fsync": None, "lock": None}
    assert list(tmp_path.iterdir()) == []
    assert files.safety(results).verdict == "ok"


def test_a_file_system_without_locks_and_fsync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files.os, "fsync", refuse)
    finding = files.safety(files.try_folder(tmp_path))
    assert is_about(finding, "warning", "no file locks", "local disk") and "power failure" in finding.found


def test_no_vocabulary(tmp_path: Path) -> None:
    cache = files.tiktoken_cache({"TIKTOKEN_CACHE_DIR": str(tmp_path)})
    finding = files.vocabulary(cache, {"vocab.bpe": "a", "encoder.json": "b"}, unreachable)
    assert is_about(finding, "warning", f"not in {tmp_path}, and cannot be downloaded", "set TIKTOKEN_CACHE_DIR")
    assert "vocab.bpe as a" in finding.fix
    assert files.vocabulary(cache, {"vocab.bpe": "a"}, reachable).verdict == "ok"
    (tmp_path / "a").touch()
    assert files.vocabulary(cache, {"vocab.bpe": "a"}, unreachable).verdict == "ok"
    assert files.tiktoken_cache({"TIKTOKEN_CACHE_DIR": ""}) is None


def test_a_half_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "zstandard.py").write_text("raise ImportError('libzstd.so.1: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    error = software.import_error("zstandard")
    finding = software.package("zstandard", "reading .zst files", "0.25.0", "0.20", error)
    assert is_about(finding, "warning", "libzstd.so.1", "pip install --force-reinstall 'zstandard>=0.20'")
    assert software.package("numpy", "", "2.0", "", "broken").verdict == "problem"


def test_packages_that_are_missing_or_old() -> None:
    missing = software.package("wandb", "--wandb_log", None, "0.19", software.import_error("no-such-package"))
    assert is_about(missing, "ok", "not installed; --wandb_log needs it (pip install 'wandb>=0.19')", "")
    assert software.package("rustbpe", "", None, "", "").verdict == "problem"
    old = software.package("wandb", "--wandb_log", "0.9.4", "0.19", "")
    assert is_about(old, "warning", "0.9.4 is older than 0.19", "pip install -U 'wandb>=0.19'")
    assert software.package("wandb", "--wandb_log", "0.19.0", "0.19", "").verdict == "ok"


def test_one_thread() -> None:
    finding = hardware.threads(1, 8, {"OMP_NUM_THREADS": "1"})
    assert is_about(finding, "warning", "OMP_NUM_THREADS=1", "unset OMP_NUM_THREADS")
    assert is_about(hardware.threads(64, 2, {}), "warning", "64 for 2 usable cores", "OMP_NUM_THREADS=2")
    assert hardware.threads(8, 8, {}).verdict == hardware.threads(4, 8, {}).verdict == "ok"  # 2 threads a core


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    assert hardware.cores_allowed(16, tmp_path) == 16
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert hardware.cores_allowed(16, tmp_path) == 16
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert hardware.cores_allowed(16, tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    for quota, cores in (("-1", 16), ("400000", 4)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert hardware.cores_allowed(16, tmp_path) == cores


def test_an_old_or_another_c_library() -> None:
    assert is_about(software.glibc(("glibc", "2.17"), "Linux"), "problem", "2.17 is too old", "update the system")
    assert is_about(software.glibc(("", ""), "Linux"), "problem", "need glibc 2.28", "Alpine")
    assert software.glibc(("glibc", "2.28"), "Linux").verdict == software.glibc(("", ""), "Darwin").verdict == "ok"


def test_a_small_dev_shm() -> None:
    assert is_about(hardware.shared_memory(2**26), "warning", "64 MiB is too small", "--shm-size=8g")
    assert hardware.shared_memory(2**33).verdict == hardware.shared_memory(None).verdict == "ok"


@pytest.mark.parametrize(
    ("found", "environment", "verdict", "text", "fix"),
    [
        (Gpus(None, [], True, True), {}, "problem", "built for CPUs", "CUDA build"),
        (Gpus("12.8", [], True, True), {}, "problem", "finds no GPU", "update the driver"),
        (Gpus("12.8", [], True, True), {"CUDA_VISIBLE_DEVICES": ""}, "warning", "hides all GPUs", "unset"),
        (Gpus("12.8", [], False, True), {}, "problem", "no driver", "--gpus all"),
        (Gpus("12.8", [], False, False), {}, "warning", "there is no driver", "gigabytes"),
        (Gpus(None, [], False, False), {}, "ok", "uses the CPU", ""),
        (Gpus("12.8", ["NVIDIA H100"], True, True), {}, "ok", "NVIDIA H100 (CUDA 12.8)", ""),
        (Gpus(None, [], False, False, has_mps=True), {}, "ok", "mps", ""),
        (
            Gpus("13.0", ["Tesla V100"], True, True, too_old="Tesla V100 is too old; install another build"),
            {},
            "problem",
            "Tesla V100 is too old",
            "install another build",
        ),
    ],
)
def test_gpus_and_drivers(found: Gpus, environment: dict, verdict: str, text: str, fix: str) -> None:
    assert is_about(hardware.gpus(found, environment), verdict, text, fix)


def test_the_processor_and_its_dtype() -> None:
    finding = hardware.processor("flags\t: sse2 avx2 avx512f avx512_bf16\n", "AVX2")
    assert is_about(finding, "warning", "AVX2, AVX-512, AVX-512 BF16; PyTorch uses AVX2", "ATEN_CPU_CAPABILITY")
    assert is_about(hardware.processor("flags\t: sse2\n", "DEFAULT"), "warning", "slow", "AVX2")
    assert is_about(hardware.dtype("float32", "cpu", False), "ok", "float32 on cpu: bfloat16 is faster only", "")
    assert is_about(hardware.dtype("bfloat16", "cuda:0", False), "ok", "this GPU multiplies bfloat16 fast", "")
    assert is_about(hardware.attention({"flash": "no kernel"}), "warning", "flash: no kernel", "")
    assert is_about(hardware.memory(10**9), "warning", "1.0 GB free", "gpt2 plan")


def test_a_check_that_fails_does_not_hide_the_others() -> None:
    assert is_about(guarded("x", lambda: 1 // 0), "warning", "ZeroDivisionError", "")


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    findings = [ok("Python", "3.12 " + "word " * 40), problem("GPU", "none", "buy one " * 20), warning("x", "")]
    text = described(findings, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.endswith("1 problem and 1 warning")


def test_the_command_has_a_status_and_json(gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [ok("Python", "3.12"), warning("hub", "slow", "wait")]
    monkeypatch.setattr(examine, "examine", lambda quick: results)
    status, out, _ = gpt2_command("doctor", "--json")
    assert status == 0 and json.loads(out)["checks"][1]["fix"] == "wait"
    results.append(problem("GPU", "broken", "repair it"))
    status, out, _ = gpt2_command("doctor")
    assert status == 1 and "fix: repair it" in out
    assert "1 if there is one" in " ".join((doctor.__doc__ or "").split())


def test_a_quick_examination_of_this_machine(closed_port: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": closed_port,
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
        "https_proxy": closed_port,
        "OMP_NUM_THREADS": "1",
        "PATH": str(tmp_path),
    }
    line = [sys.executable, "-m", "gpt2", "doctor", "--quick", "--json"]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.stderr == ""
    assert {"Python", "PyTorch", "GPU", "CPU", "threads", "dtype", "attention", "memory", "packages"} <= found.keys()
    assert {"compiler", "hub", "GPT-2 vocabulary"} <= {n for n, f in found.items() if f["verdict"] == "warning"}
    assert not any("this check failed" in check["found"] for check in found.values())


def test_a_gpu_that_is_too_old_for_this_pytorch_is_a_problem_and_the_rest_is_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    found = {finding.name: finding for finding in examine.of_torch({})}
    assert is_about(found["GPU"], "problem", "Tesla V100-SXM2-16GB has compute capability 7.0", "cu126")
    assert "on cpu" in found["dtype"].found
