"""On a GPU: training waits for nothing between its steps, and gives the results of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hst import plain
from hst.backbone import Backbone
from hst.gpu.recorded import AFTER
from pipeline.training import epochs, loop
from pipeline.training.computing import Computer
from pipeline.training.loop import fit
from pipeline.training.pack import Pack
from pipeline.training.task_run import RunState
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Spec = Callable[..., RunSpec]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {"mixup": 0.8, "cutmix": 1.0, "horizontal_flip": 0.5, "random_erasing": 0.5},
    "clipped": {"clip_norm": 0.1, "accumulation_steps": 2, "head_input": "side+cls"},
}


def trained(tiny_spec: Spec, backbone: Backbone, case: str, device: str) -> list[RunState]:
    workers = Workers(device=torch.device(device))
    own = backbone.double().to(device)
    spec = {"batch_size": 4, "epochs": 4, **CASES[case]}
    runs = [build_run(tiny_spec(kind, **spec), own, workers) for kind in ("selection", "final")]
    return fit(runs, workers=workers, report=lambda *_: None)


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_cpus(case: str, tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    with plain.only():
        want = trained(tiny_spec, tiny_backbone, case, "cpu")
    got = trained(tiny_spec, tiny_backbone, case, "cuda")
    for one, other in zip(got, want, strict=True):
        losses = [[float(row["train/loss"]) for row in state.history] for state in (one, other)]
        torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_gpu(
    case: str, tiny_spec: Spec, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two epochs are exempt: they pay costs that come once, such as recording."""
    original = epochs._train

    def watched(state: RunState, workers: Workers) -> Iterator[Any]:
        if state.epochs_done < 2:
            yield from original(state, workers)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from original(state, workers)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(epochs, "_train", watched)
    assert all(state.finished for state in trained(tiny_spec, tiny_backbone, case, "cuda"))


def test_steps_are_recorded_alone_and_in_a_pack(
    tiny_spec: Spec, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Computer] = []

    def computer(device: torch.device) -> Computer:
        made.append(Computer(device))
        return made[-1]

    monkeypatch.setattr(loop, "Computer", computer)
    trained(tiny_spec, tiny_backbone, "plain", "cuda")
    assert made[0]._recorder._recordings
    workers = Workers(device=torch.device("cuda"))
    pack = Pack(workers)
    for seed in range(2):
        spec = tiny_spec("final", seed=seed, batch_size=4, epochs=4)
        pack.join(str(seed), [build_run(spec, tiny_backbone.double().to("cuda"), workers)])
    for _ in range(AFTER + 2):
        assert not pack.step()
    assert pack._computer._recorder._recordings
