"""Which model a server starts with: the one that is asked for, or else the last known good."""

import ctypes
import logging

from leukdetect import model_file
from leukdetect.model_file import Model
from leukdetect.registry import Located, RegistryError, discard
from serving.models import last_known_good
from serving.models.served import Models
from serving.settings import Settings

log = logging.getLogger(__name__)


def start(settings: Settings) -> Models:
    """Resolves and loads the model. When the registry is down, or its model is refused, the last known good serves.

    Raises:
        RegistryError, RefusedError: and there is no last known good, or it is the one that was refused.
    """
    located = None
    try:
        located = settings.registry.locate(settings.model)
        try:
            chosen = load(settings, located)
        except model_file.RefusedError as error:
            if located != last_known_good.last_known_good(settings):
                raise  # it has never served here
            # It has, so the likeliest cause is a damaged disk.
            log.warning("the last known good does not load; it is downloaded anew", extra={"error": str(error)})
            discard(located)
            located = settings.registry.locate(settings.model)
            chosen = load(settings, located)
    except (RegistryError, model_file.RefusedError) as error:
        fallback = last_known_good.last_known_good(settings)
        if fallback is None or (located is not None and fallback.path == located.path):
            raise
        why = f"version {located.version} was refused" if located else "the registry could not be asked"
        note = f"Version {fallback.version}, the last known good, serves, since {why}."
        log.warning(note, extra={"error": str(error)})  # the note is for everyone, and names no path and no address
        return Models(load(settings, fallback), note)
    last_known_good.remember(settings, located)
    return Models(chosen)


def load(settings: Settings, located: Located) -> Model:
    """Loads the model with as many threads as this process may use processors; see `model_file.load`."""
    loaded = model_file.load(located, settings.precision)
    give_back_memory()
    return loaded


def give_back_memory() -> None:
    """Returns the freed memory of a load or of a model that went to the system.

    glibc keeps it in an arena of each thread: without this ten swaps of the INT8 model took 340 MB to 540.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim:
        trim(0)
