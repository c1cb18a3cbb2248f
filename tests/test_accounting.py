import pytest
import torch

from gpt2 import accounting
from gpt2.model import GPT, PRESETS, GPTConfig

NANOGPT_DEFAULT = GPTConfig(vocab_size=50304, bias=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_formula_counts_the_parameters_of_the_model(name: str, bias: bool) -> None:
    config = GPTConfig.preset(name, bias=bias)
    with torch.device("meta"):
        assert accounting.num_params(config) == GPT(config).num_params()


def test_nanogpts_counts() -> None:
    assert accounting.num_params(NANOGPT_DEFAULT) == 124_373_760
    small = GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, bias=False)
    assert accounting.num_params(small) == 804_096


def test_nanogpts_flops_and_mfu() -> None:
    assert accounting.flops_per_token(NANOGPT_DEFAULT) == 854_770_176
    assert accounting.flops_per_token(GPTConfig()) == 855_166_464
    # 240 sequences of 1024 tokens in 2.7 s on an A100
    assert accounting.mfu(NANOGPT_DEFAULT, 240 * 1024 / 2.7, 312e12) == pytest.approx(0.249368849067, abs=1e-12)
