"""Tests, arranged as the package is. The import makes `tests.shapes` findable for jaxtyping's pytest option."""

from tests import shapes as shapes
