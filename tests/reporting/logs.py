"""Run folders with logs that no run needs to be made for."""

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = "</pre><script>document.title = 'owned'</script><img src=x onerror=alert(1)> & \"'"


def write_log(folder: Path, records: list[dict[str, Any]], settings: str = "") -> Path:
    """A run folder with these records, and `settings` as its config.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if settings:
        (folder / "config.toml").write_text(settings)
    return folder


def long_run(steps: int, every: int = 50) -> list[dict[str, Any]]:
    """The records of a run of so many updates of 1000 tokens: evaluations, HellaSwag and samples `every` so many."""
    rng, now = random.Random(0), 1.8e9
    records: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "time": now, "tokens": 0, "device": f"cpu {HOSTILE}", "torch": "2.13.0"}
    ]
    for step in range(steps + 1):
        now += 0.5
        about = {"step": step, "time": now}
        loss = 2 + 3 * math.exp(-step / (steps / 5)) + rng.gauss(0, 0.05)
        if step:
            speed = {"tokens": step * 1000, "tokens_per_second": 2000.0 + rng.gauss(0, 50), "mfu": 0.31}
            seconds = {"data": 0.01, "forward": 0.15, "backward": 0.25, "reduce": 0.01, "optimizer": 0.03}
            course = {"loss": loss, "lr": 1e-3 * (1 - step / steps / 2), "grad_norm": 1 + rng.random()}
            records.append({"event": "train", **about, **course, **speed, "seconds": seconds})
        if step % every == 0:
            records.append({"event": "eval", **about, "train_loss": loss, "val_loss": loss + 0.1, "seconds": 0.4})
            records.append({"event": "eval", **about, "acc": 0.26, "acc_norm": 0.25 + step / steps / 20})
            records.append({"event": "sample", **about, "text": f"sample at {step}: {HOSTILE}" + "long " * 2000})
    return records
