"""The packages of the trackers themselves, as far as they are installed, without a network."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import wait_for_step

from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.records import read_log
from gpt2.runlog.trackers import numbers
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train
from gpt2.training.recipes import dump_toml

PACKAGES = {"wandb_log": "wandb", "trackio_log": "trackio", "tensorboard_log": "tensorboard"}

Curves = dict[tuple[int, str], float]
"""Values by step and name."""


def curves_of(rows: Iterator[tuple[int, dict[str, float]]]) -> Curves:
    """The values of rows, of which no two may say different things."""
    found: Curves = {}
    for step, values in rows:
        for name, value in values.items():
            assert found.setdefault((step, name), value) == value, (step, name)
    return found


def logged(run: Path) -> Curves:
    return curves_of((r["step"], numbers(r["event"], r)) for r in read_log(run))


def test_trackers_have_what_the_log_has(dataset: Path, tmp_path: Path) -> None:
    """All in one run, which SIGTERM ends and which is resumed, as without trackers.

    The processes have no network: every request goes to a port where nobody listens.
    """
    missing = [package for package in PACKAGES.values() if importlib.util.find_spec(package) is None]
    config = TrainConfig(
        out_dir=str(tmp_path / "run"),
        dataset=str(dataset),
        **{"n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 2, "block_size": 16},
        **{"device": "cpu", "dtype": "float32", "compile": False},
        **{"max_iters": 100_000, "lr_decay_iters": 1000, "eval_interval": 100, "eval_iters": 1, "log_interval": 5},
        **{"sample_interval": 50, "sample_tokens": 5, "sample_start": "the"},
        **{switch: package not in missing for switch, package in PACKAGES.items()},
    )
    (tmp_path / "recipe.toml").write_text(dump_toml(config.as_dict()))
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}

    def ended(flags: list[str], stop: bool) -> tuple[int, str, str]:
        """Status and what was printed."""
        command = [sys.executable, "-m", "gpt2", "train", str(tmp_path / "recipe.toml"), "--init_from=auto", "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*command, *flags], env=environment, **pipes)
        try:
            if stop:
                wait_for_step(config, 120, process)
                process.send_signal(signal.SIGTERM)
            return *process.communicate(timeout=120), process.wait()
        finally:
            process.kill()

    run = tmp_path / "run"
    for stop, status in ((True, 75), (False, 0)):
        flags = [] if stop else [f"--max_iters={saved_steps(run)[0] + 60}"]
        output, errors, returned = ended(flags, stop)
        assert returned == status, errors
        result = json.loads(output)  # nobody else writes to standard output
        assert (result["stopped"], result["step"]) == (stop, saved_steps(run)[0])
        assert "failed" not in errors
        assert "Traceback" not in errors
    expected = logged(run), [r["step"] for r in read_log(run) if r["event"] == "sample"]
    if "tensorboard" not in missing:
        curves, texts = tensorboard_events(run)
        assert (curves, list(texts)) == (in_float32(expected[0]), expected[1])
        assert all(text.startswith("    the") for text in texts.values())
        assert {path.suffix for path in (run / "tensorboard").iterdir()} == {".gpt2"}
    if "trackio" not in missing:
        assert trackio_runs(run, environment) == expected
    if "wandb" not in missing:
        assert wandb_runs(run, tmp_path) == expected
        assert not list(tmp_path.glob("wandb/**/output.log"))  # printing does not go through wandb
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; the rest is as it should be")


def tensorboard_events(run: Path) -> tuple[Curves, dict[int, str]]:
    """The scalars and the texts that TensorBoard finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    rows = ((e.step, {name: e.value}) for name in events.Tags()["scalars"] for e in events.Scalars(name))
    texts = events.Tensors("sample/text_summary") if events.Tags()["tensors"] else []
    return curves_of(rows), {e.step: e.tensor_proto.string_val[0].decode() for e in texts}


def in_float32(curves: Curves) -> Curves:
    return {where: np.float32(value) for where, value in curves.items()}


def trackio_runs(run: Path, environment: dict[str, str]) -> tuple[Curves, list[int]]:
    """The values, and the steps of the samples, that trackio has of the two parts of the run."""
    program = """if True:
        import json
        from trackio import Api
        from trackio.sqlite_storage import SQLiteStorage

        runs = list(Api().runs("gpt2"))
        logs = [[r.name, SQLiteStorage.get_logs("gpt2", r.name, run_id=r.id)] for r in runs]
        print(json.dumps([logs, [r.config["n_embd"] for r in runs]]))
    """
    read = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, timeout=120
    )
    runs, widths = json.loads(read.stdout)
    assert [name for name, _ in runs] == [str(run)] * 2
    assert widths == [8, 8]
    rows = [(row.pop("step"), row) for _, log in runs for row in log]
    values = ((step, {k: v for k, v in row.items() if k not in ("sample", "timestamp")}) for step, row in rows)
    return curves_of(values), [step for step, row in rows if "sample" in row]


def wandb_runs(run: Path, folder: Path) -> tuple[Curves, list[int]]:
    """The values, and the steps of the samples, that wandb has of the two parts of the run."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    assert len(files) == 2
    rows, texts = [], []
    for file in files:
        records = list(wandb_records(file))
        about = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        assert (about.project, about.display_name) == ("gpt2", str(run))
        assert [json.loads(c.value_json) for c in about.config.update if c.key == "n_embd"] == [8]
        history = [{i.key or i.nested_key[0]: i.value_json for i in r.history.item} for r in records]
        for row in filter(None, history):
            step = int(row["_step"])
            rows.append((step, {k: json.loads(v) for k, v in row.items() if k != "sample" and k[0] != "_"}))
            texts += [step] if "sample" in row else []
    return curves_of(rows), texts


def wandb_records(path: Path) -> Iterator:
    """The records of a `.wandb` file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, data = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:  # nothing begins so near to the end of a block
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            record = Record()
            record.ParseFromString(data)
            data = b""
            yield record


def test_tensorboard_forgets_what_a_resume_does_again(tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    train(tiny(max_iters=15, checkpoint_interval=10, eval_interval=5, tensorboard_log=True))
    shutil.rmtree(run / "checkpoints" / "step_0000015")
    before = logged(run)
    train(tiny(max_iters=20, eval_interval=5, tensorboard_log=True, init_from="resume", learning_rate=3e-3))
    assert logged(run)[15, "loss"] != before[15, "loss"]
    assert tensorboard_events(run)[0] == in_float32(logged(run))
