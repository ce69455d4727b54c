"""The kinds of tasks by name; `pipeline.kinds.kind.TaskKind` says what each of them is."""

KINDS: dict[str, str] = {
    "classification": "pipeline.kinds.classification:Classification",
}
