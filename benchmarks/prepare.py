"""Compare the speed of `gpt2 prepare` with that of tiktoken on one core and of nanoGPT's and build-nanogpt's scripts.

    python benchmarks/prepare.py docs.jsonl.xz --nanogpt ~/nanoGPT --build_nanogpt ~/build-nanogpt

Every program reads the same compressed JSON lines and writes token files. In each round the programs run one after
the other, each in its own process. Memory is that of the process and all its children, with shared pages counted
once. The scripts of nanoGPT and build-nanogpt run with two changes: they read the given file instead of downloading a
dataset, and nanoGPT's writes one batch of documents instead of 1,024, for which a small text has too few documents.
They need the package datasets of Hugging Face.
"""

import argparse
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOCAL_DATASETS = """
import runpy, sys, datasets
load, rows, sys.argv = datasets.load_dataset, sys.argv[1], sys.argv[2:]
def load_dataset(_, split=None, **options):
    return load("json", data_files={"train": rows}, split=split)
datasets.load_dataset = load_dataset
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A program that runs a script with the rows of a file in place of the dataset that it would download."""
TIKTOKEN = """
import json, lzma, sys, numpy as np, tiktoken
encoding = tiktoken.get_encoding("gpt2")
with lzma.open(sys.argv[1]) as rows, open("train.bin", "wb") as out:
    for row in rows:
        ids = encoding.encode_ordinary(json.loads(row)["text"])
        ids.append(encoding.eot_token)
        out.write(np.array(ids, dtype=np.uint16).tobytes())
"""


def commands(rows: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each program by name. Each must run in an empty folder."""
    prepare = [sys.executable, "-m", "gpt2", "prepare", str(rows), "--out=out"]
    with_local_data = [sys.executable, "-c", LOCAL_DATASETS, str(rows)]
    found = {
        "tiktoken, one core": [sys.executable, "-c", TIKTOKEN, str(rows)],
        "gpt2 prepare, one worker": [*prepare, "--workers=1"],
        "gpt2 prepare": prepare,
    }
    if arguments.nanogpt:
        script = (arguments.nanogpt / "data" / "openwebtext" / "prepare.py").read_text()
        assert script.count("total_batches = 1024") == 1
        script = script.replace("total_batches = 1024", "total_batches = 1")
        found["nanoGPT"] = [*with_local_data, copied(script, rows, "n")]
    if arguments.build_nanogpt:
        script = (arguments.build_nanogpt / "fineweb.py").read_text()
        found["build-nanogpt"] = [*with_local_data, copied(script, rows, "b")]
    return {name: command for name, command in found.items() if not arguments.only or name in arguments.only}


def copied(script: str, rows: Path, name: str) -> str:
    """Copy a script into a folder of its own, because it writes next to itself; return the path of the copy."""
    path = rows.parent / name / "script.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    return str(path)


def measure(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command; return its seconds, and the peak memory in bytes of it and all processes that it starts."""
    folder.mkdir()
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"HF_HOME": str(folder / "hf")},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("w"),
        start_new_session=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}: {(folder / 'stderr.txt').read_text()[-2000:]}")
    return seconds, peak


def memory(session: int) -> int:
    """Return the memory in bytes of all processes of a session, with each shared page divided among its users."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[3]) == session:
                total += int((path / "smaps_rollup").read_text().split("Pss:")[1].split()[0]) * 1024
        except (OSError, IndexError, ValueError):
            continue  # the process has ended
    return total


def write_rows(source: Path, megabytes: float, target: Path) -> int:
    """Write the first megabytes of text of a .jsonl.xz to `target`, and return the number of bytes of text.

    A shorter text is repeated.
    """
    size = 0
    with lzma.open(target, "wt", preset=1) as out:
        while size < megabytes * 1e6:
            with lzma.open(source, "rt") as rows:
                for row in rows:
                    text = json.loads(row)["text"]
                    out.write(json.dumps({"text": text}) + "\n")
                    size += len(text.encode())
                    if size >= megabytes * 1e6:
                        break
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="documents as .jsonl.xz, with the field text")
    parser.add_argument("--megabytes", type=float, default=200, help="amount of text to prepare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--build_nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--only", nargs="*", help="names of the programs to run; default: all")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()

    results: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows.jsonl.xz"
        size = write_rows(arguments.text, arguments.megabytes, rows)
        for number in range(arguments.rounds):
            for name, command in commands(rows, arguments).items():
                folder = Path(temporary) / f"round{number}"
                results.setdefault(name, []).append(measure(command, folder))
                shutil.rmtree(folder)
                print(f"round {number + 1}: {name}: {results[name][-1][0]:.1f} s", file=sys.stderr, flush=True)

    table = {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "fastest": min(seconds for seconds, _ in runs),
            "slowest": max(seconds for seconds, _ in runs),
            "peak_bytes": max(peak for _, peak in runs),
        }
        for name, runs in results.items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    base = table.get("tiktoken, one core", next(iter(table.values())))["seconds"]
    print(f"{size / 1e6:,.0f} MB of text as .jsonl.xz; {machine}; medians of {arguments.rounds} rounds\n")
    print(
        "| | seconds (spread) | MB of text/s | relative to one-core tiktoken | peak memory |\n|---|---|---|---|---|"
    )
    for name, row in table.items():
        seconds = row["seconds"]
        spread = f"{seconds:.1f} ({row['fastest']:.1f}–{row['slowest']:.1f})"
        rate = f"{size / 1e6 / seconds:.1f} | {base / seconds:.2f}×"
        print(f"| {name} | {spread} | {rate} | {row['peak_bytes'] / 1e6:,.0f} MB |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "bytes": size, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
