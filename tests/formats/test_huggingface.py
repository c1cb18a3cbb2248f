"""Hugging Face's layout, written here by hand from its description."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import characters, opened, source_of, toy

from gpt2.errors import UserError
from gpt2.formats.export import export, logits_of
from gpt2.formats.huggingface import is_hub_name
from gpt2.formats.open import load, open_model
from gpt2.formats.source import TRANSPOSED
from gpt2.generation.complete import complete
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT, GPTConfig
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer, gpt2_tokenizer, train_bpe

SIZES = [size for size in os.environ.get("GPT2_TEST_SIZES", "").split(",") if size]
CONFIG = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=50257, n_layer=2, n_head=2, n_embd=8)).eval()


def write(folder: Path, model: GPT, prefix: str = "transformer.", **changes: object) -> Path:
    """A folder as `save_pretrained` lays it out, or as the hub's originals with bare names and mask buffers."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, p in model.named_parameters():
        value = p.detach().t() if name.endswith(TRANSPOSED) else p.detach()
        tensors[name.replace("transformer.", prefix)] = value.contiguous()
    if not prefix:
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_weights_are_read_and_transposed(prefix: str, model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    loaded, tokenizer = load(str(write(tmp_path / "hf", model, prefix)))
    assert tokenizer.kind == "gpt2"
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_activation_is_the_configs(model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    assert open_model(str(write(tmp_path / "a", model))).config.gelu == "tanh"
    assert open_model(str(write(tmp_path / "b", model, activation_function="gelu"))).config.gelu == "erf"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"n_inner": 7}, "n_inner=7"),
        ({"activation_function": "relu"}, "relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_embd": "wide"}, "n_embd='wide'"),
    ],
)
def test_what_is_not_gpt2_is_refused_by_name(changes: dict, message: str, model: GPT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_model(str(write(tmp_path / "hf", model, **changes)))


def test_a_head_of_its_own_is_refused(model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    folder = write(tmp_path / "hf", model)
    tensors = load_file(folder / "model.safetensors")
    tied = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(tied, folder / "model.safetensors")
    load(str(folder))
    save_file(tied | {"lm_head.weight": torch.zeros(50257, 8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="head"):
        load(str(folder))
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": torch.zeros(50257, 8)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="head"):
        load(str(folder))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "cannot be read",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_layer": 3})), r"h\.2\.\S+ is missing"),
        (
            lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_layer": 1})),
            r"h\.1\.\S+ is .*, which GPT-2 does not have",
        ),
        (lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"n_positions": 32})), r"wpe\S+ is \(16, 8\)"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    ],
)
def test_damage_is_named(damage, message: str, model: GPT, tmp_path: Path, gpt2_vocabulary: None) -> None:
    folder = write(tmp_path / "hf", model)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load(str(folder))


def test_without_the_hub_the_error_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'gpt2-medium'.*no route to host.*give its folder"):
        open_model("gpt2-medium")


@pytest.mark.parametrize(
    ("name", "yes"), [("gpt2", True), ("gpt2-xl", True), ("org/name", True), ("gpt3", False), ("a/b/c", False)]
)
def test_hub_names(name: str, yes: bool) -> None:
    assert is_hub_name(name) == yes


# -- compared with transformers itself --

RELATIVE = 2e-5


