"""A fixture of the training's tests."""

from tests.pipeline.training.conftest import untouched_global_generators

__all__ = ["untouched_global_generators"]
