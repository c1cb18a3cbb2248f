"""The package as it is used from a notebook."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import final_weights

import gpt2
from gpt2.evaluation.loss import evaluate_loss
from gpt2.tokenizers import ByteTokenizer

SMALL = gpt2.GPT(gpt2.GPTConfig(block_size=16, vocab_size=257, n_layer=1, n_head=1, n_embd=8))
NARROW = gpt2.GPT(gpt2.GPTConfig(block_size=16, vocab_size=9, n_layer=1, n_head=1, n_embd=8))
NOTEBOOK = """
import gpt2
from pathlib import Path

model, tokenizer = gpt2.load("run")
text: str = gpt2.generate(model, tokenizer, "the", max_new_tokens=5)
texts: list[str] = gpt2.generate(model, tokenizer, ["the", "a cat"], max_new_tokens=5)
loss: float = gpt2.evaluate(model, "dataset").loss
config = gpt2.TrainConfig(dataset="dataset", max_iters=3, batch_size=2)
result: gpt2.TrainResult = gpt2.train(config, model=model, callback=lambda event, step, values: None)
step: int = result.step
folder: Path = gpt2.plot("run", out="curves.png")
best: float | None = gpt2.report("run")[0].figures()["best_val_loss"]
difference: float = gpt2.export("run", "hf", "out").difference
prepared: Path = gpt2.prepare("notes.txt", tokenizer="byte", out=Path("mine"))
"""


def test_the_public_names_are_listed_and_there() -> None:
    assert dir(gpt2) == sorted([*gpt2.__all__, "__version__"])
    assert all(hasattr(gpt2, name) for name in gpt2.__all__)
    assert gpt2.train.__doc__ and gpt2.evaluate.__doc__
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        gpt2.tarin  # noqa: B018


def test_the_package_is_typed_for_those_who_import_it(tmp_path: Path) -> None:
    assert (Path(gpt2.__file__).parent / "py.typed").is_file()
    pyrefly = Path(sys.executable).parent / "pyrefly"
    if not pyrefly.exists():
        pytest.skip("needs pyrefly in the environment of this Python")
    (tmp_path / "pyrefly.toml").touch()  # its usual strictness
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import gpt2\nstep: str = gpt2.train(gpt2.TrainConfig()).step\n")
    command = [str(pyrefly), "check", "--python-interpreter-path", sys.executable]
    done = subprocess.run([*command, "notebook.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert subprocess.run([*command, "wrong.py"], capture_output=True, cwd=tmp_path).returncode == 1


def test_a_run_from_data_to_export(tiny, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("some words to train on\n" * 300)
    assert gpt2.prepare("notes.txt", out=Path("mine"), tokenizer="byte") == Path("mine")
    gpt2.train(tiny())
    assert gpt2.plot("run", out="curves.png") == Path("curves.png")
    assert Path("curves.png").stat().st_size > 10_000
    [facts] = gpt2.report("run")
    assert facts.figures()["step"] == 20
    assert "</html>" in Path("report.html").read_text()
    assert gpt2.export("run", "hf", "hf").difference < 1e-5
    model, _ = gpt2.load("hf")
    trained, _ = gpt2.load("run")
    for p, q in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(p, q)
    assert final_weights(tmp_path / "run")


def test_evaluation_takes_a_model_or_a_name(tiny, dataset: Path, tmp_path: Path) -> None:
    gpt2.train(tiny())
    model, _ = gpt2.load(str(tmp_path / "run"))
    by_name = gpt2.evaluate(tmp_path / "run", dataset, stride=16)
    by_model = gpt2.evaluate(model, dataset, stride=16)
    assert by_name.loss == by_model.loss
    tokens = gpt2.data.dataset.open_dataset(str(dataset)).splits["val"]
    reference = evaluate_loss(model, tokens, block_size=16, batch_size=4, batches=0, dtype="float32")
    assert by_model.loss == pytest.approx(reference, rel=0.01)  # the last window is moved back there


def test_prompts_in_a_list_give_texts_in_a_list(tiny, tmp_path: Path) -> None:
    gpt2.train(tiny())
    model, tokenizer = gpt2.load(str(tmp_path / "run"))
    alone = [gpt2.generate(model, tokenizer, prompt, max_new_tokens=8) for prompt in ("the", "a cat")]
    assert gpt2.generate(model, tokenizer, ["the", "a cat"], max_new_tokens=8) == alone
    assert gpt2.generate(model, tokenizer, [], max_new_tokens=8) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpt2.train("name"), "config is of type str; give a gpt2.TrainConfig"),
        (lambda: gpt2.train({"dataset": "mine"}), "config is of type dict"),
        (lambda: gpt2.train(gpt2.TrainConfig(), model="run"), "model is of type str; give a gpt2.GPT"),
        (lambda: gpt2.train(gpt2.TrainConfig(), callback="print"), "callback is of type str; give a function"),
        (lambda: gpt2.load(3), "the model is of type int; give a path or a name"),
        (lambda: gpt2.load(None), "the model is of type NoneType"),
        (lambda: gpt2.load("gpt2", gpt2), "tokenizer is of type module"),
        (
            lambda: gpt2.export(SMALL, "out", "onnx"),
            "no format 'out'; choose from hf, nanogpt, llmc, gguf, safetensors",
        ),
        (lambda: gpt2.export(SMALL, ["hf"], "out"), "no format"),
        (lambda: gpt2.export((SMALL, None), "hf", "out"), "the model is of type tuple"),
        (lambda: gpt2.export(SMALL, "hf", None), "out is of type NoneType"),
        (
            lambda: gpt2.export(SMALL, "hf", "out", tokenizer="gpt2"),
            "tokenizer is of type str; give the one that gpt2",
        ),
        (lambda: gpt2.export(SMALL, "gguf", "out"), "the given model has no tokenizer; give tokenizer="),
        (lambda: gpt2.export(NARROW, "hf", "out", tokenizer=ByteTokenizer()), "257 ids, but the model has only 9"),
        (lambda: gpt2.evaluate(None, "mine"), "model is of type NoneType"),
        (lambda: gpt2.evaluate(SMALL, [1, 2]), "dataset is of type list"),
        *(
            (lambda wrong=wrong: gpt2.evaluate(SMALL, "mine", **wrong), f"{next(iter(wrong))} is ")
            for wrong in (
                *({"tokens": 0}, {"tokens": "5"}, {"tokens": 1e3}, {"stride": 0}, {"stride": 1.5}),
                *({"batch_size": 0}, {"batch_size": "4"}, {"batch_size": None}, {"data_dir": None}),
            )
        ),
        (lambda: gpt2.plot(), "no run is given"),
        (lambda: gpt2.plot("run", x="weeks"), "no axis 'weeks'; choose from steps, tokens, flops, time"),
        (lambda: gpt2.plot("run", x=["steps"]), "no axis ['steps']"),
        (lambda: gpt2.plot("run", smooth="much"), "smooth is 'much' (str); it must be a number"),
        (lambda: gpt2.plot(["run"]), "a run is of type list"),
        (lambda: gpt2.plot("run", out=None), "out is of type NoneType"),
        (lambda: gpt2.report(), "no run is given"),
        (lambda: gpt2.report(3), "a run is of type int"),
    ],
)
def test_an_argument_of_another_type_gives_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(gpt2.UserError) as raised:
        call()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_pretrained_weights_determine_the_shapes(tiny, tmp_path: Path) -> None:
    gpt2.train(tiny())
    assert gpt2.GPT.from_pretrained(str(tmp_path / "run"), {"dropout": 0.2}).config.dropout == 0.2
    for wrong in ({"n_layer": 1}, {"dropout": 0.2, "n_head": 1}, {"nothing": 3}):
        with pytest.raises(gpt2.UserError, match="cannot change"):
            gpt2.GPT.from_pretrained(str(tmp_path / "run"), wrong)
