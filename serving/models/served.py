"""Which models are in memory: the champion, the one before it for a rollback, and the challenger in its shadow."""

from dataclasses import dataclass, replace

from leukdetect.model_file import Model
from leukdetect.registry import Located


@dataclass
class Models:
    """The loaded models. A request takes `champion` once and keeps it, so a switch changes nothing for those under way.

    `note` says why the champion is not the version that the alias names; `asked`: whether the registry has said since
    the start what that is. While the server runs only `serving.models.updates` changes any of it.
    """

    champion: Model
    asked: bool = True
    note: str | None = None
    previous: Model | None = None
    challenger: Model | None = None

    def switch(self, new: Model) -> None:
        """Puts another champion in service; the present one stays in memory, should the alias move back."""
        self.previous, self.champion, self.note = self.champion, new, None

    def loaded(self, located: Located) -> Model | None:
        """The same version where it is in memory, under the alias that it has now."""
        for model in (self.champion, self.previous, self.challenger):
            if model and model.located.path == located.path and model.is_of(located):
                return replace(model, located=located)
        return None
