"""Opens random configuration files by the command line: COUNT SEED. Prints what went wrong, as JSON.

A third each are Python files of nanoGPT, TOML recipes and config.json of Hugging Face, with random structure and
hostile values. Each must end with status 2 and one line, in less than 10 seconds. The process must not grow by 1 GB.
"""

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpt2.cli import main
from gpt2.training.config import TrainConfig

SETTINGS = tuple(TrainConfig.__dataclass_fields__)
LIMIT = 10
"""Seconds that one file may take."""
KEYS = ("model_type", "n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "n_inner", "activation_function")
MORE_KEYS = (
    "architectures",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "tie_word_embeddings",
    "n_ctx",
    "torch_dtype",
)
LONG = (100, 5_000, 50_000)


class TooSlow(BaseException):
    """A file has taken longer than `LIMIT`."""


def number(rng: random.Random) -> str:
    digits = rng.choice(
        ("9" * rng.choice((1, 20, 400, 4_299, 4_301, 20_000)), "0", "00", "1_0", "1__0", "0x" + "f" * 900)
    )
    return rng.choice(("", "-", "+", "--")) + digits + rng.choice(("", "", ".5", "e9", "e999", ".", "j"))


def text(rng: random.Random) -> str:
    body = rng.choice(
        (
            "",
            "gpt2",
            "x" * rng.choice(LONG),
            "\\ud800",
            "\\u0000",
            "\0",
            "\x1b[2J",
            "é日\u2028",
            "%s",
            "{}",
            "\\",
            "../..",
            "\n",
        )
    )
    return rng.choice(('"{}"', "'{}'", '"""{}"""', "{}", '"{}')).replace("{}", body)


def nested(rng: random.Random, value: str) -> str:
    left, right = rng.choice(
        (("[", "]"), ("(", ")"), ('{"a":', "}"), ("{a=", "}"), ("-", ""), ("[[", "]]"), ("str(", ")"))
    )
    depth = rng.choice((1, 3, 50, 150, 3_000, 30_000))
    return left * depth + value + right * (depth if rng.random() < 0.8 else 0)


def value(rng: random.Random) -> str:
    made = rng.choice((number, number, text))(rng)
    if rng.random() < 0.1:
        made = nested(rng, made)
    if rng.random() < 0.05:
        made = "[" + ",".join([made[:1000]] * rng.choice((3, 100, 10_000))) + "]"
    return rng.choice((made, made, "true", "True", "None", "null", "NaN", "inf", "1979-05-27", "Infinity"))


def python_config(rng: random.Random) -> str:
    names = ["a", "b", *rng.sample(SETTINGS, 3), "init_from", "x" * rng.choice((1, 100, 50_000))]
    lines = []
    for _ in range(rng.randrange(1, 40)):
        name, other = rng.choice(names), rng.choice(names)
        lines.append(
            rng.choice(
                (
                    f"{name} = {value(rng)}",
                    f"{name} = {rng.randrange(1 << 40)}",
                    f"{name} = {name} {rng.choice('+-*/%')} {other}",
                    f"{name} = {other} {rng.choice(('+', '*', '//', '**', '<<', '@', '%'))} {value(rng)}",
                    f"{name} = {rng.choice(('+', '*', '-')).join(['7'] * rng.choice((5, 500, 20_000)))}",
                    f"a = 'x' * {rng.randrange(1 << 40)}",
                    f"b = {number(rng)}\n" + "b = b * b\n" * rng.choice((1, 30)),
                    "a = 'xyz'\n" + "a = a + a\n" * rng.choice((1, 40)),
                    "import time" if rng.random() < 0.5 else "import os",
                    f"{name} = str(time.time())",
                    "\t" * rng.choice((1, 200)) + f"{name} = 1",
                    "if 1:\n" * 3,
                    f'"""{text(rng)}"""',
                    "" if rng.random() < 0.5 else text(rng),
                )
            )
        )
    return "\n".join(lines)


def toml_config(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randrange(1, 20)):
        name = rng.choice((*SETTINGS, *SETTINGS, text(rng), ".".join(["a"] * rng.choice((2, 90, 3_000, 20_000)))))
        lines.append(
            rng.choice(
                (
                    f"{name} = {value(rng)}",
                    f"{name} = {rng.randrange(100)}",
                    f"[{name}]",
                    f"[[{name}]]",
                    f"{name} = {{{name} = 1, b.c = {{}}}}",
                    f"# {text(rng)}",
                    "".join(f"a{i} = 1\n" for i in range(rng.choice((2, 3_000)))),
                    f"{name} = {value(rng)}".replace("=", rng.choice(("==", "", ":")), 1),
                )
            )
        )
    return "\n".join(lines)


def json_config(rng: random.Random) -> str:
    base = {
        "model_type": '"gpt2"',
        "n_embd": "8",
        "n_layer": "1",
        "n_head": "2",
        "vocab_size": "300",
        "n_positions": "16",
    }
    for _ in range(rng.randrange(1, 4)):
        base[rng.choice((*KEYS, *KEYS, *MORE_KEYS))] = value(rng)
    for key in rng.sample(sorted(base), rng.randrange(2)):
        del base[key]
    return nested(rng, "1") if rng.random() < 0.05 else "{" + ",".join(f'"{k}":{v}' for k, v in base.items()) + "}"


def run(arguments: list[str]) -> tuple[object, str]:
    """Return the status of a command, or what it raised, and what it printed to standard error."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            signal.alarm(LIMIT)
            main(arguments)
    except SystemExit as end:
        return end.code, err.getvalue()
    except BaseException as error:
        return repr(error)[:200], err.getvalue()
    finally:
        signal.alarm(0)
    return 0, err.getvalue()


def too_slow(*_: object) -> None:
    raise TooSlow


def fault(status: object, err: str) -> str | None:
    """Return what is wrong with the end of a command; None where it is one line of a reasonable length."""
    last = err.rstrip("\n").split("\n")[-1]
    if status != 2 or not last.startswith("gpt2: ") or "Traceback" in err:
        return f"status {status}: {last[:200]}"
    if not last.isprintable() or len(last) > 1_500 or err.count("gpt2:") != 1:
        return f"no line of text ({len(err)} characters): {last[:200]!r}"
    return None


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check(count: int, seed: int) -> dict[str, object]:
    """Return the faults of `count` files, the seconds of the slowest, and by how much the process has grown."""
    rng, faults, slowest = random.Random(seed), [], 0.0
    signal.signal(signal.SIGALRM, too_slow)
    save_file({"wte.weight": torch.zeros(2, 2)}, "model.safetensors")
    Path("config.json").write_text("{}")
    run(["sample", ".", "--device=cpu"]), run(["train", "--dataset=none", "--device=cpu"])  # imports everything
    before = megabytes()
    for number_of_file in range(count):
        name, make = (("c.py", python_config), ("c.toml", toml_config), ("config.json", json_config))[
            number_of_file % 3
        ]
        content = make(rng)
        Path(name).write_text(content, encoding="utf-8", errors="replace")
        start = time.monotonic()
        command = ["sample", "."] if name == "config.json" else ["train", name, "--dataset=none"]
        if wrong := fault(*run([*command, "--device=cpu"])):
            faults.append({"file": number_of_file, "fault": wrong, "content": content[:300]})
        slowest = max(slowest, time.monotonic() - start)
    return {"files": count, "faults": faults, "slowest": slowest, "megabytes": megabytes() - before}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        result = check(int(sys.argv[1]), int(sys.argv[2]))
        os.chdir("/")
    json.dump(result, sys.stdout, indent=1)
    sys.exit(bool(result["faults"]))
