"""The compiled decoding step computes what the model computes, and is used only where it does."""

import random
import re
from dataclasses import replace

import pytest
import torch
from generation.models import random_model
from torch import nn

from gpt2.doctor.software import decoding
from gpt2.generation import native
from gpt2.generation.engine import Engine
from gpt2.generation.kv_cache import KVCache, KVMemory
from gpt2.generation.native import attempt, compiled, kv_dtype, native_step, why_not_native
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.steps import Chunk, TorchStep
from gpt2.generation.weights import for_decoding
from gpt2.model import GPT, GPTConfig

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiled("float32") is None, reason="there is no C compiler with OpenMP")
needs_float16 = pytest.mark.skipif(compiled("int8", "float16") is None, reason="float16 is converted slowly here")


def model_and_memory(kept: torch.dtype = torch.float32, **changes) -> tuple[GPT, KVMemory]:
    torch.manual_seed(0)
    shape = {"block_size": 24, "vocab_size": 301, "n_layer": 2, "n_head": 3, "n_embd": 54, **changes}
    model = GPT(GPTConfig(**shape)).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return model, KVMemory(model.config, 7, CPU, kept)


@needs_compiler
@pytest.mark.parametrize("n_texts", [1, 2, 4, 7])
@pytest.mark.parametrize("changes", [{}, {"bias": False, "gelu": "erf"}, {"n_embd": 96, "vocab_size": 50}])
def test_logits_and_cache_equal_those_of_the_model(changes: dict, n_texts: int) -> None:
    model, memory = model_and_memory(**changes)
    memory.k.normal_()
    memory.v.normal_()
    starts = [0, 23, 5, 11, 17, 2, 8][:n_texts]
    ids = torch.randint(model.config.vocab_size, (n_texts,))
    expected_memory = KVMemory(model.config, 7, CPU, torch.float32)
    expected_memory.k.copy_(memory.k)
    expected_memory.v.copy_(memory.v)
    step = native_step(model, memory)
    assert step is not None
    with torch.no_grad():
        window = KVCache(expected_memory, 0, torch.tensor(starts)[:, None], 24)
        expected = model.head(model.hidden(ids[:, None], window.mask, window, window.positions))[:, 0]
        found = step.logits(ids, starts, [])
    assert torch.allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert torch.allclose(memory.k, expected_memory.k, rtol=0, atol=1e-5)
    assert torch.allclose(memory.v, expected_memory.v, rtol=0, atol=1e-5)


def mixed_chunks(rng: random.Random, first_slot: int, n_slots: int, block_size: int) -> list[Chunk]:
    """Chunks of many lengths, one for each slot from `first_slot` on, in another order than that of the slots."""
    slots = rng.sample(range(first_slot, n_slots), n_slots - first_slot)
    chunks = []
    for slot in slots:
        size = rng.choice([1, 2, 3, 5, 6, 7, 13])
        start = rng.randrange(block_size - size + 1)
        tokens = [rng.randrange(50) for _ in range(size)]
        chunks.append(Chunk(slot, start, tokens, wants_all=rng.random() < 0.5))
    return chunks


@needs_compiler
@pytest.mark.parametrize("changes", [{}, {"bias": False, "gelu": "erf"}, {"n_embd": 384, "vocab_size": 50}])
@pytest.mark.parametrize("n_decoded", [0, 3])
@pytest.mark.parametrize("kept", [torch.float32, pytest.param(torch.float16, marks=needs_float16)])
def test_chunks_of_prompts_equal_those_of_the_model(changes: dict, n_decoded: int, kept: torch.dtype) -> None:
    model, memory = model_and_memory(kept, **changes)
    memory.k.normal_()
    memory.v.normal_()
    expected_memory = KVMemory(model.config, 7, CPU, kept)
    expected_memory.k.copy_(memory.k)
    expected_memory.v.copy_(memory.v)
    chunks = mixed_chunks(random.Random(n_decoded), n_decoded, 7, 24)
    last, starts = torch.arange(n_decoded), [23, 5, 11][:n_decoded]
    step = native_step(model, memory)
    assert step is not None
    with torch.no_grad():
        expected = TorchStep(model, expected_memory, size=4).logits(last, starts, chunks)
        found = step.logits(last, starts, chunks)
    assert len(found) == n_decoded + sum(chunk.n_wanted for chunk in chunks)
    pairs = ((found, expected), (memory.k, expected_memory.k), (memory.v, expected_memory.v))
    error = 2e-5 if kept == torch.float32 else 2**-10  # one more or less in the last bit of float16
    assert all(torch.allclose(a, b, rtol=0, atol=error * float(b.abs().max())) for a, b in pairs)


