"""What the tests of EleutherAI's harness share."""

import pytest

from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.tokenizers import train_bpe


@pytest.fixture(scope="module")
def texts(text: str) -> list[str]:
    return text.split("\n")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[str, str]:
    """Write a model file and export it to Hugging Face's format. With 300 tokens, words have several."""
    from harness_tasks import save_model  # here, because it needs the harness

    folder = tmp_path_factory.mktemp("models")
    file = save_model(folder / "model.safetensors", train_bpe(texts, 300))
    export(open_model(str(file)), "hf", folder / "hf", print)
    return str(file), str(folder / "hf")
