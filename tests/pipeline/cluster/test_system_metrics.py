"""A sample of the machine's load, under names that MLflow accepts."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.system_metrics import sample_system_metrics


def test_a_sample_has_processor_and_memory_under_mlflows_names() -> None:
    sample = sample_system_metrics()
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/process_memory_usage_megabytes",
    } <= sample.keys()
    assert all(math.isfinite(value) and value >= 0 for value in sample.values())
    assert sample["system/process_memory_usage_megabytes"] < sample["system/system_memory_usage_megabytes"] * 10


class NVMLError(Exception):
    pass


READINGS = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage")
CALLS = ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", *READINGS, "nvmlShutdown")


def library(broken: str) -> Any:
    """A fake of NVIDIA's management library with two GPUs; the call `broken` fails for the first."""
    answers: dict[str, Any] = {
        "nvmlDeviceGetCount": 2,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2e6, total=8e6),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": 70_000,
    }

    def call(name: str, number: int = 0) -> Any:
        if name == broken and number == 0:
            raise NVMLError("GPU is lost")
        return number if name == "nvmlDeviceGetHandleByIndex" else answers.get(name)

    calls = {name: lambda *arguments, name=name: call(name, *arguments) for name in CALLS}
    return SimpleNamespace(NVMLError=NVMLError, **calls)


@pytest.mark.parametrize("broken", ["", *CALLS])
def test_a_gpu_that_does_not_tell_stops_nothing(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(broken))
    told = {name.removeprefix("system/gpu_"): value for name, value in sample_system_metrics().items() if "gpu" in name}
    every = {
        "memory_usage_megabytes": 2.0,
        "memory_usage_percentage": 25.0,
        "utilization_percentage": 50.0,
        "power_usage_watts": 70.0,
    }
    second = {f"1_{name}": value for name, value in every.items()}
    if broken in ("", "nvmlShutdown"):
        assert told == second | {f"0_{name}": value for name, value in every.items()}
    elif broken in ("nvmlInit", "nvmlDeviceGetCount"):
        assert told == {}
    elif broken == "nvmlDeviceGetHandleByIndex":
        assert told == second
    else:
        assert told.keys() > second.keys()
        assert len(told) == {"nvmlDeviceGetMemoryInfo": 6}.get(broken, 7)
