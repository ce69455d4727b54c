"""The tuning methods by name; `hst.protocols.Method` says what each of them is."""

METHODS: dict[str, str] = {
    "hst": "hst.side.extractor:HSTExtractor",
}
