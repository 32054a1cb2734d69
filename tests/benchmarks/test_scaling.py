"""docs/scaling.md against what was measured."""

from benchmarks import scaling
from pipeline.scoring import job
from serving.settings import Settings


def test_the_page_has_the_figures_that_the_measurements_give() -> None:
    """If this fails after a benchmark, `python -m benchmarks.scaling` writes the page anew."""
    page = scaling.DOCUMENT.read_text().split(scaling.BEGIN)[1].split(scaling.END)[0]
    assert page == scaling.figures()


def test_what_the_arithmetic_takes_from_the_code_is_so() -> None:
    assert job.PART_ROWS == scaling.PART
    assert Settings.model_fields["watch_seconds"].default == scaling.WATCH


def test_twice_the_rate_is_half_the_replicas_and_one_more_stands_in() -> None:
    assert scaling.replicas(700, 10) == 101
    assert scaling.replicas(700, 20) == 51
    assert scaling.replicas(0.1, 10) == 2
