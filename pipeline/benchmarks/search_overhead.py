"""What a search trial costs beside its training: building, reporting, saving, and starting the next one.

    python -m pipeline.benchmarks.search_overhead --output FILE.json

One search runs many short trials on the demo's digits, one after another in one process. A trial's overhead is the time
from the end of the previous trial to its own end, minus the seconds of training and validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.ray_environment import prepare_ray_environment
from pipeline.console.command_line import local_path

BACKBONE = "hst_vit_micro_patch8_64"
TASK = "demo-digits"
EPOCHS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, write the file and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=local_path, required=True, help="the JSON file of results")
    parser.add_argument("--trials", type=int, default=20, help="number of trials, 2 or more (default: 20)")
    options = parser.parse_args(arguments)
    if options.trials < 2:
        parser.error(f"--trials {options.trials}: expected at least 2: the first one starts the process")
    prepare_ray_environment()
    report = measure(options.trials)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    beside = f"{report['first_seconds']:.1f} s for the first, then {report['overhead_seconds_median']:.2f} s"
    most = f"at most {report['overhead_seconds_most']:.2f} s"
    print(f"{report['trials']} trials of {report['training_seconds_median']:.2f} s; beside that {beside} ({most})")
    return 0


def measure(count: int) -> dict[str, Any]:
    """The measured seconds, with the machine and versions."""
    from hst.backbone import load_backbone
    from hst.config import HSN_PRESETS
    from hst.model import hst_spec
    from pipeline.cluster.machine import machine
    from pipeline.cluster.ray_cluster import connect
    from pipeline.cluster.resources import Room
    from pipeline.data.demo import make_demo_data
    from pipeline.data.prepare import prepare_task
    from pipeline.kinds.classification import Classification
    from pipeline.search.sampler import Sampler
    from pipeline.search.space import apply, default_space, point_of
    from pipeline.search.trials import Record, Trial, Trials
    from pipeline.search.tuning import run_trials
    from pipeline.tasks.catalogue import TASKS
    from pipeline.training.on_ray.driver import put_backbone
    from pipeline.training.unit import RunSpec

    task, backbone = TASKS[TASK], load_backbone(BACKBONE, None)
    recipe = dataclasses.replace(task.recipe, epochs=EPOCHS, precision="float32")
    hsn = HSN_PRESETS[recipe.hsn].resolve(backbone.depth)
    space = default_space(hsn, backbone.depth)
    ends: list[float] = []
    trained: list[float] = []

    def keep(record: Record) -> None:
        ends.append(time.monotonic())
        trained.append(record.device_seconds)

    with tempfile.TemporaryDirectory() as scratch, connect():
        make_demo_data(Path(scratch) / "data")
        manifests = prepare_task(task, f"{scratch}/data", f"{scratch}/shards", without_test=True)

        def spec_of(trial: Trial) -> RunSpec:
            changed, network = apply(recipe, hsn, trial.point)
            return RunSpec(
                task=task.name,
                protocol="selection",
                seed=0,
                kind=task.kind,
                recipe=dataclasses.asdict(changed),
                method=hst_spec(network),
                head=Classification().head_spec(changed, manifests["train"].class_names),
                train=manifests["train"].uri,
                evaluate=manifests["val"].uri,
                data_sha256={split: manifest.sha256 for split, manifest in manifests.items()},
                backbone_name=BACKBONE,
                backbone_identity=backbone.identity,
            )

        started = time.monotonic()
        run_trials(
            Trials(
                default=point_of(recipe, hsn, space),
                sampler=Sampler(space, algorithm="random", seed=0, task=task.name, measure=task.measure),
                count=count,
                epochs=EPOCHS,
                measure=task.measure,
                keep=keep,
            ),
            spec_of,
            folder_of=lambda trial: f"{scratch}/train/{trial.number}",
            attempt=1,
            backbone=put_backbone(backbone),
            room=Room(at_once=1, cpus=1, gpus=0),
            on_rows=lambda trial, rows: None,
        )
    overheads = [end - before - t for before, end, t in zip(ends, ends[1:], trained[1:], strict=False)]
    return {
        **machine("torch", "ray"),
        "trials": count,
        "epochs": EPOCHS,
        "training_seconds_median": round(statistics.median(trained), 3),
        "first_seconds": round(ends[0] - started - trained[0], 3),
        "overhead_seconds_median": round(statistics.median(overheads), 3),
        "overhead_seconds_most": round(max(overheads), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
