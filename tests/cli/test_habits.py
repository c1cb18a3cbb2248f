"""What users of nanoGPT, llm.c, build-nanogpt and run_clm type works, or is answered with the right command."""

import json
import shlex
from pathlib import Path

import pytest

from gpt2.cli import make_app
from gpt2.cli.habits import BENCH, TRAIN
from gpt2.cli.translate import BENCHMARKS, translated
from gpt2.data.corpora import CORPORA
from gpt2.errors import UserError
from gpt2.training.loop import train

SMALL = (
    "--batch_size=2 --block_size=8 --total_batch_size=16 --n_layer=1 --n_head=1 --n_embd=8 --max_iters=1 "
    "--eval_interval=0 --eval_iters=1 --hellaswag_interval=0 --sample_interval=0 --warmup_iters=0 "
    "--init_from=scratch --device=cpu --dtype=float32 --compile=False --overwrite"
)
"""Settings that follow a command line, with which it trains for one step."""

MACBOOK = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
"""The file and options of nanoGPT's README for a computer without a GPU."""
PYTHON_124M = (
    '--input_bin "fineweb10B/fineweb_train_*.bin" --input_val_bin "fineweb10B/fineweb_val_*.bin" '
    "--val_loss_every 250 --sample_every 0 --output_dir pylog_gpt2_124M --write_tensors 0 --model d12 "
    "--batch_size 32 --sequence_length 1024 --total_batch_size 524288 --dtype bfloat16 --compile 1 --tensorcores 1 "
    "--flash 1 --num_iterations 18865 --weight_decay 0.1 --zero_stage 1 --learning_rate 0.0006 --warmup_iters 700 "
    "--learning_rate_decay_frac 0.0 --overfit_single_batch 0"
)
"""The options of llm.c's scripts/pyrun_gpt2_124M.sh."""
PYTHON_124M_HERE = (
    "'--dataset=fineweb10B/fineweb_*_*.bin' --eval_interval=250 --sample_interval=0 --out_dir=pylog_gpt2_124M "
    "--write_tensors=0 --model d12 --batch_size 32 --block_size=1024 --total_batch_size 524288 --dtype bfloat16 "
    "--compile=1 --tf32=True --flash=1 --max_iters=18865 --weight_decay 0.1 --zero_stage 1 --learning_rate 0.0006 "
    "--warmup_iters 700 --min_lr=0"
)
CUDA_124M = (
    '-i "fineweb10B/fineweb_train_*.bin" -j "fineweb10B/fineweb_val_*.bin" -o log124M -v 250 -s 20000 -g 144 -h 1 '
    '-b 64 -t 1024 -d 524288 -r 0 -z 1 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -y 1 -e "d12"'
)
"""The options of llm.c's scripts/run_gpt2_124M.sh."""
CUDA_124M_HERE = (
    "'--dataset=fineweb10B/fineweb_*_*.bin' --out_dir=log124M --eval_interval=250 --sample_interval=20000 "
    "--sample_tokens=144 --hellaswag_interval=250 --batch_size=64 --block_size=1024 --total_batch_size=524288 "
    "--zero_stage=1 --weight_decay=0.1 --learning_rate=0.0006 --min_lr=0 --warmup_iters=700 "
    "--checkpoint_interval=5000 --init_from=auto --model=d12"
)
CUDA_350M = (
    '-i "fineweb100B/fineweb_train_*.bin" -j "fineweb100B/fineweb_val_*.bin" -o log350M -v 250 -s 100000 -g 144 -h 1 '
    '-b 64 -t 1024 -d 524288 -r 0 -z 1 -c 0.1 -l 0.0003 -q 0.0 -u 700 -n 2000 -x 60000 -y 1 -e "d24"'
)
CUDA_774M = CUDA_350M.replace("-l 0.0003", "-l 0.00025").replace("-x 60000", "-x 286102").replace("d24", "d36")
CUDA_1558M = (
    '-i "edu_fineweb100B/edu_fineweb_train_*.bin" -j "edu_fineweb100B/edu_fineweb_val_*.bin" -o log1558M -v 250 '
    '-s 300000 -g 384 -h 1 -b 16 -t 1024 -d 1048576 -r 0 -z 1 -c 0.1 -k "cosine" -l 0.0006 -q 0.1 -u 700 -n 2000 '
    '-x 32000 -ge 1 -y 1 -e "d48"'
)
CUDA_1558M_HERE = (
    "'--dataset=edu_fineweb100B/edu_fineweb_*_*.bin' --out_dir=log1558M --eval_interval=250 --sample_interval=300000 "
    "--sample_tokens=384 --hellaswag_interval=250 --batch_size=16 --block_size=1024 --total_batch_size=1048576 "
    "--zero_stage=1 --weight_decay=0.1 --lr_schedule=cosine --learning_rate=0.0006 --min_lr=6e-05 --warmup_iters=700 "
    "--checkpoint_interval=2000 --max_iters=32000 --init_from=auto --model=d48"
)
GPT3_125M = (
    '-i "fineweb100B/fineweb_train_*.bin" -j "fineweb100B/fineweb_val_*.bin" -o log125M -v 250 -s 20000 -g 144 -h 1 '
    "-b 32 -t 2048 -d 524288 -r 0 -z 1 -c 0.1 -l 0.0006 -q 0.1 -u 700 -n 10000 -nk 5 -nm 50000 -ge 1 -sl 7.0 -sg 7.0 "
    '-y 1 -x 572204 -e "gpt3:c768"'
)

