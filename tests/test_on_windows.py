"""The program needs nothing that Windows lacks, and uses what Windows has instead.

`on_windows.py` imitates Windows, as far as Linux can. It cannot replace a test on Windows.
"""

import subprocess
import sys
from pathlib import Path

from processes import environment

from gpt2.files import manifest_problem
from gpt2.formats.run_folder import folder_of, saved_steps
from gpt2.runlog.records import read_log

SMALL = "--batch_size=2 --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 --device=cpu --dtype=float32"


def test_a_dataset_a_run_its_resume_and_a_sample_on_windows(text: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text)
    settings = "--dataset=data --out_dir=run --eval_interval=1 --eval_iters=1 --keep_checkpoints=1"
    command_line = (
        "prepare text.txt --tokenizer=char --out=data -- "
        f"train {settings} {SMALL} --compile=False --max_iters=2 -- "
        "train --init_from=resume --out_dir=run --max_iters=3 --async_checkpoint=True -- "
        "sample run --max_new_tokens=4 -- "
        "prepare text.txt --tokenizer=byte --out=data --overwrite"
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "on_windows.py"), *command_line.split()],
        cwd=tmp_path,
        env=environment("windows"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
    assert [r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train"] == [1, 2, 3]
    assert saved_steps(tmp_path / "run") == [3]
    assert manifest_problem(folder_of(tmp_path / "run", 3)) is None
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["dataset.json", "train.bin", "val.bin"]
