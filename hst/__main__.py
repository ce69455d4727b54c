"""``python -m hst describe`` prints what a side network costs beside a ViT. Its help does not import torch."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from hst.config import HSN_PRESETS, MAX_REGISTERS


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m hst", description="Hierarchical Side-Tuning, the model.")
    commands = parser.add_subparsers(dest="command", required=True)
    describe = commands.add_parser(
        "describe",
        help="trainable parameters, GFLOPs and checkpoint size of a side network beside a ViT",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Print what is trained beside a frozen ViT, part by part, as plain integers; its share of the\n"
        "ViT; GFLOPs of a forward pass; the size of the light checkpoint. Needs no weights.",
        epilog="example: python -m hst describe vit_base_patch16_224 --hsn HSN_B --num-classes 100",
    )
    describe.add_argument(
        "name", metavar="NAME", help="a ViT of timm's, or one of the project's (hst_vit_micro_patch8_64)"
    )
    describe.add_argument(
        "--hsn", metavar="PRESET", default="HSN_B", help=f"{', '.join(HSN_PRESETS)} (default: %(default)s)"
    )
    describe.add_argument(
        "--num-classes", metavar="N", type=int, default=100, help="of the task (default: %(default)s)"
    )
    describe.add_argument(
        "--num-registers",
        metavar="N",
        type=int,
        help=f"Meta-Register tokens a ViT block, 0 to {MAX_REGISTERS} (default: the preset's)",
    )
    describe.add_argument(
        "--head-input",
        metavar="INPUT",
        default="side",
        help="what the head sees: side (the paper) or side+cls, with the ViT's class token (default: %(default)s)",
    )
    describe.add_argument(
        "--image-size", metavar="PIXELS", type=int, default=224, help="for GFLOPs (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        if options.hsn not in HSN_PRESETS:
            raise ValueError(f"--hsn {options.hsn}: no such preset; expected one of {', '.join(HSN_PRESETS)}")
        hsn = HSN_PRESETS[options.hsn]
        if options.num_registers is not None:
            hsn = dataclasses.replace(hsn, num_registers=options.num_registers)
        from hst.describe import describe, format_description

        description = describe(
            options.name,
            hsn,
            num_classes=options.num_classes,
            head_input=options.head_input,
            image_size=options.image_size,
        )
    except ValueError as fault:
        print(f"python -m hst describe: {fault}", file=sys.stderr)
        return 2
    print(format_description(description))
    return 0


if __name__ == "__main__":
    sys.exit(main())