WORKS = [
    # nanoGPT's README
    "train config/train_shakespeare_char.py",
    f"train {MACBOOK}",
    "train config/train_gpt2.py",
    "train config/eval_gpt2.py",
    "train config/finetune_shakespeare.py",
    "train --batch_size=32 --compile=False",
    "bench --profile=False --real_data=False --steps=2 --warmup_iters=0",
    # llm.c
    "train --write_tensors=0 --num_iterations=50 --sequence_length=1024 --compile=1 --tensorcores=1 --dtype=bfloat16",
    f"train {PYTHON_124M}",
    *(f"train {options}" for options in (CUDA_124M, CUDA_350M, CUDA_774M, CUDA_1558M)),
    # build-nanogpt's constants
    "train --total_batch_size=524288 --B=64 --T=1024 --max_lr=6e-4 --min_lr=6e-5 --warmup_steps=0 --max_steps=19073 "
    "--use_compile=False",
    # run_clm
    "train --model_name_or_path gpt2 --per_device_train_batch_size 8 --num_train_epochs 3 --do_train --fp16 False "
    "--gradient_checkpointing --warmup_steps 0 --save_steps 500 --logging_steps 10 --eval_steps 500 --output_dir o",
]
"""Command lines of other programs that work after `gpt2`."""

ANSWERED = [
    # nanoGPT's README
    ("python data/shakespeare_char/prepare.py", "gpt2 prepare shakespeare_char"),
    ("prepare data/shakespeare_char/prepare.py", "gpt2 prepare shakespeare_char"),
    ("python data/openwebtext/prepare.py", "gpt2 prepare openwebtext"),
    (f"python train.py {MACBOOK}", f"gpt2 train {MACBOOK}"),
    ("python data/shakespeare/prepare.py", "gpt2 prepare shakespeare"),
    ("python train.py config/train_shakespeare_char.py", "gpt2 train config/train_shakespeare_char.py"),
    ("train.py --batch_size=32 --compile=False", "gpt2 train --batch_size=32 --compile=False"),
    ("python sample.py --out_dir=out-shakespeare-char", "gpt2 sample out-shakespeare-char"),
    ("python sample.py --out_dir=out-x --device=cpu", "gpt2 sample out-x --device=cpu"),
    ("sample.py --out_dir=out-shakespeare", "gpt2 sample out-shakespeare"),
    (
        "python sample.py --init_from=gpt2-xl --start='What is the answer?' --num_samples=5 --max_new_tokens=100",
        "gpt2 sample gpt2-xl '--start=What is the answer?' --num_samples=5 --max_new_tokens=100",
    ),
    ("python sample.py --start=FILE:prompt.txt", "gpt2 sample RUN --start=FILE:prompt.txt"),
    ("python sample.py", "gpt2 sample RUN"),
    ("sample", "gpt2 sample RUN"),
    ("sample --start=FILE:prompt.txt", "gpt2 sample RUN --start=FILE:prompt.txt"),
    ("sample init_from=resume --seed=1", "gpt2 sample out --seed=1"),
    ("sample out --out_dir=out2", "gpt2 sample out, or gpt2 sample out2"),
    ("train init_from=resume", "gpt2 train --init_from=resume"),
    ("train num_iterations=5", "gpt2 train --max_iters=5"),
    ("train config/train_shakespeare_chars.py", "gpt2 train shakespeare_char"),
    ("python train.py config/eval_gpt2.py", "gpt2 train config/eval_gpt2.py"),
    ("python train.py config/eval_gpt2_medium.py", "gpt2 train eval_gpt2-medium"),
    ("python train.py config/eval_gpt2_large.py", "gpt2 train eval_gpt2-large"),
    ("train config/eval_gpt2_xl.py", "gpt2 train eval_gpt2-xl"),
    ("python train.py config/finetune_shakespeare.py", "gpt2 train config/finetune_shakespeare.py"),
    (
        "NCCL_IB_DISABLE=1 torchrun --nproc_per_node=8 --nnodes=2 train.py",
        "NCCL_IB_DISABLE=1 torchrun --nproc_per_node=8 --nnodes=2 -m gpt2 train",
    ),
    (
        "torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py",
        "gpt2 train config/train_gpt2.py --nproc=8",
    ),
    ("torchrun --standalone --nproc_per_node=4 train.py", "gpt2 train --nproc=4"),
    (
        "torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 --master_addr=1.2.3.4 --master_port=1234 train.py",
        "torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 --master_addr=1.2.3.4 --master_port=1234 -m gpt2 train",
    ),
    ("bench", "name what to measure (train, sample, data or serve), as above"),
    ("python bench.py", "gpt2 bench train"),
    ("python bench.py --profile=True", "gpt2 bench train --trace=trace.json"),
    (
        "bench --real_data=True",
        "give --dataset, whose tokens are then used; the rest of the command: gpt2 bench train",
    ),
    # llm.c's README, scripts and the head of its train_gpt2.py
    ("./dev/download_starter_pack.sh", "gpt2 export llmc gpt2 starter_pack"),
    ("chmod u+x ./dev/download_starter_pack.sh", "gpt2 export llmc gpt2 starter_pack"),
    ("make train_gpt2cu USE_CUDNN=1", "gpt2 train"),
    ("make test_gpt2cu PRECISION=FP32", "gpt2 validate gpt2"),
    ("make train_gpt2fp32cu", "gpt2 train"),
    ("./train_gpt2fp32cu", "gpt2 train"),
    ("OMP_NUM_THREADS=8 ./train_gpt2", "OMP_NUM_THREADS=8 gpt2 train"),
    ("./test_gpt2", "gpt2 validate gpt2"),
    ("./test_gpt2cu", "gpt2 validate gpt2"),
    ("python profile_gpt2cu.py", "gpt2 bench train --trace=trace.json"),
    ("python dev/data/tinyshakespeare.py", "gpt2 prepare shakespeare --format=llmc"),
    ("python tinystories.py", "gpt2 prepare tinystories --format=llmc"),
    ("python dev/data/fineweb.py --version 10B", "gpt2 prepare fineweb --format=llmc"),
    ("python dev/data/fineweb.py --type=edu -v 100B", "gpt2 prepare fineweb-edu-100B --format=llmc"),
    ("dev/data/edu_fineweb.sh 100", "gpt2 prepare fineweb-edu-100B --format=llmc"),
    ("./fineweb.sh", "gpt2 prepare fineweb-100B --format=llmc"),
    ("python dev/data/hellaswag.py", "gpt2 eval hellaswag gpt2"),
    ("python dev/data/mmlu.py", "gpt2 eval harness gpt2 --tasks=mmlu"),
    ("python dev/eval/export_hf.py", "gpt2 export hf MODEL FOLDER"),
    (
        "python export_hf.py --input m.bin --output=hf -d float32",
        "gpt2 export hf m.bin hf --dtype=float32",
    ),
    ("python export_hf.py -i 'my model.bin' -o hf", "gpt2 export hf 'my model.bin' hf"),
    ("./dev/eval/run_eval.sh", "gpt2 eval harness MODEL --tasks=openllm --output_path=results"),
    ("./dev/eval/run_eval.sh folder", "gpt2 eval harness folder --tasks=openllm --output_path=results"),
    ("./dev/eval/run_eval.sh folder out", "gpt2 eval harness folder --tasks=openllm --output_path=out"),
    ("./scripts/run_gpt2_124M.sh", "gpt2 train gpt2 --dataset=fineweb --max_iters=18865"),
    ("bash scripts/pyrun_gpt2_124M.sh", "gpt2 train gpt2 --dataset=fineweb --max_iters=18865"),
    ("./scripts/multi_node/run_gpt2_124M_mpi.sh", "torchrun --nnodes=… -m gpt2 train … (launch/)"),
    ("sbatch scripts/multi_node/run_gpt2_124M_fs.sbatch", "torchrun --nnodes=… -m gpt2 train … (launch/)"),
    ("mpirun -np 16 --host node1:8,node2:8 ./train_gptcu", "torchrun --nnodes=… -m gpt2 train … (launch/)"),
    ("python train_gpt2.py", "gpt2 train"),
    (
        f"torchrun --standalone --nproc_per_node=8 train_gpt2.py {PYTHON_124M}",
        f"gpt2 train {PYTHON_124M_HERE} --nproc=8",
    ),
    (f"./train_gpt2cu {CUDA_124M}", f"gpt2 train {CUDA_124M_HERE}"),
    (f"mpirun -np 8 ./train_gpt2cu {CUDA_124M}", f"gpt2 train {CUDA_124M_HERE} --nproc=8"),
    (f"mpirun -np 8 ./train_gpt2cu {CUDA_1558M}", f"gpt2 train {CUDA_1558M_HERE} --nproc=8"),
    (f"mpirun -np 8 ./train_gpt2cu {GPT3_125M}", "-e gpt3:c768 of llm.c: give the shape of the model"),
    (
        "train -i data/TinyStories -v 250 -s 250 -g 144 -l 3e-5 -o stories0.log",
        "give --dataset=, a folder or pattern of files whose names contain train and val; the rest of the command: "
        "gpt2 train --eval_interval=250 --sample_interval=250 --sample_tokens=144 --learning_rate=3e-5 "
        "--out_dir=stories0.log",
    ),
    ("train --input_bin=tiny_shakespeare_val.bin", "give --dataset=, a folder or pattern"),
    ("train --inference_only=1 --num_iterations=50", "gpt2 train --max_iters=50"),
    ("train --learning_rate_decay_frac=0.1", "--min_lr as 0.1 times the learning rate"),
    ("train -z 2", "--parallel=fsdp"),
    ("train -pi fs -pf /tmp", "torchrun --nnodes=… -m gpt2 train … (launch/)"),
    ("train -r 1", "--activation_checkpointing"),
    ("train -nm 5 -sl 7 -e gpt3:c768 -pn 2 -w 0", "--keep_checkpoints=0"),
    ("train -e m.bin -y 1", "start with --init_from=m.bin, and continue with --init_from=resume"),
    # build-nanogpt
    ("python fineweb.py", "gpt2 prepare fineweb-edu --format=npy --out=edu_fineweb10B"),
    ("python hellaswag.py --model_type gpt2-xl -d cuda", "gpt2 eval hellaswag gpt2-xl --device=cuda"),
    ("torchrun --standalone --nproc_per_node=8 train_gpt2.py", "gpt2 train --nproc=8"),
    ("train --grad_accum_steps=4 --nproc=2", "--gradient_accumulation_steps, which counts"),
    # run_clm
    ("python run_clm.py --do_train --bf16 --output_dir=o", "gpt2 train --dtype=bfloat16 --out_dir=o"),
    ("train --train_file mine.txt --do_train", "gpt2 prepare FILE --out=data/mine, then --dataset=mine"),
    ("train --per_device_train_batch_size=8 --nproc=2", "give --batch_size and --gradient_accumulation_steps"),
    ("train --warmup_ratio=0.1", "--warmup_iters"),
    (
        "train --dataset_name wikitext --dataset_config_name w --eval_strategy=steps --report_to=wandb",
        "the rest of the command: gpt2 train --wandb_log=True",
    ),
    ("train --save_strategy=epoch", "give --checkpoint_interval, a number of optimizer steps"),
    ("train --config_overrides=n_embd=32,n_positions=16", "give --n_embd=32 --block_size=16"),
    ("train --model_type=llama", "only GPT-2 is trained here"),
]
"""Command lines of other programs, and what the answer contains."""


