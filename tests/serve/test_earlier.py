"""What a server says about the earlier steps of a run is what each snapshot says by hand."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from serve.conftest import Running
from serve.test_inside import unpacked

import gpt2
from gpt2.formats.run_folder import folder_of, snapshot_file, weights_by_step
from gpt2.model import GPT
from gpt2.serve.earlier import MOST_MODELS, EarlierWeights, thinned

TEXT = "the cat sat on a mat"


def by_hand(path: Path) -> torch.Tensor:
    """The loss of each token of the text, from the model's logits."""
    model, tokenizer = gpt2.load(path)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        logits, _ = model(ids, ids)
    return -logits[0, :-1].double().log_softmax(-1)[range(ids.size(1) - 1), ids[0, 1:]]


def test_a_curve_has_the_losses_of_every_snapshot(learned: tuple[Running, Path]) -> None:
    one, run = learned
    answer = one.post("/inside/curve", text=TEXT)
    found = unpacked(answer.json())
    assert found["steps"] == [0, 1, 2, 4, 5, 8, 10] and found["unreadable"] == []
    paths = weights_by_step(run)
    assert paths[5] == folder_of(run, 5) and paths[10] == snapshot_file(run, 10)
    for step, own in zip(found["steps"], found["losses"], strict=True):
        torch.testing.assert_close(own.double(), by_hand(paths[step]), atol=1e-5, rtol=1e-5)
    assert float(found["losses"][0].mean()) > float(found["losses"][-1].mean())
    assert len(one.api.readers["tiny"].earlier.models) == MOST_MODELS
    events = [json.loads(line[6:]) for line in one.post("/inside/curve", text=TEXT, stream=True).text.splitlines()
              if line.startswith("data: {")]  # fmt: skip
    assert "progress" in events[0] and events[-1] == answer.json()


def test_a_text_is_read_with_the_weights_of_a_step(learned: tuple[Running, Path]) -> None:
    one, run = learned
    for step in (0, 5):
        found = unpacked(one.post("/inside/analysis", text=TEXT, step=step).json())
        torch.testing.assert_close(
            found["losses"]["loss"].double(), by_hand(weights_by_step(run)[step]), atol=1e-5, rtol=1e-5
        )
        assert found["model"] == f"tiny, step {step}" and {"attention", "lens"} <= found.keys()
        assert one.post("/inside/read", text=TEXT, step=step).json()["losses"]["loss"] is not None
    now = unpacked(one.post("/inside/analysis", text=TEXT).json())
    assert now["model"] == "tiny" and float(now["mean_loss"]) != float(found["mean_loss"])


def test_what_is_no_step_is_refused(learned: tuple[Running, Path], tiny: Running) -> None:
    one, _ = learned
    for path in ("read", "analysis"):
        answer = one.post(f"/inside/{path}", text=TEXT, step=3)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "step")
        assert "no snapshot or checkpoint of step 3" in answer.json()["error"]["message"]
    answer = tiny.post("/inside/curve", text=TEXT)
    assert answer.status_code == 400 and "no folder of a run" in answer.json()["error"]["message"]
    assert one.post("/inside/curve", text="the " * 40).status_code == 400
    assert one.post("/inside/curve", text=TEXT, step=1).json()["error"]["message"].startswith("unknown field 'step'")


def test_damaged_and_removed_steps_are_omitted(learned: tuple[Running, Path]) -> None:
    one, run = learned
    path = snapshot_file(run, 4)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    found = one.post("/inside/curve", text=TEXT).json()
    assert found["unreadable"] == [4] and 4 not in found["steps"]
    path.unlink()
    found = one.post("/inside/curve", text=TEXT).json()
    assert found["unreadable"] == [] and 4 not in found["steps"]
    path.write_bytes(content)
    assert one.post(max_tokens=2).status_code == 200


def test_others_write_while_weights_are_loaded(
    learned: tuple[Running, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, _), free, model = learned, threading.Event(), EarlierWeights.model
    loading: list[int] = []

    def wait(self: EarlierWeights, step: int) -> GPT:
        loading.append(step)
        assert free.wait(20)
        return model(self, step)

    monkeypatch.setattr(EarlierWeights, "model", wait)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(one.post("/inside/curve", text=TEXT).status_code))
    thread.start()
    assert one.becomes(lambda: bool(loading))
    assert one.post(max_tokens=3).status_code == 200 and not answers
    free.set()
    thread.join(20)
    assert answers == [200]


def test_many_steps_are_thinned_by_their_logarithm() -> None:
    assert thinned([0, 1, 2, 4], 4) == [0, 1, 2, 4]
    kept = thinned(list(range(0, 100_001)), 11)
    assert kept[0] == 0 and kept[-1] == 100_000 and len(kept) == 11
    ratios = np.diff(np.log([step + 1 for step in kept]))
    assert ratios.min() > 0.8 * ratios.max()
    assert thinned(list(range(0, 1000, 10)), 12)[-1] == 990
