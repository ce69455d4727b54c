"""GlobalBatchNorm in several processes has the outputs, gradients and buffers of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hst.layers.batch_norm import GlobalBatchNorm, batch_norm_without_affine
from tests.hst.layers import global_batch_norm_rank

ROOT = Path(__file__).resolve().parents[3]
WORLD = 2

CASES: dict[str, dict[str, Any]] = {
    "maps": {"shape": (5, 4, 3, 6), "splits": [0, 2, 5], "kwargs": {}},
    "pooled": {"shape": (7, 6), "splits": [0, 6, 7], "kwargs": {"affine": False, "eps": 1e-6}},
    "one-sample-a-process": {"shape": (2, 4, 2, 2), "splits": [0, 1, 2], "kwargs": {}},
    "far-from-zero": {"shape": (6, 3), "splits": [0, 3, 6], "kwargs": {}, "offset": 1e4},
}


def write_case(name: str, folder: Path) -> dict[str, Any]:
    spec = CASES[name]
    draws = torch.Generator().manual_seed(1)
    shape = spec["shape"]
    norm = GlobalBatchNorm(shape[1], **spec["kwargs"]).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator=draws)
    case = {
        "batches": [
            torch.randn(shape, generator=draws, dtype=torch.float64) * 2 + 1 + spec.get("offset", 0) for _ in range(2)
        ],
        "weights": [torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(2)],
        "kwargs": spec["kwargs"],
        "splits": spec["splits"],
        "state": norm.state_dict(),
    }
    torch.save(case, folder / f"{name}.pt")
    return case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of two processes for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    script = global_batch_norm_rank.__file__
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    for name in CASES:
        write_case(name, folder)
    commands = [[sys.executable, script, str(rank), str(WORLD), str(folder), *CASES] for rank in range(WORLD)]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=110)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_processes_together_equal_one_process(name: str, folder: Path) -> None:
    case = torch.load(folder / f"{name}.pt", weights_only=True)
    ranks = [torch.load(folder / f"{name}-{r}.pt", weights_only=True) for r in range(WORLD)]
    one = global_batch_norm_rank.run(case, slice(None))
    assert all(rank.keys() == one.keys() for rank in ranks)
    tolerance = 1e-12 * max(1.0, CASES[name].get("offset", 0))  # far from zero the mean itself has an error of 1e-12
    for key, expected in one.items():
        if key in ("y0", "y1", "dx0", "dx1", "eval"):
            got = torch.cat([rank[key] for rank in ranks])
        elif key in ("dweight", "dbias"):
            got = torch.stack([rank[key] for rank in ranks]).sum(0)  # what data parallel training sums
        else:
            assert all(torch.equal(rank[key], ranks[0][key]) for rank in ranks), f"{key} differs between the ranks"
            got = ranks[0][key]
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=tolerance, msg=f"{key}: {{}}".format)


@pytest.mark.parametrize("name", CASES)
def test_one_process_is_torchs_batch_norm(name: str, tmp_path: Path) -> None:
    case = write_case(name, tmp_path)
    torchs: nn.Module = nn.BatchNorm2d if len(CASES[name]["shape"]) == 4 else nn.BatchNorm1d  # type: ignore[assignment]
    norm = torchs(CASES[name]["shape"][1], **case["kwargs"]).double()
    norm.load_state_dict(case["state"])
    one = global_batch_norm_rank.run(case, slice(None))
    for step in range(2):
        torch.testing.assert_close(norm(case["batches"][step]), one[f"y{step}"], rtol=1e-12, atol=1e-12)
    for key, value in norm.named_buffers():
        torch.testing.assert_close(one[key], value, rtol=1e-12, atol=1e-12)


def test_its_keys_are_those_of_torchs_batch_norm() -> None:
    assert GlobalBatchNorm(3).state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()
    assert batch_norm_without_affine(3).state_dict().keys() == nn.BatchNorm1d(3, affine=False).state_dict().keys()


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GlobalBatchNorm\(3\): expected .* got \(2, 4\)"):
        GlobalBatchNorm(3)(torch.zeros(2, 4))