def network_of_transformers(**changes: object):
    """A GPT2LMHeadModel with random weights, biases and gains."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(1)
    settings = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2} | changes
    ends = {"bos_token_id": None, "eos_token_id": None}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, **ends)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * (16 / network.config.n_embd) ** 0.5)
    return network


def assert_same_logits(model: GPT, network, vocab_size: int) -> None:
    ids = torch.randint(vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(ids).logits
    assert (logits_of(model, ids) - expected).abs().max() <= RELATIVE * expected.abs().max()


def save_pickled(network, folder: Path, zipped: bool) -> None:
    network.config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize(
    "save",
    [
        lambda n, folder: n.save_pretrained(folder),
        lambda n, folder: n.save_pretrained(folder, max_shard_size="8KB"),
        lambda n, folder: save_pickled(n, folder, zipped=True),
        lambda n, folder: save_pickled(n, folder, zipped=False),
    ],
    ids=["safetensors", "sharded", "pickled", "old"],
)
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_what_transformers_saves_computes_the_same_here(save, activation: str, tmp_path: Path) -> None:
    network = network_of_transformers(activation_function=activation)
    folder = tmp_path / "hf"
    folder.mkdir()
    save(network, folder)
    assert_same_logits(opened(folder), network, 300)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("bias", [True, False])
def test_what_we_export_computes_the_same_there(gelu: str, bias: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model = toy(gelu=gelu, bias=bias, n_embd=16, block_size=32)
    export(source_of(model, characters(33)), "hf", tmp_path / "hf", lambda line: None)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(network, transformers.GPT2LMHeadModel)
    assert_same_logits(model, network.eval(), 33)


def test_its_dtype_is_kept(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    export(source_of(toy(), characters(33)), "hf", tmp_path / "hf", lambda line: None, "bfloat16")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert network.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "late", "specials", "late specials", "byte", "char"])
def test_auto_tokenizer_encodes_equally(kind: str, shared_data: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    """1,000 lines of Shakespeare and awkward texts, both ways; the tokenizer is also read back from its files."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    text = (shared_data / "shakespeare" / "input.txt").read_text()
    lines = text.splitlines()[:1000]
    if kind != "char":
        lines += [
            "naïve café ☕",
            "   three  spaces\n\n\t tabs ",
            "don't I'LL 1234567",
            "a<|endoftext|>b",
            "日本\u00a0語",
            "<|user|>Who's there?<|assistant|><|user|> a[PAD] <|a b|>\n<|users|>",
        ]
    specials = ("<|user|>", "<|assistant|>", "[PAD]", "<|a b|>")
    trained = train_bpe([text[:200_000]], 600)
    tokenizer = {
        "gpt2": gpt2_tokenizer(),
        "bpe": trained,
        "late": BPETokenizer(
            trained.tokens, r"[a-z]+|[^a-z]", special=SpecialTokens.after(599, eot=3)
        ),  # another pattern, end-of-text not the last id
        "specials": BPETokenizer(trained.tokens, GPT2_PATTERN, special=SpecialTokens.after(599, specials)),
        "late specials": BPETokenizer(trained.tokens, GPT2_PATTERN, special=SpecialTokens.after(599, specials, 3)),
        "byte": ByteTokenizer(),
        "char": CharTokenizer.train(text),
    }[kind]
    model = toy(vocab_size=tokenizer.vocab_size)
    export(source_of(model, tokenizer), "hf", tmp_path / "hf", lambda line: None)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert fast.is_fast
    assert len(fast) == tokenizer.vocab_size
    assert fast.eos_token_id == tokenizer.eot
    for line in lines:
        ids = fast(line)["input_ids"]
        assert ids == tokenizer.encode(line, specials=True)
        assert fast.decode(ids) == line
    assert open_model(str(tmp_path / "hf")).tokenizer.to_json() == tokenizer.to_json()


def test_the_older_pair_of_tokenizer_files_is_read(gpt2_vocabulary: None, tmp_path: Path) -> None:
    model = toy(vocab_size=50257)
    export(source_of(model, gpt2_tokenizer()), "hf", tmp_path / "hf", lambda line: None)
    merges = (tmp_path / "hf" / "merges.txt").read_bytes()
    assert hashlib.sha256(merges).hexdigest() == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert open_model(str(tmp_path / "hf")).tokenizer.to_json() == gpt2_tokenizer().to_json()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.update(normalizer={"type": "NFC"}), "changes the text"),
        (lambda v: v["model"].update(type="Unigram"), "a Unigram model"),
        (
            lambda v: v["added_tokens"].append({"id": 301, "content": "<pad>"}),
            "<pad> has the id 301, and no token has 300",
        ),
        (
            lambda v: v["added_tokens"].append({"id": 300, "content": "<pad>", "lstrip": True}),
            "depends on the text next to it",
        ),
        (lambda v: v["added_tokens"].append({"id": 300, "content": "a"}), "'a' is an ordinary token too"),
        (lambda v: v["pre_tokenizer"].update(add_prefix_space=True), "split text as GPT-2"),
        (lambda v: v["model"]["merges"].reverse(), "order of its ids"),
    ],
)
def test_other_kinds_of_tokenizers_are_refused(damage, message: str, text: str, tmp_path: Path) -> None:
    tokenizer = train_bpe([text], 300)
    export(source_of(toy(vocab_size=300), tokenizer), "hf", tmp_path / "hf", lambda line: None)
    values = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    damage(values)
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(values))
    opened(tmp_path / "hf")  # the weights are not its fault
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "hf"))


