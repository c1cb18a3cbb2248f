"""llama.cpp on our GGUF files: the same tokens, the same likeliest continuations, the same likelihood."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.formats.export import export
from gpt2.formats.source import Source, StoredTensor
from gpt2.generation.complete import complete
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer, train_bpe

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
PROMPTS = ("First Citizen:\nBefore we", "the meaning of", "def main():\n    ", "ROMEO:", "café at 日本 in 1234567")


@pytest.fixture(params=["gpt2", "bpe", "byte", "char"])
def tokenizer(request: pytest.FixtureRequest, text: str, gpt2_vocabulary: None) -> Tokenizer:
    return {
        "gpt2": gpt2_tokenizer(),
        "bpe": train_bpe([text], 400),
        "byte": ByteTokenizer(),
        "char": CharTokenizer.train("".join(PROMPTS) + text),
    }[request.param]


@pytest.fixture
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(block_size=128, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=64)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # sharp enough to leave no ties to rounding
    return model


def opened(model: GPT, tokenizer: Tokenizer, path: Path, dtype: str):
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    export(Source(model.config, tensors, lambda: tokenizer, "a toy"), "gguf", path, lambda line: None, dtype)
    return llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1)


def test_tokens_and_greedy_continuations_are_ours(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = opened(model, tokenizer, tmp_path / "m.gguf", "float32")
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert theirs.tokenize(prompt.encode(), add_bos=False, special=False) == ids
        assert theirs.detokenize(ids).decode() == prompt
        theirs.reset()
        theirs.eval(ids)
        for token in complete(model, [ids], 50, Sampling(temperature=0))[0]:
            likeliest = int(np.argmax(theirs.scores[theirs.n_tokens - 1]))
            assert likeliest == token
            theirs.eval([likeliest])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_smaller_files_give_nearly_the_same_perplexity(
    dtype: str, model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    theirs = opened(model, tokenizer, tmp_path / "m.gguf", dtype)
    ids = torch.randint(tokenizer.vocab_size, (1, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, loss = model(ids[:, :-1], ids[:, 1:])
    theirs.eval(ids[0].tolist())
    logits = torch.from_numpy(theirs.scores[:127].copy()).double()
    their_loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    assert np.exp(their_loss - loss.item()) == pytest.approx(1, abs=0.005)