@needs_float16
def test_the_engine_keeps_keys_in_float16_where_matrices_are_rounded_too() -> None:
    model, _ = model_and_memory()
    small = for_decoding(model, quantize="int8")
    assert Engine(small).cache.k.dtype == Engine(for_decoding(model, "bfloat16")).cache.v.dtype == torch.float16
    assert Engine(small, native=False).cache.k.dtype == Engine(model).cache.k.dtype == torch.float32
    assert kv_dtype(small, native=True) == torch.float16


@needs_float16
def test_a_key_too_large_for_float16_is_kept_as_its_largest_number() -> None:
    model, memory = model_and_memory(torch.float16)
    block = model.transformer.h[0]
    with torch.no_grad():
        block.attn.c_attn.bias[54:] = torch.tensor([1e6, -1e6, 3.0]).repeat(36)  # of keys and values
    step = native_step(model, memory)
    assert step is not None
    logits = step.logits(torch.tensor([5]), [0], [])
    assert logits.isfinite().all()
    assert memory.v[0, 0, 0, 0, :2].tolist() == memory.k[0, 0, 2, 0, :2].tolist() == [65504, -65504]


@needs_compiler
@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")])
def test_a_token_does_not_depend_on_what_is_computed_with_it(dtype: str, quantize) -> None:
    """Chunks together, one by one, and token by token: the same logits, keys and values, to the last bit."""
    model, _ = model_and_memory(block_size=77, n_head=2, n_embd=64)
    prepared = for_decoding(model, dtype, quantize)
    memory = KVMemory(model.config, 7, CPU, kv_dtype(prepared, native=True))
    step = native_step(prepared, memory)
    assert step is not None
    k, v = torch.randn_like(memory.k), torch.randn_like(memory.v)
    chunks = [replace(chunk, wants_all=True) for chunk in mixed_chunks(random.Random(4), 2, 7, 77)]
    last, starts = torch.arange(2), [5, 70]
    one_by_one = [(last, starts, []), *((last[:0], [], [chunk]) for chunk in chunks)]
    tokens = [Chunk(chunk.slot, chunk.start + i, [token]) for chunk in chunks for i, token in enumerate(chunk.tokens)]
    token_by_token = [(last[:1], starts[:1], []), (last, starts, []), *((last[:0], [], [token]) for token in tokens)]
    results = []
    for calls in ([(last, starts, chunks)], one_by_one, token_by_token):
        memory.k.copy_(k)
        memory.v.copy_(v)
        logits = torch.cat([step.logits(*call) for call in calls])
        results.append((logits, memory.k.clone(), memory.v.clone()))
    together, alone, single = results
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(together[0], single[0][1:])
    assert all(torch.equal(a, b) for a, b in zip(together[1:], single[1:], strict=True))


@needs_compiler
@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", "none"), ("float16", "none"), ("float32", "int8")])
def test_small_dtypes_are_read_exactly(dtype: str, quantize) -> None:
    model, memory = model_and_memory()
    prepared = for_decoding(model, dtype, quantize)
    step = native_step(prepared, memory)
    assert step is not None
    exact = GPT(model.config).eval()  # the same values in float32
    for name, p in exact.named_parameters():
        q, module = prepared.get_parameter(name), prepared.get_submodule(name.rpartition(".")[0])
        scales = getattr(module, "scales", None)
        p.data = q.float() if scales is None or p.dim() == 1 else q.float() * scales[:, None]
    ids = torch.tensor([3, 200])
    with torch.no_grad():
        expected = exact.head(exact.hidden(ids[:, None]))[:, 0]
    found = step.logits(ids, [0, 0], [])
    error = 1e-4 if quantize == "int8" else 2e-5  # with int8, the inputs of products are rounded to 16 bits
    assert torch.allclose(found, expected, rtol=0, atol=error * float(expected.abs().max()))


