"""The kinds of tasks by name; each is a `pipeline.kinds.kind.TaskKind`."""

KINDS: dict[str, str] = {
    "classification": "pipeline.kinds.classification:Classification",
}
