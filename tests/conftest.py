"""Helpers of every test."""

import os

import pytest


def require(condition: object, reason: str) -> None:
    """Skips the test where something it needs is absent; under LEUKDETECT_REQUIRE_ALL=1 (CI) that is a failure."""
    if condition:
        return
    if os.environ.get("LEUKDETECT_REQUIRE_ALL") == "1":
        pytest.fail(f"LEUKDETECT_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)
