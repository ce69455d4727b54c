"""Pretrain the ViT that the package ships for the demo, on images that the project draws itself (no data is read):

    python jobs/pretrain_demo_vit.py                          # make the shipped file again, in place
    python jobs/pretrain_demo_vit.py --minutes 10             # stop after ten minutes; run it again to continue

Uses CUDA if available. Saves its state beside the output once a minute. The exit status is 0 when the file is written,
3 when --minutes ended before.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from pipeline.console.command_line import leave_with, local_path

STOPPED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrains and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--output",
        type=local_path,
        help="local safetensors file to write (default: the one that the package ships)",
    )
    add("--state", type=local_path, help="file that keeps the state (default: OUTPUT with .state.tmp appended)")
    add("--steps", type=int, help="total number of batches (default: as shipped); may change between runs")
    add("--seed", type=int, help="seed of all draws (default: as shipped)")
    add("--minutes", type=float, default=math.inf, help="stop after this many minutes; run again to continue")
    options = parser.parse_args(arguments)

    import torch  # after parsing, so that --help answers at once

    from hst.vit.weights import shipped_weights
    from pipeline.console.progress import Printer
    from pipeline.pretraining.plan import Pretraining
    from pipeline.pretraining.train import pretrain

    given = {"steps": options.steps, "seed": options.seed}
    try:
        plan = Pretraining(**{name: value for name, value in given.items() if value is not None})
        output = options.output or shipped_weights(plan.backbone)
        state = options.state or output.with_name(f"{output.name}.state.tmp")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not pretrain(plan, output, state=state, device=device, say=Printer(), minutes=options.minutes):
            print(f"stopped; the same command continues from {state}", file=sys.stderr)
            return STOPPED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    leave_with(main)
