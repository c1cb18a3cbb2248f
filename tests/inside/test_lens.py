"""`gpt2 lens`: its JSON against the functions, and its page as one file that needs nothing else."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from varied import varied

from gpt2.data.prepare import prepare
from gpt2.formats.export import export
from gpt2.formats.source import Source, StoredTensor
from gpt2.inside import analysis
from gpt2.inside.analysis import Analysis, as_lists
from gpt2.inside.attention import attention_weights
from gpt2.inside.lens_page import MODULES, for_page, packed, page, script
from gpt2.inside.predictions import losses
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer

CONFIG = GPTConfig(block_size=48, vocab_size=260, n_layer=3, n_head=2, n_embd=16)
TEXT, OTHER = "the dög saw a cat\n", "the cät saw a dog\n"
HOSTILE = "</script><script>document.title = 'owned'</script>"


@pytest.fixture(scope="module")
def model() -> GPT:
    return varied(CONFIG).eval()


@pytest.fixture(scope="module")
def exported(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    export(Source(CONFIG, tensors, lambda: None, "a test"), "hf", folder, print)
    return folder


@pytest.fixture(scope="module")
def training_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("nothing of it. " * 40 + "he dög saw nobody. " + "nothing of it. " * 40)
    return prepare(folder / "text.txt", out=folder / "prepared", tokenizer="byte")


def test_the_json_holds_what_the_functions_return(
    model: GPT, exported: Path, training_text: Path, gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [exported, TEXT, f"--against={OTHER}", f"--dataset={training_text}", "--tokenizer=byte", "--device=cpu"]
    status, out, err = gpt2_command("lens", *words, "--json", "--top=3", "--shortest=6", "--answer=x", "--other=y")
    assert status == 0, err
    found, ids = json.loads(out), list(TEXT.encode())
    assert len(out.splitlines()) == 1
    assert not Path("lens.html").exists()
    assert found["ids"] == ids
    assert found["bytes"] == 18
    own = losses(model, torch.tensor(ids), 3)
    assert found["losses"]["loss"] == pytest.approx(own.loss.tolist(), rel=1e-5)
    assert found["losses"]["top_ids"] == own.top_ids.tolist()
    assert found["mean_loss"] == pytest.approx(own.loss.mean().item(), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(own.loss.sum().item() / 18 / np.log(2), rel=1e-6)
    assert found["lens"]["top_ids"][-1] == own.top_ids.tolist()
    assert np.array(found["attention"]["weights"]).shape == (3, 2, 19, 19)
    assert np.array(found["attention"]["weights"]).sum(axis=-1) == pytest.approx(np.ones((3, 2, 19)), abs=1e-4)
    shares = {name: np.array(values) for name, values in found["attribution"].items()}
    parts = sum(shares[n].reshape(19, -1).sum(axis=1) for n in shares if n not in ("targets", "against", "logit"))
    assert parts == pytest.approx(shares["logit"], abs=1e-3)  # of numbers with six digits
    assert shares["targets"][:-1].tolist() == ids[1:]
    for t, (target, rival) in enumerate(zip(shares["targets"], shares["against"], strict=True)):
        assert rival == next(i for i in own.top_ids[t].tolist() if i != target)
    patched = found["patching"]
    assert (patched["answer"], patched["other"]) == (ord("x"), ord("y"))
    assert patched["clean"] != patched["corrupted"]
    passage = found["memorised"]["passages"][0]
    assert (passage["position"], passage["length"], passage["text"]) == (1, 12, "he dög saw ")
    assert passage["offset"] == 40 * 15
    assert passage["before"].endswith("nothing of it. ") and passage["after"].startswith("nobody. ")
    assert found["vocabulary"]["195"] == "\\xc3"  # the first byte of ö
    listed = np.unique(np.concatenate([np.ravel(found[part]["top_ids"]) for part in ("losses", "lens")]))
    assert {str(i) for i in listed} <= found["vocabulary"].keys()


def test_the_page_is_one_small_file_with_one_script(exported: Path, gpt2_command, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = [exported, HOSTILE[:47], "--tokenizer=byte", "--device=cpu"]
    assert gpt2_command("lens", *words, "-o", out)[:2] == (0, "")
    text = out.read_text()
    data = re.search(r"<script type=application/json id=data>(.*?)</script>", text, re.DOTALL)
    assert data is not None
    values = json.loads(data[1])
    assert bytes(values["ids"]).decode() == HOSTILE[:47]
    rest = text.replace(data[0], "")
    assert len(rest.encode()) < 300_000
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|<link(?! rel=icon href='data:,'>)|<img|<iframe|@import|url\(", rest
    )
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text.replace(data[0], ""), re.DOTALL)
    assert [kind for kind, _ in scripts] == [" type=module"]
    digest = base64.b64encode(hashlib.sha256(scripts[0][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_the_modules_joined_define_each_name_once_and_import_nothing() -> None:
    text = script()
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert "showAnalysis" in names


def test_the_modules_import_only_what_was_joined_before_and_what_is_exported() -> None:
    folder = Path(analysis.__file__).parent / "page"
    assert {path.stem for path in folder.glob("*.js")} == set(MODULES)
    exported: dict[str, set[str]] = {}
    for name in MODULES:
        text = (folder / f"{name}.js").read_text()
        for wanted, module in re.findall(r'^import \{ (.*) \} from "\./(\w+)\.js";$', text, re.MULTILINE):
            assert set(wanted.split(", ")) <= exported[module], name
        assert text.count("\nimport ") == len(re.findall(r"^import \{", text, re.MULTILINE))
        exported[name] = set(re.findall(r"^export (?:function|const) (\w+)", text, re.MULTILINE))


def test_a_page_holds_what_the_json_holds_in_fewer_bytes(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "MOST_WEIGHTS", 6 * 50)  # 10 tokens: 6 heads have 55 weights each
    ids = list(TEXT.encode())
    made = Analysis(HOSTILE, model, ByteTokenizer(), ids, lambda *work: None)
    made.add_text()
    values = made.finished()
    weights = attention_weights(model, torch.tensor([ids]))[:, 0, :, :10, :10].numpy()
    assert values["attention"]["tokens"] == 10
    assert np.allclose(values["attention"]["weights"], weights, atol=1e-6)
    texts = [json.dumps(values, default=as_lists), json.dumps(for_page(values), default=packed)]
    assert len(texts[1]) < 0.8 * len(texts[0])
    for part, name in (("losses", "top_ids"), ("lens", "kl"), ("attribution", "heads")):
        lists, box = (json.loads(text)[part][name] for text in texts)
        values_of = np.frombuffer(base64.b64decode(box["base64"]), box["dtype"]).reshape(box["shape"])
        assert values_of == pytest.approx(np.array(lists), rel=1e-5)
    box = json.loads(texts[1])["attention"]["weights"]
    triangles = np.frombuffer(base64.b64decode(box["base64"]), np.uint8).reshape(3, 2, 55)
    position = 0
    for query in range(10):
        for key in range(query + 1):
            assert triangles[:, :, position] / 255 == pytest.approx(weights[:, :, query, key], abs=0.5 / 255 + 1e-6)
            position += 1
    text = page(values)
    assert text.count("<script") == 2 and text.count("<title") == 1
    data = re.search(r"<script type=application/json id=data>(.*?)</script>", text, re.DOTALL)
    assert data is not None and json.loads(data[1])["model"] == HOSTILE


def test_without_names_the_likeliest_tokens_are_compared(model: GPT) -> None:
    likeliest = [losses(model, torch.tensor(list(text.encode()))).top_ids[-1].tolist() for text in (TEXT, OTHER)]
    assert likeliest[0][0] != likeliest[1][0]

    def compared(**names: int) -> tuple[int, int]:
        made = Analysis("m", model, ByteTokenizer(), list(TEXT.encode()), lambda *work: None)
        made.add_patching(list(OTHER.encode()), **names)
        return made.values["patching"]["answer"], made.values["patching"]["other"]

    assert compared() == (likeliest[0][0], likeliest[1][0])
    assert compared(answer=likeliest[1][0]) == (likeliest[1][0], likeliest[0][0])
    assert compared(other=7) == (likeliest[0][0], 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "the text has 1 token, and at least 2 are needed"),
        (["a" * 49], "the text has 49 tokens, and the model sees 48"),
        (["FILE:missing"], "cannot read the prompt from missing"),
        ([TEXT, "--against=short"], "the two texts have 19 and 5 tokens; give texts of the same number"),
        ([TEXT, f"--against={TEXT}", "--answer=x", "--other=y"], "the two texts have the same tokens"),
        ([TEXT, f"--against={OTHER}", "--answer=x", "--other=x"], "'x' is compared with itself"),
        ([TEXT, "--answer=xy"], "answer is 'xy', which is 2 tokens; give one token"),
        ([TEXT, "--top=1"], "top is 1"),
        ([TEXT, "--dataset=missing"], "no dataset 'missing'"),
        ([TEXT, "--compare=missing"], "no model 'missing'"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    words: list[str], message: str, exported: Path, gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = gpt2_command("lens", exported, *words, "--tokenizer=byte", "--device=cpu")
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_compared_by_its_losses(
    model: GPT, exported: Path, gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    other = GPT(CONFIG).eval()
    tensors = {name: StoredTensor.of(p.detach()) for name, p in other.named_parameters()}
    export(Source(CONFIG, tensors, lambda: None, "a test"), "hf", tmp_path / "other", print)
    words = [exported, TEXT, f"--compare={tmp_path / 'other'}", "--tokenizer=byte", "--device=cpu", "--json"]
    status, out, err = gpt2_command("lens", *words)
    assert status == 0, err
    found, ids = json.loads(out), torch.tensor(list(TEXT.encode()))
    for values, one in ((found, model), (found["compared"], other)):
        assert values["losses"]["loss"] == pytest.approx(losses(one, ids).loss.tolist(), rel=1e-5)
    assert found["compared"]["model"].endswith("other")


def test_a_dataset_of_another_tokenizer_is_refused(exported: Path, gpt2_command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 50)
    dataset = prepare(tmp_path / "text.txt", out=tmp_path / "prepared", tokenizer="char")
    status, _, err = gpt2_command("lens", exported, TEXT, f"--dataset={dataset}", "--tokenizer=byte", "--device=cpu")
    assert status == 2
    assert "was tokenised with char" in err
