"""A fan-out's own run in MLflow: opened and closed, what is left to deliver, the page that compares its tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from pipeline.cluster.resources import workers_text
from pipeline.console.progress import counted
from pipeline.fanout.options import FanoutOptions
from pipeline.search.plan import SearchOptions
from pipeline.storage.files import is_remote, join
from pipeline.storage.locations import default_ledgers
from pipeline.tracking.code_version import code_version
from pipeline.tracking.mlflow_client import MlflowAwayError
from pipeline.tracking.tracker import Tracker, TrackingError
from pipeline.workflow.job import TaskJob

EXPERIMENT = "hst"


@contextlib.contextmanager
def fanout_run(
    options: FanoutOptions, jobs: list[TaskJob], key: str, backbone_name: str, backbone_identity: str
) -> Iterator[Tracker]:
    """The tracker with the fan-out's run open; the run is closed, too, where the fan-out is broken off."""
    # The ledger is appended to, which S3 cannot.
    ledgers = default_ledgers() if is_remote(options.storage) else join(options.storage, "ledgers")
    with contextlib.ExitStack() as stack:
        tracker = Tracker(options.tracking_uri, EXPERIMENT, join(ledgers, key))
        stack.callback(tracker.abandon)
        tracker.open_run(
            key,
            name=f"fan-out {key[:8]}: {counted(len(jobs), 'task')} on {backbone_name}",
            params={
                "backbone": backbone_name,
                "seed": options.seed,
                "settings": " ".join(options.settings),
                "num_tasks": len(jobs),
                "num_workers": workers_text(options.num_workers),
                "seeds": options.seeds,
                "pack": options.pack or "as many as fit",
                **({} if options.search is None else _search_params(options.search)),
            },
            tags={
                "backbone_identity": backbone_identity,
                "code_version": code_version(),
                "tasks": ",".join(job.task.name for job in jobs),
            },
        )
        try:
            yield tracker
        except BaseException as error:
            tracker.close_run(key, "FAILED" if isinstance(error, Exception) else "KILLED")
            with contextlib.suppress(
                TrackingError
            ):  # the error under way is the one to be seen; the ledger keeps the rest
                tracker.flush(at_most=2)
            raise


def _search_params(search: SearchOptions) -> dict[str, Any]:
    """What was asked for, so that a search can be told from another in MLflow."""
    return {f"search_{name}": value for name, value in dataclasses.asdict(search).items() if value is not None}


def deliver_rest(tracking_uri: str, tracker: Tracker, tasks: list[str]) -> str | None:
    """What is pending after a last look for MLflow, ``tasks`` being those that are not registered; None: nothing."""
    pending = [f"the registration of {', '.join(tasks)}"] if tasks else []
    silence = f"MLflow at {tracking_uri} did not answer"
    try:
        tracker.flush()
    except MlflowAwayError as error:
        pending.append(error.pending)
        silence = error.silence
    return f"{silence}; pending: {' and '.join(pending)}" if pending else None


def comparison_page(tracking_uri: str, tracker: Tracker, rows: list[dict[str, Any]]) -> str | None:
    """MLflow's page that compares the tasks' runs, below a server's address; None without a server or with one run."""
    runs = [row["run_id"] for row in rows if row["status"] == "done"]
    if not tracking_uri.startswith("http") or len(runs) < 2:
        return None
    lists = {"runs": runs, "experiments": [tracker.experiment_id]}
    return "#/compare-runs?" + "&".join(f"{k}={quote(json.dumps(v, separators=(',', ':')))}" for k, v in lists.items())
