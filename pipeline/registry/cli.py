"""hst-registry: list, show, promote, pull and verify the light checkpoints in MLflow's registry.

Only what is light is imported here, so that ``--help`` answers at once; each command imports what it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.console.command_line import leave_with
from pipeline.console.printable import printable
from pipeline.console.secrets import error_text, shown

if TYPE_CHECKING:
    from pipeline.registry.versions import RegisteredVersion

_FOREIGN_FAULTS = ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Faults are one line on stderr."""
    options = build_parser().parse_args(arguments)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")  # warnings of libraries: a fault of ours is the one line below
    try:
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hst-registry list | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as fault:
        if not isinstance(fault, ValueError | OSError) and type(fault).__module__.split(".")[0] not in _FOREIGN_FAULTS:
            raise
        print(f"hst-registry: {printable(error_text(fault).splitlines()[0])}", file=sys.stderr)
        return 1
    return 0


def script() -> NoReturn:
    """The command `hst-registry`."""
    leave_with(main)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hst-registry", description="The registry of light checkpoints, one per task."
    )
    common = argparse.ArgumentParser(add_help=False)
    for where, absent in ((parser, {"tracking_uri": None, "registry_prefix": ""}), (common, {})):
        # The same options before and after the command; an option that is absent after it leaves the earlier one.
        where.add_argument(
            "--tracking-uri",
            metavar="URI",
            default=absent.get("tracking_uri", argparse.SUPPRESS),
            help="http://HOST:PORT of MLflow, or sqlite:////PATH (default: $MLFLOW_TRACKING_URI, else the local one)",
        )
        where.add_argument(
            "--registry-prefix",
            metavar="PREFIX",
            default=absent.get("registry_prefix", argparse.SUPPRESS),
            help="the names of one user's tasks begin so",
        )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    a_task: Any = {
        "metavar": "TASK",
        "type": _full_name,
        "help": "its name (vtab-dtd), or a benchmark task's short one (dtd)",
    }

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(command=command)
        return added

    add("list", _list, "all tasks with their champions")
    add("show", _show, "all versions of a task, and why each is or is not champion").add_argument("task", **a_task)
    promoting = add("promote", _promote, "make a version the champion, by hand")
    promoting.add_argument("task", **a_task)
    promoting.add_argument("version", metavar="VERSION", type=int)
    pulling = add("pull", _pull, "fetch a task's checkpoint, checked, to DIR/<task>.safetensors")
    pulling.add_argument("task", **a_task)
    pulling.add_argument("--version", metavar="N", type=int, help="this version (default: the champion)")
    pulling.add_argument(
        "--dest", metavar="DIR", default=".", help="folder or s3:// to write to (default: the current folder)"
    )
    pulling.add_argument("--with-backbone", action="store_true", help="also fetch the frozen ViT it was trained on")
    verifying = add("verify", _verify, "check a file's hashes, or those of a task's champion in the registry")
    verifying.add_argument(
        "target", metavar="FILE|TASK", help="a path, s3:// or https:// address, or a task's name (vtab-dtd, dtd)"
    )
    return parser


def _list(options: argparse.Namespace) -> None:
    from pipeline.registry.versions import list_tasks

    uri = _tracking_uri(options)
    tasks = list_tasks(uri, prefix=options.registry_prefix)
    if not tasks:
        print(
            f"no tasks in {shown(uri)}"
            + (f" under the prefix {options.registry_prefix}" if options.registry_prefix else "")
        )
        return
    rows = []
    for task, versions in tasks.items():
        champion = next((version for version in versions if version.is_champion), None)
        if champion is None:
            rows.append([task, "none", str(len(versions)), "", "", "", "", ""])
        else:
            rows.append([task, f"version {champion.version}", str(len(versions)), *_facts(champion)])
    header = ["TASK", "CHAMPION", "VERSIONS", "VAL", "TEST", "BACKBONE", "SIZE", "AGE"]
    print(_table(header, rows, right="VERSIONS VAL TEST SIZE AGE"))
    _tell_faults([version for versions in tasks.values() for version in versions if version.is_champion])


def _show(options: argparse.Namespace) -> None:
    from pipeline.registry.versions import list_versions

    uri = _tracking_uri(options)
    versions = list_versions(uri, options.task, prefix=options.registry_prefix)
    champion = next((version for version in versions if version.is_champion), None)
    rows = [
        ["*" if found.is_champion else "", str(found.version), *_facts(found), ", ".join(found.aliases), found.reason]
        for found in versions
    ]
    header = ["", "VERSION", "VAL", "TEST", "BACKBONE", "SIZE", "AGE", "ALIASES", "WHY"]
    print(_table(header, rows, right="VERSION VAL TEST SIZE AGE"))
    _tell_faults(versions)
    for text, numbers in _measures(versions).items():
        print(f"{_numbered(numbers)}: measured by {printable(text)}")
    for reason, numbers in _subsets(uri, versions).items():
        print(f"{_numbered(numbers)}: on a subset of the task's full data: {printable(reason)}")
    if champion is None:
        print(f"\nno champion; make one with: hst-registry promote {options.task} VERSION")
        return
    print(f"\nchampion: version {champion.version} of {champion.name}, run {champion.run_id}")
    for tag in ("sha256", "backbone_identity", "image_size", "protocol", "seed", "code_version"):
        print(f"  {tag.replace('_', ' '):22}{printable(champion.tags.get(tag, '-'))}")
    for split, sha256 in champion.facts.data.items():
        print(f"  {printable(f'data of {split}'):22}{printable(str(sha256))}")


