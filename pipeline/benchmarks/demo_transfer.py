"""Does the shipped ViT help on the demo's tasks? Random against pretrained weights, a linear probe against HST:

    python -m pipeline.benchmarks.demo_transfer --output FILE.json

Each seed draws its own data and trains its own models; all methods see the same images. The probe is a logistic
regression on the frozen ViT's final tokens (the class token and the mean of the patches); its C is chosen on val. HST
uses the demo's recipe. Both then train on trainval and are evaluated on test once. Finished results are kept in FILE:
the same command continues from it and prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hst.backbone import Backbone, load_backbone
from hst.config import HSN_PRESETS
from hst.model import build_classifier
from pipeline.console.command_line import local_path
from pipeline.console.progress import Printer
from pipeline.data.batches.streaming import open_split
from pipeline.data.demo import make_demo_data
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.kinds.classification import Classification
from pipeline.tasks.catalogue import TASKS, Task, select_tasks
from pipeline.tasks.recipe import Recipe
from pipeline.training.loop import fit
from pipeline.training.task_run import TaskRun
from pipeline.training.unit import preprocessing_of
from pipeline.training.workers import Workers

BACKBONE = "hst_vit_micro_patch8_64"
WEIGHTS: dict[str, str | None] = {"random": "random", "pretrained": None}
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of the logistic regression's C that are tried on val, strongest regularisation first; the first wins a tie."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure what is missing, write the file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=local_path, required=True, help="the JSON file of results")
    parser.add_argument("--tasks", default="demo", help="tasks of the demo, separated by commas (default: all four)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0 (default: 3)")
    options = parser.parse_args(arguments)
    tasks, faults = select_tasks(options.tasks.split(","))
    faults += [f"{task.name} is none of the demo's tasks" for task in tasks if task.group != "demo"]
    if faults:
        print("error: " + "; ".join(faults), file=sys.stderr)
        return 2
    try:
        report = measure(options.output, tasks, range(options.seeds), say=Printer())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(report["rows"]))
    return 0


def measure(output: Path, tasks: Sequence[Task], seeds: Sequence[int], *, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what ``output`` lacks and return its content: the set-up, and a row for each task, seed and method.

    Raises:
        ValueError: ``output`` exists and is of another set-up.
    """
    backbones = {name: load_backbone(BACKBONE, weights) for name, weights in WEIGHTS.items()}
    report = _open_report(output, {name: backbone.identity for name, backbone in backbones.items()})
    done = {(row["task"], row["seed"], row["method"]) for row in report["rows"]}
    methods: dict[str, Callable[[Task, dict[str, Manifest], int], float]] = {
        f"{kind}, {name}": lambda task, data, seed, how=how, vit=backbones[name]: how(vit, task, data, seed)  # type: ignore[misc]
        for kind, how in (("linear probe", probe), ("HST", tune))
        for name in ("pretrained", "random")
    }
    with tempfile.TemporaryDirectory() as folder:
        data = {seed: _prepare(Path(folder) / str(seed), tasks, seed) for seed in seeds}
        for method, run in methods.items():
            for seed in seeds:
                for task in tasks:
                    if (task.name, seed, method) in done:
                        continue
                    started = time.monotonic()
                    top1 = run(task, data[seed][task.name], seed)
                    report["rows"].append({"task": task.name, "seed": seed, "method": method, "test/top1": top1})
                    _write(output, report)
                    say(f"{method}, {task.name}, seed {seed}: {top1:.1%} in {time.monotonic() - started:.0f} s")
    return report


def _open_report(output: Path, identities: dict[str, str]) -> dict[str, Any]:
    setup = {
        "backbone": BACKBONE,
        "identities": identities,
        "hardware": f"{os.cpu_count()} cores of {_processor()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "regularisations": list(REGULARISATIONS),
        "recipes": {task.name: _changed_fields(task) for task in TASKS.values() if task.group == "demo"},
    }
    if not output.exists():
        return {**setup, "rows": []}
    report: dict[str, Any] = json.loads(output.read_text())
    other = [name for name in setup if report.get(name) != setup[name]]
    if other:
        raise ValueError(f"{output}: of another set-up ({', '.join(other)}); name another file, or remove it")
    return report