@needs_compiler
def test_sums_of_integers_do_not_overflow() -> None:
    """All 8,448 inputs and weights have the largest size. With 16 bits, a lane's 528 products would need 33 bits."""
    n_embd = 2112
    model, memory = model_and_memory(n_head=1, n_embd=n_embd, n_layer=1, vocab_size=4, block_size=2)
    mlp = model.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.zero_()
        mlp.c_fc.bias.fill_(50.0)
        mlp.c_proj.weight.fill_(1.0)
        mlp.c_proj.weight[::2] = -1.0
        expected = model.head(model.hidden(torch.tensor([[1]])))[:, 0]
    step = native_step(for_decoding(model, quantize="int8"), memory)
    assert step is not None
    found = step.logits(torch.tensor([1]), [0], [])
    assert torch.allclose(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


@needs_compiler
def test_large_numbers_stay_finite() -> None:
    model, memory = model_and_memory()
    for parameter in model.parameters():
        parameter.data *= 30
    step = native_step(model, memory)
    assert step is not None
    ids = torch.arange(4)
    with torch.no_grad():
        expected = model.head(model.hidden(ids[:, None]))[:, 0]
    assert torch.allclose(step.logits(ids, [0] * 4, []), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@needs_compiler
@pytest.mark.parametrize("changes", [{}, {"n_head": 2, "n_embd": 64, "vocab_size": 50}])
@pytest.mark.parametrize(
    ("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float16", "none"), ("float32", "int8")]
)
def test_a_row_does_not_depend_on_the_other_texts(dtype: str, quantize, changes: dict) -> None:
    """Sizes of batches and lengths of texts on both sides of the multiples of what is computed together."""
    n_texts, block_size = 33, 77
    model, _ = model_and_memory(block_size=block_size, **changes)
    prepared = for_decoding(model, dtype, quantize)
    memory = KVMemory(model.config, n_texts, CPU, kv_dtype(prepared, native=True))
    step = native_step(prepared, memory)
    assert step is not None
    k, v = torch.randn_like(memory.k), torch.randn_like(memory.v)
    ids = torch.arange(n_texts)
    positions = [0, 14, 15, 16, 17, 31, 32, 63, 64, 76, *((7 * i) % block_size for i in range(n_texts - 10))]
    alone = []
    for i in range(n_texts):
        memory.k[:, 0], memory.v[:, 0] = k[:, i], v[:, i]
        logits = step.logits(ids[i : i + 1], [positions[i]], [])[0]
        alone.append((logits, memory.k[:, 0].clone(), memory.v[:, 0].clone()))
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33):
        memory.k.copy_(k)
        memory.v.copy_(v)
        logits = step.logits(ids[:size], positions[:size], [])
        for i in range(size):
            found = (logits[i], memory.k[:, i], memory.v[:, i])
            assert all(torch.equal(a, b) for a, b in zip(found, alone[i], strict=True)), (size, i)


@needs_compiler
@pytest.mark.parametrize("changes", [{}, {"gelu": "erf"}, {"n_embd": 96}])
def test_a_row_does_not_depend_on_the_threads(changes: dict) -> None:
    model, memory = model_and_memory(**changes)
    step = native_step(model, memory)
    assert step is not None
    ids = torch.arange(7)
    threads = torch.get_num_threads()
    together = step.logits(ids, [0] * 7, [])
    try:
        for other in (2, 3, 5):
            torch.set_num_threads(other)
            assert torch.equal(step.logits(ids, [0] * 7, []), together)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 301])
def test_an_id_that_the_model_does_not_have_is_an_error(wrong: int) -> None:
    model, memory = model_and_memory()
    step = native_step(model, memory)
    assert step is not None
    with pytest.raises(IndexError, match=r"the model has 0 … 300"):
        step.logits(torch.tensor([5]), [0], [Chunk(1, 0, [3, wrong])])


class Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def other_mlp(model: GPT) -> None:
    model.transformer.h[1].mlp = Squared()


def hooked(model: GPT) -> None:
    model.transformer.h[0].attn.register_forward_hook(lambda *_: None)


def other_forward(model: GPT) -> None:
    model.transformer.h[0].forward = model.transformer.h[0].forward


def wide_mlp(model: GPT) -> None:
    model.transformer.h[0].mlp.c_fc = nn.Linear(54, 2 * 54)


