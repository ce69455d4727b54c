"""The drill runs a fan-out undisturbed, then the same one under random kills, and compares what they leave."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.drill.cluster import LocalCluster
from pipeline.drill.fanout import Fanout
from pipeline.drill.kinds import KINDS, Scene, Strike
from pipeline.drill.observed import Observer
from pipeline.drill.servers import MlflowServer
from pipeline.drill.tasks import TASKS, draw_tasks

NODES = 3
"""Nodes of one CPU each. Two tasks run at once, so that one node is free when another is lost."""
CONCURRENT = 2
BACKBONE = "hst_vit_micro_patch8_64"
TRIALS, TRIAL_EPOCHS = 3, 3
"""Trials, and epochs of a trial, in the search that precedes each task's training."""
EPOCHS_PER_MINUTE = 9
"""Epochs of all tasks together, for each of the drill's minutes. The killed run then takes about these minutes on two
cores, including what the kills cost."""
KILLS_PER_MINUTE = 2.2
PATIENCE_S = 240.0
"""How long a recovery may take."""
_LOOK_S = 0.25


class DrillError(RuntimeError):
    """The drill's undisturbed run failed, so there is nothing to compare with."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and how often something is killed."""

    seed: int
    tasks: int
    epochs: int
    """Number of epochs of each task."""
    kills: int


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill, as the report shows it."""

    kind: str
    what: str
    at_s: float
    """Seconds from the killed run's start to the kill."""
    recovered_s: float | None
    """Seconds from the kill to its recovery; None: it did not recover."""
    seen: str | None
    """What showed the recovery."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The folders that both runs left, and what happened."""

    tasks: list[str]
    whole: Path
    killed: Path
    tracking_uri: str
    whole_s: float
    killed_s: float
    status: int | None
    """Exit status of the killed run's last driver; None if the drill had to end it."""
    kills: list[Kill]


def plan_drill(*, minutes: float, seed: int, tasks: int, kills: int | None) -> Plan:
    """Plan a drill of about ``minutes``. Raises ValueError with every faulty number, in one line."""
    faults = [] if minutes > 0 else [f"--minutes {minutes:g}: expected more than 0"]
    faults += [] if seed >= 0 else [f"--seed {seed}: expected 0 or more"]
    faults += [] if 1 <= tasks <= len(TASKS) else [f"--tasks {tasks}: expected 1 to {len(TASKS)}"]
    faults += [] if kills is None or kills >= 1 else [f"--kills {kills}: expected at least 1"]
    if faults:
        raise ValueError("; ".join(faults))
    epochs = max(3, round(EPOCHS_PER_MINUTE * minutes / tasks))
    return Plan(seed=seed, tasks=tasks, epochs=epochs, kills=kills or max(1, round(KILLS_PER_MINUTE * minutes)))


def draw_kills(plan: Plan) -> list[tuple[float, str]]:
    """When a kill comes, as a share of the work done, and its kind; all kinds come equally often, give or take one."""
    draws = random.Random(plan.seed)
    kinds: list[str] = []
    while len(kinds) < plan.kills:
        round_of_all = list(KINDS)
        draws.shuffle(round_of_all)
        kinds += round_of_all
    shares = [0.9 * (number + draws.random()) / plan.kills for number in range(plan.kills)]
    return list(zip(shares, kinds[: plan.kills], strict=True))


