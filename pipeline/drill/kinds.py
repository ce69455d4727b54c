"""The kinds of fault: what is killed, how a victim is found, and what shows that the fan-out recovered.

A kind is an entry of KINDS: `strike` kills a victim if there is one now, and `recovered` is called until it returns a
text. Victims are processes of the drill alone: those below its cluster, its server and its driver.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from pipeline.console.progress import counted
from pipeline.drill.cluster import LocalCluster
from pipeline.drill.fanout import Fanout
from pipeline.drill.observed import Observer, TaskProgress
from pipeline.drill.servers import MlflowServer


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a kill may look at."""

    cluster: LocalCluster
    server: MlflowServer
    fanout: Fanout
    observer: Observer


@dataclass(kw_only=True)
class Strike:
    """One kill that has happened."""

    what: str
    """What was killed, in words for the report."""
    before: dict[str, TaskProgress]
    """Progress of the tasks just before the kill."""
    repair: Callable[[], None] | None = None
    """Restores, `repair_s` after the kill, what the pipeline itself does not; None if there is nothing to restore."""
    repair_s: float = 0.0
    delivered: int = 0
    """Lines that the ledgers had delivered just before the repair."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault."""

    strike: Callable[[Scene, random.Random], Strike | None]
    """Kills a victim; returns None if there is no such victim at the moment."""
    recovered: Callable[[Scene, Strike], str | None]
    """Says what shows the recovery, after the repair; returns None if nothing shows it yet."""


def _kill_one(
    what: str, victims: Callable[[LocalCluster], list[psutil.Process]], matters: Callable[[TaskProgress], bool]
) -> Callable[..., Strike | None]:
    """A strike that kills one of some processes of the cluster, while it ``matters`` to a task."""

    def strike(scene: Scene, draws: random.Random) -> Strike | None:
        processes, before = victims(scene.cluster), scene.observer.progress()
        if not processes or not any(map(matters, before.values())):
            return None
        victim = draws.choice(processes)
        try:
            victim.kill()
        except psutil.NoSuchProcess:  # it has just ended by itself
            return None
        return Strike(what=f"{what} {victim.pid}", before=before)

    return strike


def _kill_node(scene: Scene, draws: random.Random) -> Strike | None:
    nodes = [node for node in scene.cluster.nodes if scene.cluster.train_workers(node)]
    if not nodes or len(scene.cluster.nodes) < 2:
        return None
    before = scene.observer.progress()
    if not any(map(_is_training, before.values())):
        return None
    node = draws.choice(nodes)
    number = len(scene.cluster.train_workers(node))
    scene.cluster.kill_node(node)
    return Strike(
        what=f"node with {counted(number, 'train worker')}",
        before=before,
        repair=scene.cluster.add_node,
        repair_s=draws.uniform(1, 6),
    )


def _kill_driver(scene: Scene, draws: random.Random) -> Strike | None:
    before = scene.observer.progress()
    if scene.fanout.status is not None or not any(one.starts for one in before.values()):
        return None
    return Strike(what=f"driver {scene.fanout.kill()}", before=before, repair=scene.fanout.start)


def _kill_mlflow(scene: Scene, draws: random.Random) -> Strike | None:
    if not scene.server.is_running or not scene.observer.delivered():
        return None
    before = scene.observer.progress()
    scene.server.kill()
    seconds = draws.uniform(4, 12)
    strike = Strike(what=f"MLflow server, away for {seconds:.0f} s", before=before, repair_s=seconds)

    def start_again() -> None:
        strike.delivered = scene.observer.delivered()
        scene.server.start()

    strike.repair = start_again
    return strike


def _is_searching(task: TaskProgress) -> bool:
    return task.searching and not task.searched


def _is_training(task: TaskProgress) -> bool:
    return bool(task.starts) and not task.trained


def _went_on(scene: Scene, strike: Strike) -> str | None:
    """Every task that was in training has saved more epochs than before, or is trained."""
    now = scene.observer.progress()
    under_way = [task for task, one in strike.before.items() if _is_training(one)]
    if under_way and all(now[task].trained or now[task].epochs > strike.before[task].epochs for task in under_way):
        return f"{', '.join(under_way)}: went on"
    return None


def _searched_on(scene: Scene, strike: Strike) -> str | None:
    """Every search that was under way has ended another trial, or is over. Which trial it was cannot be seen."""
    now = scene.observer.progress()
    under_way = [task for task, one in strike.before.items() if _is_searching(one)]
    if under_way and all(now[task].searched or now[task].trials > strike.before[task].trials for task in under_way):
        return f"{', '.join(under_way)}: searched on"
    return None


def _began_again(scene: Scene, strike: Strike) -> str | None:
    """Every task that the driver had in training or in its search has gone on; if it had none, one is registered."""
    before = strike.before.values()
    expected = [_went_on] if any(map(_is_training, before)) else []
    expected += [_searched_on] if any(map(_is_searching, before)) else []
    if expected:
        seen = [text for recovered in expected if (text := recovered(scene, strike))]
        return "; ".join(seen) if len(seen) == len(expected) else None
    now = scene.observer.progress()
    registered = [task for task, one in now.items() if one.registered and not strike.before[task].registered]
    return f"{registered[0]}: registered" if registered else None


def _delivered(scene: Scene, strike: Strike) -> str | None:
    """MLflow has accepted records since it was started again."""
    number = scene.observer.delivered() - strike.delivered
    return "records delivered" if number else None


_kill_trial = _kill_one("search trial", lambda cluster: cluster.trials(), _is_searching)
_kill_worker = _kill_one("train worker", lambda cluster: cluster.train_workers(), _is_training)

KINDS: dict[str, Kind] = {
    "trial": Kind(strike=_kill_trial, recovered=_searched_on),
    "worker": Kind(strike=_kill_worker, recovered=_went_on),
    "node": Kind(strike=_kill_node, recovered=_went_on),
    "driver": Kind(strike=_kill_driver, recovered=_began_again),
    "mlflow": Kind(strike=_kill_mlflow, recovered=_delivered),
}
