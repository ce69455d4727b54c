"""A sample of the machine, under names that MLflow takes."""

import math

from pipeline.system_metrics import sample_system_metrics


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