def hold_drill(
    plan: Plan, *, script: Path, say: Callable[[str], None], report: Callable[[Outcome], dict[str, Any]]
) -> dict[str, Any]:
    """Makes both runs and returns their report. If that has ``passed``, all files are removed.

    Args:
        plan: the plan of the drill.
        script: ``jobs/fanout_vtab.py``.
        say: prints a line.
        report: makes the report of what both runs left.

    Raises:
        DrillError: the undisturbed run failed; the message names its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="hst-drill-"))
    say(f"everything is kept in {folder} until the drill has passed")
    tasks = list(TASKS)[: plan.tasks]
    task_file = draw_tasks(folder / "data", tasks, epochs=plan.epochs)
    server = MlflowServer(folder / "mlflow")
    try:
        server.start()
        with LocalCluster(NODES) as cluster:
            server.wait()

            def fanout(name: str) -> Fanout:
                options = ["--task-file", str(task_file), "--backbone", BACKBONE, "--storage", str(folder / name)]
                options += ["--tracking-uri", server.address, "--registry-prefix", f"{name}-"]
                options += ["--search", str(TRIALS), "--search-epochs", str(TRIAL_EPOCHS)]
                options += ["--max-concurrent", str(CONCURRENT), "--seed", str(plan.seed)]
                return Fanout(script, options, _past_proxies(cluster.environment), folder / f"{name}.log")

            say(f"{plan.tasks} tasks of {plan.epochs} epochs, undisturbed")
            whole_s = _undisturbed(fanout("whole"))
            say(f"undisturbed in {whole_s:.0f} s; now under {plan.kills} kills")
            killed = fanout("killed")
            observer = Observer(folder / "killed", tasks, epochs=plan.epochs, trials=TRIALS, trial_epochs=TRIAL_EPOCHS)
            scene = Scene(cluster=cluster, server=server, fanout=killed, observer=observer)
            started = time.monotonic()
            try:
                kills = _disturbed(scene, draw_kills(plan), random.Random(f"{plan.seed} victims"), say)
                status = killed.status
            finally:
                killed.end()
            outcome = Outcome(
                tasks=tasks,
                whole=folder / "whole",
                killed=folder / "killed",
                tracking_uri=server.address,
                whole_s=whole_s,
                killed_s=time.monotonic() - started,
                status=status,
                kills=kills,
            )
            if not server.is_running:
                server.start()
            server.wait()
            found = {**asdict(plan), "nodes": NODES, **report(outcome)}
    finally:
        server.kill()
    if found["passed"]:
        shutil.rmtree(folder)
    else:
        say(f"what was found is in {folder}; the killed run's log is {folder}/killed.log")
    return found


def _undisturbed(fanout: Fanout) -> float:
    """Runs the fan-out undisturbed; returns how many seconds it took."""
    started = time.monotonic()
    fanout.start()
    try:
        while fanout.status is None:
            time.sleep(_LOOK_S)
        if fanout.status:
            raise DrillError(f"the undisturbed run ended with status {fanout.status}; its log is {fanout.log}")
    finally:
        fanout.end()
    return time.monotonic() - started


@dataclass
class _Open:
    """A kill whose recovery has not been seen yet."""

    kind: str
    strike: Strike
    at: float
    repaired: bool = False


def _disturbed(
    scene: Scene, planned: list[tuple[float, str]], draws: random.Random, say: Callable[[str], None]
) -> list[Kill]:
    """Runs the fan-out to its end under kills, one at a time; MLflow's server may be killed beside others."""
    started = time.monotonic()
    scene.fanout.start()
    waiting, under_way, kills = list(planned), list[_Open](), list[Kill]()

    def close(one: _Open, seen: str | None) -> None:
        seconds = time.monotonic() - one.at
        say(f"{one.kind}: {seen} after {seconds:.1f} s" if seen else f"{one.kind}: not recovered in {seconds:.0f} s")
        kills.append(
            Kill(
                kind=one.kind,
                what=one.strike.what,
                at_s=round(one.at - started, 1),
                recovered_s=round(seconds, 1) if seen else None,
                seen=seen,
            )
        )
        under_way.remove(one)

    while True:
        for one in list(under_way):
            if not one.repaired and time.monotonic() >= one.at + one.strike.repair_s:
                one.repaired = True
                if one.strike.repair is not None:
                    one.strike.repair()
        over = scene.fanout.status is not None and not any(o.kind == "driver" and not o.repaired for o in under_way)
        for one in list(under_way):
            seen = KINDS[one.kind].recovered(scene, one.strike) if one.repaired or over else None
            if seen or over or time.monotonic() - one.at > PATIENCE_S:
                close(one, seen)
        if over or any(kill.recovered_s is None for kill in kills):
            return sorted(kills, key=lambda kill: kill.at_s)
        if waiting and scene.observer.share_done() >= waiting[0][0]:
            kind = waiting[0][1]
            # A driver rightly refuses to start while MLflow is away.
            if not any(
                (kind == "mlflow") == (one.kind == "mlflow") or "driver" in (kind, one.kind) for one in under_way
            ):
                strike = KINDS[kind].strike(scene, draws)
                if (
                    strike is None
                    and kind == "trial"
                    and all(one.searched for one in scene.observer.progress().values())
                ):
                    waiting[0] = (waiting[0][0], "worker")  # all searches are over
                if strike is not None:
                    waiting.pop(0)
                    under_way.append(_Open(kind, strike, time.monotonic()))
                    say(f"{kind}: killed {strike.what}, {scene.observer.share_done():.0%} of the work done")
        time.sleep(_LOOK_S)


def _past_proxies(environment: dict[str, str]) -> dict[str, str]:
    """Add loopback to the addresses that bypass a proxy, which cannot reach it."""
    return environment | {
        name: ",".join(filter(None, [os.environ.get(name, ""), "127.0.0.1"])) for name in ("no_proxy", "NO_PROXY")
    }