def _changed_fields(task: Task) -> dict[str, Any]:
    """The fields that the task's recipe changes, as JSON values. Rows of different recipes must not share a table."""
    standard = dataclasses.asdict(Recipe())
    changed = {name: value for name, value in dataclasses.asdict(task.recipe).items() if value != standard[name]}
    fields: dict[str, Any] = json.loads(json.dumps(changed))
    return fields


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _write(output: Path, report: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, output)


def _prepare(root: Path, tasks: Sequence[Task], seed: int) -> dict[str, dict[str, Manifest]]:
    make_demo_data(root / "data", seed=seed)
    return {task.name: prepare_task(task, str(root / "data"), str(root / "shards")) for task in tasks}


def probe(backbone: Backbone, task: Task, data: dict[str, Manifest], seed: int) -> float:
    """Top-1 on test of a logistic regression on the frozen tokens; only the data depends on the seed."""
    features = {split: _features(backbone, task, manifest) for split, manifest in data.items()}
    on_val = [_probe_top1(features["train"], features["val"], strength) for strength in REGULARISATIONS]
    chosen = REGULARISATIONS[int(np.argmax(on_val))]
    return _probe_top1(features["trainval"], features["test"], chosen)


def _probe_top1(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], regularisation: float
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest regularisation may raise it; val judges it
        model.fit(*train)
    return float(model.score(*test))


@torch.no_grad()
def _features(backbone: Backbone, task: Task, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Each image's class token and mean patch token after the last norm, (n, 2 * embed_dim), and its label, (n,)."""
    preprocessing = preprocessing_of(task.recipe, backbone.name)
    features, labels = [], []
    for batch in open_split(manifest.uri, preprocessing).eval_batches(batch_size=64):
        tokens = backbone.vit.forward_features(preprocessing.normalize(batch.images))
        features.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
        labels.append(batch.labels)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def tune(backbone: Backbone, task: Task, data: dict[str, Manifest], seed: int) -> float:
    """Top-1 on test of the demo's final run: HST trained on trainval with the task's recipe."""
    recipe = task.recipe
    preprocessing = preprocessing_of(recipe, backbone.name)
    assert task.num_classes is not None
    model = build_classifier(
        backbone,
        HSN_PRESETS[recipe.hsn],
        num_classes=task.num_classes,
        head_input=recipe.head_input,
        seed=seed,
        task=task.name,
    )
    run = TaskRun(
        task=task.name,
        seed=seed,
        kind=Classification(),
        model=model,
        recipe=recipe,
        preprocessing=preprocessing,
        train=open_split(data["trainval"].uri, preprocessing),
        test=open_split(data["test"].uri, preprocessing),
    )
    (state,) = fit([run], workers=Workers(), report=lambda states, last: None)
    return float(state.results["metrics"]["test/top1"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown with one line per task and one column per method: mean and standard deviation over the seeds, per cent.

    A cell with fewer seeds than the largest one says how many it has.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cells.setdefault((row["task"], row["method"]), []).append(100 * row["test/top1"])
    most = max(len(found) for found in cells.values())
    methods = [f"{kind}, {weights}" for kind in ("linear probe", "HST") for weights in ("random", "pretrained")]
    lines = ["| task | " + " | ".join(methods) + " |", "| --- |" + " --- |" * len(methods)]
    for name in dict.fromkeys(row["task"] for row in rows):
        texts = [_cell(cells.get((name, method), []), most) for method in methods]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _cell(found: Sequence[float], most: int) -> str:
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}" + (f" ({len(found)} of {most} seeds)" if len(found) < most else "")


if __name__ == "__main__":
    sys.exit(main())
