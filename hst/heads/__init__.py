"""The heads by name; `hst.protocols.Head` says what each of them is."""

HEADS: dict[str, str] = {
    "classification": "hst.heads.classification:ClassificationHead",
}
