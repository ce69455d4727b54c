"""One of several processes that train a spec together: RANK SIZE PORT SPEC.json OUT.pt (not a test)."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hst.backbone import load_backbone
from pipeline.training.loop import fit
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers


def main(rank: int, size: int, port: int, spec_file: Path, out: Path) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    spec = RunSpec(**json.loads(spec_file.read_text()))
    backbone = load_backbone(spec.backbone_name, "random").double()
    workers = Workers(rank=rank, size=size)
    (state,) = fit([build_run(spec, backbone, workers)], workers=workers, report=lambda *_: None)
    if rank == 0:
        torch.save((state.run.model.state_dict(), state.history, state.results), out)
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