@pytest.fixture
def folder(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with nanoGPT's config files, and one dataset by several names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("train_shakespeare_char", "train_gpt2", "eval_gpt2", "finetune_shakespeare"):
        (tmp_path / "config" / f"{name}.py").write_text("eval_interval = 250\nbatch_size = 64\n")
    (tmp_path / "fineweb10B").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"fineweb10B/fineweb_{split}_000.bin").symlink_to(dataset / f"{split}.bin")
    return tmp_path


@pytest.mark.parametrize("line", WORKS)
def test_a_command_line_of_another_program_works(line: str, folder: Path, dataset: Path, gpt2_command) -> None:
    status, _, err = gpt2_command(*shlex.split(f"{line} {SMALL} --dataset={dataset}"))
    assert status == 0, err


@pytest.mark.parametrize(("line", "answer"), ANSWERED)
def test_a_command_line_of_another_program_is_answered(line: str, answer: str, folder: Path, gpt2_command) -> None:
    status, out, err = gpt2_command(*shlex.split(line))
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("gpt2: ")
    assert answer in last


@pytest.mark.parametrize(
    ("script", "batch", "steps", "rates"),
    [
        ("gpt2_124M", 2**19, 18865, (6e-4, 0)),
        ("gpt2_350M", 2**19, 60000, (3e-4, 0)),
        ("gpt2_774M", 2**19, 286102, (2.5e-4, 0)),
        ("gpt2_1558M", 2**20, 32000, (6e-4, 6e-5)),
        ("gpt3_125M", 2**19, 572204, (6e-4, 6e-5)),
    ],
)
def test_the_answers_to_scripts_of_llmc_train_the_same(
    script: str, batch: int, steps: int, rates: tuple[float, float], gpt2_command
) -> None:
    answer = gpt2_command(f"scripts/run_{script}.sh")[2].partition("here: gpt2 ")[2]
    status, out, err = gpt2_command(*shlex.split(answer), "--print_config", "--json")
    assert status == 0, err
    found = json.loads(out)["settings"]
    assert (found["total_batch_size"], found["max_iters"], found["warmup_iters"]) == (batch, steps, 700)
    assert (found["learning_rate"], found["min_lr"], found["weight_decay"]) == (*rates, 0.1)
    assert found["dataset"] in CORPORA


