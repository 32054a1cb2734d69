"""The toy base under a name of its own, for whole files of tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def toy_base() -> Iterator[None]:
    from pipeline.network.backbones import BACKBONES  # imports Keras, which not every test here needs
    from tests import toy_backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", toy_backbone.TOY)
        yield
