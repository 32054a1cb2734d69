"""What a client is told of an image that cannot be used."""

import pytest

from leukdetect.decoding import TooLargeError
from leukdetect.images import ImageError, UnsupportedImage
from serving import problems


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TooLargeError("the image has too many"), 413, "too-many-pixels"),
        (UnsupportedImage("the content is text"), 415, "unsupported-image"),
        (ImageError("the file is empty"), 422, "broken-image"),
    ],
)
def test_an_unusable_image_has_a_status_that_says_why(error: ImageError, status: int, code: str) -> None:
    problem = problems.of_image(error)
    assert (problem.status, problem.code, problem.detail) == (status, code, error.sentence)
