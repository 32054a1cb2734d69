"""Which models are in service: the champion, the one before it for a rollback, and the challenger in its shadow."""

from dataclasses import dataclass, replace

from leukdetect.model_file import Model
from leukdetect.registry import Located


@dataclass
class Models:
    """What is loaded. A request takes `champion` once and keeps it, so a switch changes nothing for those under way.

    `note` says, for everyone, why the champion is not the one that the alias names. While the server runs only
    `serving.models.updates` changes any of it.
    """

    champion: Model
    note: str | None = None
    previous: Model | None = None
    challenger: Model | None = None

    def switch(self, new: Model) -> None:
        """Puts another champion in service and keeps the present one for a rollback."""
        self.previous, self.champion, self.note = self.champion, new, None

    def go_back(self, to: Model, note: str) -> None:
        """Puts an earlier champion in service; the present one is not kept."""
        self.previous, self.champion, self.note = None, to, note

    def loaded(self, located: Located) -> Model | None:
        """The same version, where it is in memory already, under the alias that it has now."""
        for model in (self.champion, self.previous, self.challenger):
            if model and model.located.path == located.path:
                return replace(model, located=located)
        return None
