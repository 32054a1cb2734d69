"""Half a minute of each fuzz campaign; `make fuzz` runs them for an hour, each time with other mutations."""

import numpy as np
import pytest

from tests.load import fuzz
from tests.load.mutations import SEEDS
from tests.load.structures import structured

SECONDS = 30


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.CAMPAIGNS)
def test_a_campaign_finds_nothing(name: str) -> None:
    told = fuzz.in_a_process(name, SECONDS, seed=1)  # the same at each run: no change is refused for another's fault
    print(told)
    assert told.startswith(f"{name}: ")


@pytest.mark.parametrize("kind", SEEDS)
def test_mutations_are_the_same_each_time_and_few_are_the_seed(kind: str) -> None:
    twice = [[structured(kind, np.random.default_rng((0, number))) for number in range(20)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert sum(each == SEEDS[kind] for each in twice[0]) < 10


def test_a_campaign_that_finds_something_names_its_mutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.apart, "decode", lambda *_: 1 / 0)
    with pytest.raises(fuzz.FoundError, match="decoder: mutation 0 of seed 7: ZeroDivisionError"):
        fuzz.run("decoder", 1, 7)


def test_memory_that_grows_is_found() -> None:
    campaign = fuzz.Campaign("decoder", 1, 7, memory=[10**8] * 9 + [10**9])
    with pytest.raises(fuzz.FoundError, match="memory grew from 100 to 1000 MB"):
        campaign.check_memory()
