"""What the machine is doing, under the names that MLflow's page of system metrics knows."""

from __future__ import annotations

import contextlib
import importlib


def sample_system_metrics() -> dict[str, float]:
    """One sample of processor, memory and GPUs, for ``Tracker.log_metrics``.

    ``system/cpu_utilization_percentage`` is the average since the previous call in this process (0 at the first).
    Memory is in megabytes (1e6). GPUs are there where NVIDIA's management library and its Python package are.
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
    except pynvml.NVMLError:  # no driver: no GPU
        return {}
    sample: dict[str, float] = {}
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            sample[f"system/gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
            sample[f"system/gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            with contextlib.suppress(pynvml.NVMLError_NotSupported):  # a slice of a shared card does not tell
                load = pynvml.nvmlDeviceGetUtilizationRates(device)
                sample[f"system/gpu_{number}_utilization_percentage"] = float(load.gpu)
            with contextlib.suppress(pynvml.NVMLError_NotSupported):
                sample[f"system/gpu_{number}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(device) / 1000
    finally:
        pynvml.nvmlShutdown()
    return sample
