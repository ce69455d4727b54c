"""What a drill found: a table for people, a dict for machines."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from pipeline.cluster.machine import machine
from pipeline.console.text_table import aligned
from pipeline.drill.cluster import SECONDS_UNTIL_DEAD
from pipeline.drill.drill import Kill, Outcome
from pipeline.drill.results import TaskResult, read_result
from pipeline.drill.tasks import MEASURE
from pipeline.registry.versions import list_tasks


def report_of(outcome: Outcome) -> dict[str, Any]:
    """The report in JSON values. ``passed``: every kill was recovered from, and every task is equal in both runs."""
    versions = list_tasks(outcome.tracking_uri, prefix="killed-")
    tasks = [_compare(outcome, task, len(versions.get(task, ()))) for task in outcome.tasks]
    recovered = [kill for kill in outcome.kills if kill.recovered_s is not None]
    return {
        **machine("torch", "ray", "mlflow"),
        "seconds_until_a_node_is_dead": SECONDS_UNTIL_DEAD,
        "undisturbed_seconds": round(outcome.whole_s, 1),
        "killed_seconds": round(outcome.killed_s, 1),
        "exit_status": outcome.status,
        "killed": [asdict(kill) for kill in outcome.kills],
        "recovery_seconds": _by_kind(recovered),
        "results": tasks,
        "passed": bool(
            outcome.status == 0
            and recovered
            and len(recovered) == len(outcome.kills)
            and all(task["equal"] and task["versions"] == 1 for task in tasks)
        ),
    }


def table(report: dict[str, Any]) -> str:
    """A report as text: the kills, the tasks, and a line with the verdict."""
    kills = [
        [
            f"{kill['at_s']:.0f} s",
            kill["kind"],
            kill["what"],
            kill["seen"] or "NOT RECOVERED",
            "-" if kill["recovered_s"] is None else f"{kill['recovered_s']:.1f} s",
        ]
        for kill in report["killed"]
    ]
    tasks = [
        [
            task["task"],
            "yes" if task["equal"] else "NO",
            *(MEASURE.cell(task[split]) for split in ("val", "test")),
            str(task["versions"]),
            task["error"] or "",
        ]
        for task in report["results"]
    ]
    equal = sum(task["equal"] for task in report["results"])
    recovered = sum(kill["recovered_s"] is not None for kill in report["killed"])
    lines = aligned(["at", "kind", "killed", "seen to recover", "after"], kills, left=4)
    lines += ["", *aligned(["task", "equal", "val", "test", "versions", ""], tasks, left=2), ""]
    lines += [
        f"{'passed' if report['passed'] else 'FAILED'}: {recovered} of {len(kills)} kills recovered from "
        f"({report['kills']} planned), {equal} of {len(tasks)} tasks equal to the undisturbed run's to the last bit; "
        f"{report['undisturbed_seconds']:.0f} s undisturbed, {report['killed_seconds']:.0f} s under kills"
    ]
    return "\n".join(lines)


def _compare(outcome: Outcome, task: str, versions: int) -> dict[str, Any]:
    whole = read_result(outcome.whole, task, MEASURE)
    found: TaskResult | None = None
    error = None
    try:
        found = read_result(outcome.killed, task, MEASURE)
    except (FileNotFoundError, ValueError) as fault:
        error = str(fault)
    return {
        "task": task,
        "equal": found == whole,
        "val": None if found is None else found.val,
        "test": None if found is None else found.test,
        "sha256": None if found is None else found.sha256,
        "undisturbed": asdict(whole),
        "versions": versions,
        "error": error,
    }


def _by_kind(kills: list[Kill]) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {}
    for kill in kills:
        assert kill.recovered_s is not None
        seconds.setdefault(kill.kind, []).append(kill.recovered_s)
    return {
        kind: {"kills": len(found), "median": statistics.median(found), "most": max(found)}
        for kind, found in sorted(seconds.items())
    }