def test_bench_alone_shows_commands_for_every_benchmark(gpt2_command) -> None:
    examples = gpt2_command("bench")[2].splitlines()[:-1]
    app = make_app()
    found = {app.parse_args(shlex.split(line, comments=True)[1:])[0] for line in examples}
    assert found == {app["bench"][name].default_command for name in BENCHMARKS}


def test_an_option_of_another_program_is_reported_once(folder: Path, dataset: Path, gpt2_command) -> None:
    line = f"train --num_iterations=1 --dataset={dataset} {SMALL}"
    status, _, err = gpt2_command(*line.split())
    assert (status, err.count("--num_iterations")) == (0, 1)
    assert "--num_iterations is --max_iters here\n" in err


@pytest.mark.parametrize(
    ("line", "here"),
    [
        ("train --learning_rate=1e-3 --learning_rate_decay_frac=0.1", "train --learning_rate=1e-3 --min_lr=0.0001"),
        ("train --compile 0 mine.toml", "train --compile=0 mine.toml"),
        ("train --overfit_single_batch=1 --tensorcores 0", "train --overfit_step=0 --tf32=False"),
        ("train -x -1", "train --max_epochs=1"),
        ("train -e gpt2:d24 -h 0", "train --model=d24"),
        ("train --bf16 --do_train --overwrite_output_dir", "train --dtype=bfloat16 --overwrite=True"),
        ("train --load_best_model_at_end --model_type gpt2 --cache_dir=c", "train"),
        ("train --use_cpu --report_to=none --run_name=x", "train --device=cpu --wandb_run_name=x"),
        ("plan --num_iterations 5", "plan --max_iters=5"),
        ("bench --profile=False", "bench train"),
        ("bench data d", "bench data d"),
        ("sample --out_dir=r --init_from=resume --compile=False --top_k 5", "sample r --top_k 5"),
        ("sample --init_from=gpt2-xl --start=a", "sample gpt2-xl --start=a"),
        ("sample r --start init_from=resume", "sample r --start init_from=resume"),
        ("train --sample_start B=4 --no-compile mine.toml", "train --sample_start B=4 --no-compile mine.toml"),
        ("train -h", "train -h"),
        ("train - -Z", "train - -Z"),
        ("train --num_iterations", "train --max_iters"),
        ("train --B=3 --help", "train --B=3 --help"),
    ],
)
def test_options_of_another_program_become_those_of_this_one(line: str, here: str) -> None:
    assert translated(line.split(), lambda _: None) == here.split()


