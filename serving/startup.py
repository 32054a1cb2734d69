"""Which model a server starts with: the one that is asked for, or else the last known good."""

import logging
from dataclasses import dataclass

from serving import model, registry
from serving.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A model that passed every check; `note` says why it is not the one that was asked for."""

    model: model.Model
    note: str | None = None


def start(settings: Settings) -> Start:
    """Resolves and loads the model. When the registry is down, or its model is refused, the last known good serves.

    Raises:
        RegistryError, RefusedError: and there is no last known good, or it is the one that was refused.
    """
    located = None
    try:
        located = registry.resolve(settings)
        chosen = model.load(located)
    except (registry.RegistryError, model.RefusedError) as error:
        fallback = registry.last_known_good(settings)
        if fallback is None or (located is not None and fallback.path == located.path):
            raise
        why = f"version {located.version} was refused" if located else "the registry could not be asked"
        note = f"Version {fallback.version}, the last known good, serves, since {why}."
        log.warning(note, extra={"error": str(error)})  # the note is for everyone, and names no path and no address
        return Start(model.load(fallback), note)
    registry.remember(settings, located)
    return Start(chosen)
