"""What every decoder raises: the bytes are at fault, and the message says why."""

from collections.abc import Iterator
from contextlib import contextmanager


class ImageError(ValueError):
    """The bytes are not an image that can be used; the message says why."""

    @property
    def sentence(self) -> str:
        """The message as a sentence for people."""
        return str(self)[0].upper() + str(self)[1:] + "."


class UnsupportedImage(ImageError):
    """The bytes are not of a kind that is decoded."""

    named = True  # the message names the kind


class NoMemoryError(ImageError):
    """There is no memory for the image; elsewhere, or later, there may be."""


@contextmanager
def reading(complaint: str) -> Iterator[None]:
    """Whatever a parser raises on malformed bytes becomes ImageError: no list of its exceptions is ever complete."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise NoMemoryError("decoding the image needs more memory than there is") from error
    except Exception as error:
        raise ImageError(f"{complaint} ({error})") from error
