"""The tiny task of the training's tests."""

from tests.pipeline.training.conftest import tiny_backbone, tiny_data, tiny_manifests, tiny_spec

__all__ = ["tiny_backbone", "tiny_data", "tiny_manifests", "tiny_spec"]