@pytest.mark.skipif(not SIZES, reason="set GPT2_TEST_SIZES, for example to gpt2,gpt2-medium")
@pytest.mark.parametrize("preset", SIZES)
def test_published_sizes_in_both_directions(preset: str, gpt2_vocabulary: None, tmp_path: Path) -> None:
    """Float32 logits and 50 greedy tokens agree after an import and after an export."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = GPTConfig.preset(preset)
    shape = {"n_layer": sizes.n_layer, "n_head": sizes.n_head, "n_embd": sizes.n_embd}
    network_of_transformers(**shape, vocab_size=50257, n_positions=1024).save_pretrained(tmp_path / "transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "transformers").eval()
    imported = opened(tmp_path / "transformers")
    assert_same_logits(imported, network, 50257)
    assert_same_greedy(imported, network)
    del imported, network
    model = toy(**shape, vocab_size=50257, block_size=1024)
    export(source_of(model, gpt2_tokenizer()), "hf", tmp_path / "exported", lambda line: None)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert_same_logits(model, network, 50257)
    assert_same_greedy(model, network)


def assert_same_greedy(model: GPT, network) -> None:
    prompt = torch.randint(50257, (1, 8), generator=torch.Generator().manual_seed(0))
    tokens = complete(model, prompt.tolist(), 50, Sampling(temperature=0))[0]
    generated = network.generate(prompt, do_sample=False, max_new_tokens=50, min_new_tokens=50, pad_token_id=0)
    assert tokens == generated[0, 8:].tolist()


def test_a_tokenizer_that_cannot_be_read_holds_up_only_who_needs_it(text: str, tiny, tmp_path: Path) -> None:
    export(source_of(toy(vocab_size=300), train_bpe([text], 300)), "hf", tmp_path / "hf", lambda line: None)
    values = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    values["added_tokens"].append({"id": 305, "content": "[PAD]"})
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(values))
    source = open_model(str(tmp_path / "hf"))
    assert source.known_tokenizer is None
    notes: list[str] = []
    export(source, "safetensors", tmp_path / "bare", notes.append)
    assert "bare has no tokenizer: " in notes[-1] and "its token [PAD] has the id 305" in notes[-1]
    with pytest.raises(UserError, match=r"\[PAD\]"):
        _ = source.tokenizer


def test_a_single_file_of_a_folder_is_the_folders_model(tmp_path: Path) -> None:
    model = toy(n_embd=64, n_head=4, gelu="erf")
    export(source_of(model, characters(33)), "hf", tmp_path / "hf", lambda line: None)
    assert open_model(str(tmp_path / "hf" / "model.safetensors")).config == model.config


def test_a_token_of_many_bytes_comes_back(tmp_path: Path) -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"a" * 2**i for i in range(1, 10)]
    tokenizer = BPETokenizer(tokens, GPT2_PATTERN)
    model = toy(vocab_size=tokenizer.vocab_size)
    export(source_of(model, tokenizer), "hf", tmp_path / "hf", lambda line: None)
    assert open_model(str(tmp_path / "hf")).tokenizer.to_json() == tokenizer.to_json()
    export(source_of(model, tokenizer), "gguf", tmp_path / "gguf", lambda line: None)
    assert open_model(str(tmp_path / "gguf")).tokenizer.to_json() == tokenizer.to_json()
    with pytest.raises(UserError, match="512 bytes does not fit"):
        export(source_of(model, tokenizer), "llmc", tmp_path / "llmc", lambda line: None)
    assert not (tmp_path / "llmc").exists()
