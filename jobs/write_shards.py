"""Write the raw data of tasks into verified shards, or verify existing shards.

python jobs/write_shards.py vtab --from ~/vtab-1k --to ~/shards             all of VTAB-1k, from the zip's layout
python jobs/write_shards.py cub200 cars --from ~/fgvc --to s3://bucket/shards
python jobs/write_shards.py --task-file photos.toml --to ~/shards           tasks of your own
python jobs/write_shards.py --verify --to s3://bucket/shards                read every byte of all shards there
python jobs/write_shards.py --verify --from ~/vtab-1k --to ~/shards         and compare it with the raw data

If it is killed, run it again to continue; it does not write finished shards twice. Beside the shards of each task it
writes a report of the data: classes, image sizes, duplicates, a contact sheet.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.console.command_line import FaultyOptions, leave_with, print_faults


def main(argv: list[str] | None = None) -> int:
    """0: every task is written, or verified; 1: a task failed; 2: the command line has faults; 130: stopped."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.verify and not args.tasks and not args.task_file:
        parser.error("no task is given; give names or groups of tasks, or --task-file")
    if args.verify and args.rewrite:
        parser.error("--verify reads existing shards, --rewrite discards them: keep one of them")

    from pipeline.console.progress import Printer, sample_bar  # after parsing, so that --help answers at once
    from pipeline.fanout.write_tasks import WriteOptions, how_to_train, shards_table, verify_tasks, write_tasks

    options = WriteOptions(
        tasks=tuple(name.strip() for text in args.tasks for name in text.split(",")),
        task_files=tuple(args.task_file),
        source=args.source,
        to=args.to,
        samples_per_shard=args.samples_per_shard,
        threads=args.threads,
        max_skipped=args.max_skipped,
        rewrite=args.rewrite,
        report=not args.no_report,
    )
    try:
        rows = (verify_tasks if args.verify else write_tasks)(options, say=Printer(), progress=sample_bar)
    except FaultyOptions as error:
        print_faults(error)
        return 2
    except KeyboardInterrupt:
        if not args.rewrite:
            raise
        print("stopped; run the same command without --rewrite to continue", file=sys.stderr)
        return 130
    print(shards_table(rows))
    failed = [row["task"] for row in rows if row["error"]]
    if failed:
        print(f"{len(failed)} of {len(rows)} tasks failed: {', '.join(failed)}", file=sys.stderr)
    elif not args.verify:
        print(how_to_train(rows, options))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "tasks",
        nargs="*",
        metavar="TASK",
        help="names (vtab-dtd), short names (dtd) or groups (natural, vtab, fgvc, ...)",
    )
    add("--task-file", action="append", default=[], metavar="FILE", help="TOML file of tasks of your own")
    add(
        "--from",
        dest="source",
        metavar="PATH",
        help="folder with the tasks' raw data, or s3:// or https:// address if they are tars",
    )
    add("--to", required=True, metavar="URI", help="root of the shards, a folder or s3:// address")
    add(
        "--verify",
        action="store_true",
        help="read every byte in --to again, of all tasks or of the named ones, and compare it with the raw data if "
        "--from or --task-file says where that is; writes only if --max-skipped lets it leave samples out",
    )
    add(
        "--rewrite",
        action="store_true",
        help="discard the existing shards of the named tasks and write all of them anew, for example after --verify "
        "found damage (with the same --samples-per-shard, the bytes are the same)",
    )
    add(
        "--max-skipped",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N samples per task that cannot be decoded or, with --verify, are damaged; each is "
        "printed and recorded in the manifest (default: 0, so that one is an error)",
    )
    add(
        "--samples-per-shard",
        type=int,
        default=1000,
        help="most samples in a shard, which also ends at 128 MiB (default: 1000)",
    )
    add("--threads", type=int, help="shards written at the same time (default: one per processor, at most 8)")
    add("--no-report", action="store_true", help="write no report of the data beside the shards")
    return parser


if __name__ == "__main__":
    leave_with(main)