def with_dropout(model: GPT) -> None:
    model.config = replace(model.config, dropout=0.1)
    model.train()


def other_embedding(model: GPT) -> None:
    model.transformer.wte.__class__ = type("Other", (type(model.transformer.wte),), {})


def other_positions(model: GPT) -> None:
    model.transformer.wpe.__class__ = type("Other", (type(model.transformer.wpe),), {})


def in_double(model: GPT) -> None:
    model.double()


@needs_compiler
@pytest.mark.parametrize(
    "change", [other_mlp, hooked, other_forward, wide_mlp, with_dropout, other_embedding, other_positions, in_double]
)
def test_other_models_are_computed_by_pytorch(change) -> None:
    model, memory = model_and_memory()
    assert native_step(model, memory) is not None
    change(model)
    assert native_step(model, memory) is None


def test_without_a_compiler_the_texts_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model = random_model()
    requests = [Request([i, 7], 12, Sampling(), i) for i in range(5)]

    def ids() -> list[int]:
        engine = Engine(model)
        for request in requests:
            engine.submit(request)
        return [token.id for token in engine.run()]

    with_it = ids()
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "attempt", native.attempt.__wrapped__)
    assert Engine(model).native is None
    assert ids() == with_it


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PATH", "", "there is no C compiler on PATH"),
        ("CC", "no-compiler -O1", "CC is no-compiler -O1, which is not on PATH"),
        ("CC", "gcc -fno-such-option", r"gcc -fno-such-option fails: .*no-such-option"),
        ("XDG_CACHE_HOME", "{file}/cache", "its code cannot be kept: .*; set XDG_CACHE_HOME to a folder"),
    ],
)
def test_a_machine_without_compiled_steps_says_why(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value.format(file=tmp_path / "file"))
    monkeypatch.setattr(native, "attempt", native.attempt.__wrapped__)
    assert re.fullmatch(f"PyTorch computes the steps, which is slower: {reason}.*", why_not_native(random_model()))
    assert re.search(reason.replace(" ", r"\s+"), decoding().found)
    assert decoding().verdict == "warning"


@needs_compiler
def test_the_compiler_may_have_options(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("CC", " gcc  -O1 ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "attempt", native.attempt.__wrapped__)
    assert why_not_native(random_model()) == ""
    assert decoding().verdict == "ok"


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [
        ("float32", "1.0f / sqrtf((float)size)", "1.01f / sqrtf((float)size)"),
        ("float32", "case 1:", "case 9:"),
        ("float32", "const int length = (int)cache->positions[b] + 1", "const int length = (int)cache->positions[b]"),
        ("float32", "cache->slots[b] * cache->slot", "0 * cache->slot"),
        ("int8", "if (m.scales) found *= *(", "if (m.scales) found /= *("),
    ],
)
def test_a_library_that_computes_something_else_is_not_used(
    dtype: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    source = native.SOURCE.read_text()
    assert source.count(right) == 1
    (tmp_path / "decode.c").write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "SOURCE", tmp_path / "decode.c")
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))  # compiles faster
    monkeypatch.setattr(native, "attempt", native.attempt.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = for_decoding(random_model(), "float32", "int8" if dtype == "int8" else "none")
    assert Engine(model).native is None
    assert list(tmp_path.glob("gpt2/decode-*.so")), "it was compiled"


@needs_compiler
@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="needs an x86 processor with AVX2")
@pytest.mark.parametrize(
    "processor", [["-march=x86-64-v2"], ["-march=haswell"], ["-march=haswell", "-mtune=znver3"], ["-mno-avx512bw"]]
)
def test_the_code_for_other_processors_computes_the_same(
    processor: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """For AMD's Zen 3, GCC itself would round the sums of one token otherwise than those of several."""
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, *processor))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not any(isinstance(attempt.__wrapped__(dtype), str) for dtype in ("float32", "int8"))
    converts_float16 = processor != ["-march=x86-64-v2"]
    assert isinstance(attempt.__wrapped__("bfloat16", "float16"), str) is not converts_float16


@needs_compiler
def test_loading_a_library_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    assert not isinstance(attempt.__wrapped__("float32"), str)
    assert torch.equal(torch.random.get_rng_state(), before)
