"""A fan-out's own run in MLflow: how it is opened and closed, the rest to deliver, the page that compares its tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from pipeline.cluster.resources import workers_text
from pipeline.console.command_line import FaultyOptions
from pipeline.console.progress import counted
from pipeline.console.secrets import shown
from pipeline.fanout.options import FanoutOptions
from pipeline.registry.backbones import EXPERIMENT as BACKBONES
from pipeline.reports.rows import TaskRow
from pipeline.search.plan import SearchOptions
from pipeline.storage.files import is_remote, join
from pipeline.storage.locations import default_ledgers
from pipeline.tracking.code_version import code_version
from pipeline.tracking.mlflow_client import MlflowAwayError
from pipeline.tracking.preflight import check_experiments
from pipeline.tracking.tracker import Tracker, TrackingError
from pipeline.workflow.job import TaskJob
from pipeline.workflow.site import FrozenBackbone


def check_mlflow(options: FanoutOptions) -> None:
    """Raises FaultyOptions if MLflow cannot take the fan-out's runs or the frozen ViT."""
    try:
        check_experiments(options.tracking_uri, (options.experiment, BACKBONES))
    except TrackingError as error:
        raise FaultyOptions([f"--tracking-uri {error}"]) from error


@contextlib.contextmanager
def fanout_run(options: FanoutOptions, jobs: list[TaskJob], key: str, backbone: FrozenBackbone) -> Iterator[Tracker]:
    """The tracker with the fan-out's run open; the run is also closed where the fan-out is broken off."""
    # A ledger grows at its end, which S3 does not offer.
    ledgers = default_ledgers() if is_remote(options.storage) else join(options.storage, "ledgers")
    with contextlib.ExitStack() as stack:
        tracker = Tracker(options.tracking_uri, options.experiment, join(ledgers, key))
        stack.callback(tracker.abandon)
        tracker.open_run(
            key,
            name=f"fan-out {key[:8]}: {counted(len(jobs), 'task')} on {backbone.name}",
            params={
                "backbone": backbone.name,
                "seed": options.seed,
                "settings": " ".join(options.settings),
                "num_tasks": len(jobs),
                "num_workers": workers_text(options.num_workers),
                "seeds": options.seeds,
                "pack": options.pack or "as many as fit",
                **({} if options.search is None else _search_params(options.search)),
            },
            tags={
                "backbone_identity": backbone.identity,
                "code_version": code_version(),
                "tasks": ",".join(job.task.name for job in jobs),
            },
        )
        try:
            yield tracker
        except BaseException as error:
            tracker.close_run(key, "FAILED" if isinstance(error, Exception) else "KILLED")
            with contextlib.suppress(TrackingError):  # people need the first error; the ledger keeps the rest
                tracker.flush(at_most=2)
            raise


def _search_params(search: SearchOptions) -> dict[str, Any]:
    """The options of a search, so that MLflow shows how two searches differ."""
    return {f"search_{name}": value for name, value in dataclasses.asdict(search).items() if value is not None}


def deliver_rest(tracking_uri: str, tracker: Tracker, tasks: list[str]) -> str | None:
    """Tries MLflow a last time; returns a sentence about what it still lacks, or None.

    Args:
        tracking_uri: MLflow's address.
        tracker: the tracker with the records to deliver.
        tasks: the tasks that are not registered.
    """
    pending = [f"the registration of {', '.join(tasks)}"] if tasks else []
    silence = f"MLflow at {shown(tracking_uri)} did not answer"
    try:
        tracker.flush()
    except MlflowAwayError as error:
        pending.append(error.pending)
        silence = error.silence
    return f"{silence}; pending: {' and '.join(pending)}" if pending else None


def comparison_page(tracking_uri: str, tracker: Tracker, rows: list[TaskRow]) -> str | None:
    """MLflow's page that compares the tasks' runs, below a server's address; None without a server or with one run."""
    runs = [row.run_id for row in rows if row.status == "done"]
    if not tracking_uri.startswith("http") or len(runs) < 2:
        return None
    lists = {"runs": runs, "experiments": [tracker.experiment_id]}
    return "#/compare-runs?" + "&".join(f"{k}={quote(json.dumps(v, separators=(',', ':')))}" for k, v in lists.items())
