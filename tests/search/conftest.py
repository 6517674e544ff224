"""Imports BoTorch the way the library does, so that its deprecation warnings do not fail the collection of tests."""

import dynosim.search.samplers.botorch_api  # noqa: F401
