"""Groups of processes that train a spec, one group after the other: SPEC.json GROUPS.json (not a test).

A group is {"size", "folder", "start", "stop"}: it resumes from the folder `start` (null: from nothing), stops at the
report after [epochs, steps] (null: at the end) and leaves its state in `folder`. The processes are forked from one that
has imported everything, because importing takes longer than training.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hst.backbone import load_backbone
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.task_run import RunState
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers


class Stop(Exception):
    """Stands in for a kill."""


def train_rank(rank: int, spec: RunSpec, group: dict[str, Any]) -> None:
    folder, size = Path(group["folder"]), group["size"]
    torch.set_num_threads(1)
    if size > 1:
        # The ranks meet at a file: somebody else may take a port that was free a moment ago.
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    stop = tuple(group["stop"] or (None, None))

    def report(states: list[RunState], finished: bool) -> None:
        stops = (states[0].epochs_done, states[0].steps_done) == stop
        if rank == 0 and (stops or finished):
            saved = folder / "saved"  # beside the file where the ranks meet
            saved.mkdir()
            checkpoints.save(saved, states)
        if stops:
            raise Stop

    workers = Workers(rank=rank, size=size)
    runs = [build_run(spec, load_backbone(spec.backbone_name, "random").double(), workers)]
    start = None if group["start"] is None else checkpoints.find(group["start"])
    resume = None if start is None else start.states()
    with contextlib.suppress(Stop):
        fit(runs, workers=workers, report=report, pause=lambda step: step == stop[1], resume=resume)
    if size > 1:
        dist.destroy_process_group()


def run_group(spec: RunSpec, group: dict[str, Any]) -> None:
    """Runs a group. If a rank fails, it ends the others and raises SystemExit."""
    fork = multiprocessing.get_context("fork")
    Path(group["folder"]).mkdir()
    processes = [fork.Process(target=train_rank, args=(rank, spec, group)) for rank in range(group["size"])]
    for process in processes:
        process.start()
    try:
        while waiting := [process for process in processes if process.exitcode is None]:
            multiprocessing.connection.wait([process.sentinel for process in waiting])
            if failed := [rank for rank, process in enumerate(processes) if process.exitcode]:
                raise SystemExit(f"ranks {failed} of {group} failed")
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    whole = RunSpec(**json.loads(Path(sys.argv[1]).read_text()))
    for one in json.loads(Path(sys.argv[2]).read_text()):
        run_group(whole, one)
