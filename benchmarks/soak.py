"""Measure the memory of a run with a log of a million records while its page is open, and of its report and plot.

    python benchmarks/soak.py data/shakespeare_char --records 1000000 --minutes 60

A short run gets a log as if it had made that number of optimizer steps. It is then resumed with `--ui`, and its page
is requested every second. The benchmark prints the memory (resident set) of the run after the first minute, at its
peak and at the end. It then prints the memory and the time of `gpt2 report` and `gpt2 plot` on the log. Linux only.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from gpt2 import checkpoint
from gpt2.files import write_manifest
from gpt2.formats.run_folder import folder_of, saved_steps

SHAPE = [
    "--n_layer=2", "--n_head=2", "--n_embd=64", "--batch_size=8", "--block_size=64", "--device=cpu",
    "--dtype=float32", "--compile=False", "--eval_iters=4", "--log_interval=100",
]  # fmt: skip


def age(run: Path, records: int) -> None:
    """Give a run the log and the step count of a run that made `records` optimizer steps."""
    old = folder_of(run, saved_steps(run)[0])
    state = json.loads((old / "state.json").read_text())
    state |= {"step": records, "tokens": records * 512, "best_step": None, "best_val_loss": None}
    (old / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    (old / "manifest.json").unlink()
    write_manifest(old)
    old.rename(folder_of(run, records))
    rng, now = random.Random(0), time.time() - records
    with (run / "log.jsonl").open("w") as log:

        def write(event: str, step: int, **values: object) -> None:
            log.write(json.dumps({"event": event, "step": step, "time": round(now + step, 3), **values}) + "\n")

        write("start", 0, tokens=0, device="cpu (1 threads)", data={"train": "x", "val": "y"})
        for step in range(1, records + 1):
            loss = 2 + 8 * math.exp(-step / (records / 20)) + rng.gauss(0, 0.05)
            seconds = {"data": 0.001, "forward": 0.01, "backward": 0.02, "reduce": 0.0, "optimizer": 0.005}
            figures = {"loss": loss, "lr": 6e-4, "grad_norm": rng.lognormvariate(0, 0.3), "tokens": step * 512}
            rates = {"tokens_per_second": 12_000 + rng.gauss(0, 400), "mfu": 0.31, "memory": 500_000_000}
            write("train", step, **figures, **rates, seconds=seconds)
            if step % 2000 == 0:
                write("eval", step, train_loss=loss, val_loss=loss + 0.1, seconds=1.0)
                write("sample", step, text="a text that the model wrote " * 10, seconds=0.5)
    settings = re.sub(r"(?m)^max_iters = .*$", f"max_iters = {10 * records}", (run / "config.toml").read_text())
    (run / "config.toml").write_text(settings)


def resident(process: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(run: Path, minutes: float, port: int) -> list[tuple[float, float]]:
    """Resume the run and request its page every second; return the seconds and the memory in MB at each request."""
    command = [sys.executable, "-m", "gpt2", "train", "--init_from=resume", f"--out_dir={run}", "--ui"]
    process = subprocess.Popen([*command, f"--ui_port={port}"], stderr=subprocess.DEVNULL)
    found, began, answers = [], time.monotonic(), 0
    try:
        while time.monotonic() - began < 60 * minutes:
            time.sleep(1)
            assert process.poll() is None, f"the run ended with {process.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/body", timeout=60) as answer:
                    answers += len(answer.read()) > 0
            except OSError:
                pass  # the server has not started yet
            found.append((time.monotonic() - began, resident(process.pid)))
            if len(found) % 300 == 0:
                print(f"{found[-1][0]:6.0f} s  {found[-1][1]:7.1f} MB", flush=True)
    finally:
        process.terminate()
        status = process.wait()
    print(f"{answers:,} pages served; the run ended with status {status}")
    return found


def command(*arguments: str) -> tuple[float, float]:
    """Run a command of `gpt2`, and return its seconds and its peak memory in MB."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "gpt2", *arguments], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{arguments} ended with {status}"
    return time.monotonic() - began, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of a prepared dataset")
    parser.add_argument("--records", type=int, default=1_000_000, help="number of steps in the log")
    parser.add_argument("--minutes", type=float, default=60, help="duration of the resumed run")
    parser.add_argument("--port", type=int, default=18_765, help="port of the page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = [sys.executable, "-m", "gpt2", "train", f"--dataset={given.dataset}", f"--out_dir={run}"]
        subprocess.run([*train, *SHAPE, "--max_iters=2"], check=True, stderr=subprocess.DEVNULL)
        age(run, given.records)
        assert checkpoint.latest(run, print) == folder_of(run, given.records)
        size = (run / "log.jsonl").stat().st_size / 1e6
        print(f"a log of {given.records:,} steps, {size:.0f} MB")
        if given.minutes:
            memory = soak(run, given.minutes, given.port)
            settled = [mb for second, mb in memory if second >= min(60, 30 * given.minutes)]
            first, most, last = settled[0], max(settled), settled[-1]
            print(f"memory in MB: {first:.1f} after a minute, {most:.1f} at the peak, {last:.1f} at the end")
        for arguments in (
            ["report", str(run), f"--out={folder}/x.html"],
            ["plot", str(run), f"--out={folder}/x.png"],
        ):
            seconds, mb = command(*arguments)
            print(f"gpt2 {arguments[0]}: {seconds:.1f} s, {mb:.0f} MB")


if __name__ == "__main__":
    main()
