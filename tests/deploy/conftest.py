"""The serving image, as far as it can be had without Docker."""

import shutil
from pathlib import Path

import pytest

from deploy import serve_like_the_image
from tests.conftest import require


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile's target `serving` adds to its base; made by its own instructions."""
    for program, package in {"bwrap": "bubblewrap", "strip": "binutils"}.items():
        require(shutil.which(program), f"{program} is not installed (Debian's package {package})")
    return serve_like_the_image.build(tmp_path_factory.mktemp("image"))