def _tell_faults(versions: list[RegisteredVersion]) -> None:
    """Names what cannot be read of the versions that were shown."""
    for version in versions:
        for fault in version.facts.faults.values():
            print(f"? {version.name} version {version.version}: its tag {printable(fault)}")


def _numbered(numbers: list[int]) -> str:
    """``versions 3, 2``."""
    return f"version{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _measures(versions: list[RegisteredVersion]) -> dict[str, list[int]]:
    """The versions that are not measured by top1, by their measure in words."""
    from pipeline.tasks.kinds import TOP1
    from pipeline.tasks.measure_text import described

    found: dict[str, list[int]] = {}
    for version in versions:
        if (measure := version.facts.measure) != TOP1:
            found.setdefault(described(measure), []).append(version.version)
    return found


def _subsets(tracking_uri: str, versions: list[RegisteredVersion]) -> dict[str, list[int]]:
    """The versions that were trained on a part of a task's data, by the reason that their run gives."""
    from pipeline.tracking.mlflow_client import is_missing, open_client

    client = open_client(tracking_uri, create=False)
    found: dict[str, list[int]] = {}
    for version in versions:
        try:
            reason = client.get_run(version.run_id).data.tags.get("subset")
        except Exception as fault:
            if not is_missing(fault):  # a deleted run gives no reason any more
                raise
            continue
        if reason:
            found.setdefault(reason, []).append(version.version)
    return found


def _promote(options: argparse.Namespace) -> None:
    from pipeline.registry.versions import promote

    promoted = promote(_tracking_uri(options), options.task, options.version, prefix=options.registry_prefix)
    print(f"{promoted.name}: version {promoted.version} is now {' and '.join(promoted.aliases)}")


def _pull(options: argparse.Namespace) -> None:
    from pathlib import Path

    from pipeline.registry.files import pull

    pulled = pull(
        _tracking_uri(options),
        options.task,
        options.version,
        options.dest,
        options.with_backbone,
        prefix=options.registry_prefix,
    )
    for placed in (pulled.checkpoint, pulled.backbone):
        if placed is not None:
            # A local folder is named as it was given, which may be shorter.
            where = placed.uri if "://" in options.dest else Path(options.dest, Path(placed.uri).name)
            print(f"{where}  {_size(placed.size_bytes)}, verified")
    if pulled.backbone is None:
        backbone = pulled.header.backbone
        print(f"runs on backbone {printable(backbone['name'])}, identity {backbone['identity']}")


def _verify(options: argparse.Namespace) -> None:
    from hst.checkpoint_header import TASK_NAME
    from pipeline.registry.files import verify_checkpoint, verify_version

    if TASK_NAME.fullmatch(options.target) and not os.path.exists(options.target):
        found = verify_version(_tracking_uri(options), _full_name(options.target), prefix=options.registry_prefix)
        print(f"{found.name}: version {found.version} (champion) is sound, sha256 {found.sha256}")
        return
    file = verify_checkpoint(options.target, _tracking_uri(options, check=False), prefix=options.registry_prefix)
    print(f"{shown(options.target)}: sound, a checkpoint of {file.header.task}, sha256 {file.sha256}")
    print(f"registry: {file.known or 'cannot be reached, so checked against its own hashes alone'}")


def _full_name(task: str) -> str:
    from pipeline.tasks.catalogue import full_name

    return full_name(task)


def _tracking_uri(options: argparse.Namespace, *, check: bool = True) -> str:
    from pipeline.storage.locations import default_tracking_uri
    from pipeline.tracking.mlflow_client import TrackingError, check_tracking_uri, is_reachable

    uri: str = options.tracking_uri or default_tracking_uri()
    check_tracking_uri(uri)
    if check and not is_reachable(uri):
        raise TrackingError(
            f"no registry at {shown(uri)}; set --tracking-uri or MLFLOW_TRACKING_URI to the one that is meant"
        )
    return uri


def _facts(version: RegisteredVersion) -> list[str]:
    """val, test, backbone, size and age, for people."""
    import time

    from pipeline.tasks.measure_text import spaced

    facts = version.facts

    def cell(value: Any, tag: str, text: Callable[[Any], str]) -> str:
        return text(value) if value is not None else "?" if tag in facts.faults else "-"

    results = [
        cell(facts.result(split), f"{split}_{facts.measure.name}", lambda value: spaced(facts.measure, value))
        for split in ("val", "test")
    ]
    return [
        *results,
        version.tags.get("backbone_name", "-"),
        cell(facts.size_bytes, "bytes", _size),
        _age(time.time() - version.created_ms / 1000),
    ]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{max(size_bytes / 1e3, 0.1):.1f} kB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _table(header: list[str], rows: list[list[str]], *, right: str) -> str:
    """Columns two spaces apart; those named in ``right`` are flush right."""
    lines = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    flush_right = [name in right.split() for name in header]

    def line(cells: list[str]) -> str:
        padded = zip(cells, widths, flush_right, strict=True)
        return "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in padded
        ).rstrip()

    return "\n".join(map(line, lines))


if __name__ == "__main__":
    script()
