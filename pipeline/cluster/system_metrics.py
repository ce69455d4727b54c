"""Load of the machine, under the names that MLflow's page of system metrics uses."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


def sample_system_metrics() -> dict[str, float]:
    """One sample of processor, memory and GPUs, for ``Tracker.log_metrics``.

    ``system/cpu_utilization_percentage`` is the average since the previous call in this process (0 at the first).
    Memory is in megabytes (1e6 bytes). GPUs are included if NVIDIA's management library and its Python package exist.
    """
    import psutil

    memory = psutil.virtual_memory()
    sample = {
        "system/cpu_utilization_percentage": float(psutil.cpu_percent(interval=None)),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": float(memory.percent),
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    return sample | _gpu_metrics()


def _gpu_metrics() -> dict[str, float]:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU
        return {}
    sample: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        for number in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):  # one GPU is lost: still read the others
                device = pynvml.nvmlDeviceGetHandleByIndex(number)
                sample |= {f"system/gpu_{number}_{name}": value for name, value in _readings(pynvml, device)}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
    return sample


def _readings(pynvml: Any, device: Any) -> Iterator[tuple[str, float]]:
    """The readings that the GPU gives. A slice of a shared GPU, or a lost GPU, does not give all of them."""
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
        yield "memory_usage_megabytes", memory.used / 1e6
        yield "memory_usage_percentage", 100 * memory.used / memory.total
    with contextlib.suppress(pynvml.NVMLError):
        yield "utilization_percentage", float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
    with contextlib.suppress(pynvml.NVMLError):
        yield "power_usage_watts", pynvml.nvmlDeviceGetPowerUsage(device) / 1000
