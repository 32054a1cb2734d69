"""Which model a server starts with: the last known good, or else the one that is asked for."""

import ctypes
import logging

from leukdetect import model_file
from leukdetect.model_file import Model, RefusedError
from leukdetect.registry import Located, RegistryError
from serving.models import last_known_good
from serving.models.served import Models
from serving.settings import Settings

log = logging.getLogger(__name__)


def start(settings: Settings) -> Models:
    """Loads the last known good, so that no registry can keep a server from serving, or else what the alias names.

    Raises RegistryError, RefusedError: there is no last known good, and no other model either.
    """
    good, _ = last_known_good.noted(settings)
    if good:
        try:
            return Models(load(settings, good), asked=False)
        except (RegistryError, RefusedError) as error:  # it has served here, so the likeliest cause is a damaged disk
            log.warning("the last known good does not load; the registry is asked", extra={"error": str(error)})
    located = settings.registry.locate(settings.model)
    models = Models(load(settings, located))
    last_known_good.remember(settings, located)
    return models


def load(settings: Settings, located: Located) -> Model:
    """Loads the model with as many threads as this process may use processors; see `model_file.load`."""
    loaded = model_file.load(located, settings.precision, side_by_side=True)
    give_back_memory()
    return loaded


def give_back_memory() -> None:
    """Returns the freed memory of a load or of a model that went to the system.

    glibc keeps it in an arena of each thread: without this ten swaps of the INT8 model took 340 MB to 540.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim:
        trim(0)
