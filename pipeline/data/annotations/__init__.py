"""The annotations by name; `pipeline.data.annotations.annotation.Annotation` says what each of them is."""

ANNOTATIONS: dict[str, str] = {
    "class": "pipeline.data.annotations.class_label:ClassLabel",
}
