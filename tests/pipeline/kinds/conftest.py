"""Imports a fixture from the tests of training."""

from tests.pipeline.training.conftest import untouched_global_generators

__all__ = ["untouched_global_generators"]
