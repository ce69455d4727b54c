"""Write tasks' raw data into verified shards, or read shards again.

python jobs/write_shards.py vtab --from ~/vtab-1k --to ~/shards             all of VTAB-1k, from the zip's layout
python jobs/write_shards.py cub200 cars --from ~/fgvc --to s3://bucket/shards
python jobs/write_shards.py --task-file photos.toml --to ~/shards           tasks of your own
python jobs/write_shards.py --verify --to s3://bucket/shards                every byte of all that is there

Killed and run again it goes on; what is written is not written twice. Beside each task's shards lies a report of its
data: classes, image sizes, duplicates, a contact sheet.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.console.command_line import FaultyOptions, leave_with, print_faults


def main(argv: list[str] | None = None) -> int:
    """0: every task is written, or whole; 1: one is not; 2: the command line has faults; 130: stopped."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.verify and not args.tasks and not args.task_file:
        parser.error("no task is named; names, groups, or --task-file say which")
    if args.verify and args.rewrite:
        parser.error("--verify reads what is there, --rewrite discards it: keep one of them")

    from pipeline.console.progress import Printer, sample_bar  # after parsing: --help answers at once
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
        print("stopped; the same command without --rewrite goes on where this one was", file=sys.stderr)
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
        help="folder, or s3:// or https:// address of tars, with the tasks' raw data",
    )
    add("--to", required=True, metavar="URI", help="root of the shards, a folder or s3://")
    add(
        "--verify",
        action="store_true",
        help="read every byte in --to again, of all tasks or those named; writes only what --max-skipped allows",
    )
    add(
        "--rewrite",
        action="store_true",
        help="discard the shards of the named tasks that are there and write every one anew, as where --verify found "
        "damage (cut as before, by --samples-per-shard, they are the same bytes)",
    )
    add(
        "--max-skipped",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N samples a task that cannot be decoded, or, with --verify, are damaged; "
        "each is named, and recorded in the manifest (default: 0, one is an error)",
    )
    add("--samples-per-shard", type=int, default=1000, help="at most; a shard also ends at 128 MiB (default: 1000)")
    add("--threads", type=int, help="shards at a time (default: one a processor, at most 8)")
    add("--no-report", action="store_true", help="no report of the data beside the shards")
    return parser


if __name__ == "__main__":
    leave_with(main)