def test_one_pattern_stands_for_the_files_of_both_splits_only_if_it_matches_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x_train_0.bin", "x_val_0.bin"):
        Path(name).touch()
    assert translated(["train", "--input_bin=x_train_0.bin"], print) == ["train", "--dataset=x_*_0.bin"]
    Path("x_test_0.bin").touch()
    with pytest.raises(UserError, match=r"matches both x_train_0\.bin and x_val_0\.bin and nothing else"):
        translated(["train", "--input_bin=x_train_0.bin"], print)


def test_no_option_of_this_program_is_taken_for_another_ones() -> None:
    app = make_app()
    for command, table in ((app["train"], TRAIN), (app["bench"]["train"], TRAIN | BENCH), (app["plan"], TRAIN)):
        names = {name for a in command.assemble_argument_collection() for name in a.names}
        assert not {f"--{name}" for name in table} & names


def test_a_run_of_nanogpt_is_sampled_and_resumed_as_the_answer_says(tiny, folder: Path, gpt2_command) -> None:
    train(tiny(max_iters=1, out_dir="run"))
    assert gpt2_command("export", "nanogpt", "run", "out")[0] == 0
    dataset = tiny().dataset
    status, text, err = gpt2_command("sample", "--out_dir=out", "--max_new_tokens=3", f"--tokenizer={dataset}")
    assert status == 0 and text, err
    status, _, err = gpt2_command("train", "--init_from=resume", "--out_dir=out", f"--dataset={dataset}")
    assert status == 2
    first, _, second = (
        err.splitlines()[-1].partition("import it with: gpt2 ")[2].partition(", and continue it with: gpt2 ")
    )
    status, _, err = gpt2_command(*shlex.split(first))
    assert status == 0, err
    status, _, err = gpt2_command(*shlex.split(second), "--max_iters=2", "--device=cpu", "--compile=False")
    assert status == 0, err
