"""Another version while the server runs: the alias is watched, and what it names is tried off to the side first."""

import logging
import time
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from leukdetect.model_file import Model, RefusedError
from leukdetect.registry import DamagedError, Located, RegistryError, discard, parse
from serving.metrics import Metrics
from serving.models import last_known_good, startup
from serving.models.served import Models
from serving.periodic import Periodic
from serving.settings import Settings

Result = Literal["switched", "unchanged", "refused", "failed"]

CHALLENGER = "challenger"  # the alias of the version that may answer in the champion's shadow
JITTER = 0.1  # of the pause between two turns, so that servers started together do not ask together
STOP_SECONDS = 5.0  # how long a stop waits for a download or a load; it ends with the process

log = logging.getLogger(__name__)


class Updates:
    """Keeps the champion the version that the alias names, in a thread of its own.

    A version that cannot be downloaded is tried again every turn; one that is refused, when the alias moves or a
    reload is asked for. When the alias moves back, the version before is in memory still and is not loaded again.
    """

    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._asked: SimpleQueue[Future[Result]] = SimpleQueue()
        self._name, self._alias = parse(settings.model)
        self._refused: dict[str | None, Path] = {}  # by alias: the folder of the version that it named
        self._said = {self._alias: _in_service(models.champion)}  # by subject, an alias: its last line in the log
        self._behind_since: float | None = None
        self.periodic = Periodic("updates", settings.watch_seconds, self._turn, JITTER)
        metrics.alias_lag.set_function(self._lag)

    def start(self) -> None:
        """Begins to watch. The registry is asked at once: the last known good may not be what the alias names."""
        self.periodic.start()
        self.periodic.wake()

    def stop(self) -> None:
        """Ends it; a download or load that is under way ends with the process."""
        self.periodic.stop(STOP_SECONDS)

    def reload(self) -> Future[Result]:
        """Asks the registry at once; a version that was refused gets another chance."""
        answer: Future[Result] = Future()
        self._asked.put(answer)
        self.periodic.wake()
        return answer

    def _turn(self) -> None:
        asked = [self._asked.get() for _ in range(self._asked.qsize())]
        if asked:
            self._refused.clear()
        try:
            result = self._follow_champion()
            if self._settings.shadow_share > 0 and result != "failed":
                self._follow_challenger()
        except Exception as error:  # whatever happens, those who asked get an answer, and there is another turn
            self._say("", logging.ERROR, "looking for another version failed", error)
            self._metrics.reloads.labels("failed").inc()
            result = "failed"
        else:
            self._said.pop("", None)
        for future in asked:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def _follow_champion(self) -> Result:
        try:
            located = self._settings.registry.ask(self._name, self._alias)
        except RegistryError as error:
            self._metrics.registry_reachable.set(0)
            self._metrics.reloads.labels("failed").inc()
            self._say(self._alias, logging.WARNING, "the registry cannot be asked", error)
            if not self._models.asked:  # for everyone: it names no path and no address
                version = self._models.champion.located.version
                self._models.note = (
                    f"Version {version}, the last known good, serves, since the registry could not be asked."
                )
            return "failed"
        self._metrics.registry_reachable.set(1)
        self._models.asked = True
        champion = self._models.champion
        if located is None:
            self._behind_since = None
            self._explain(f"The alias names no version; version {champion.located.version} goes on serving.")
            return "unchanged"
        if located.path == champion.located.path and champion.is_of(located):
            self._behind_since = self._models.note = None
            self._refused.pop(self._alias, None)
            self._say(self._alias, logging.INFO, _in_service(champion))
            return "unchanged"
        self._behind_since = self._behind_since or time.monotonic()
        return self._try(located)

    def _try(self, located: Located) -> Result:
        goes_on = f"version {self._models.champion.located.version} goes on serving."
        refused = f"Version {located.version} was refused; {goes_on}"
        if self._refused.get(self._alias) == located.path:
            self._explain(refused)
            return "refused"
        try:
            new = self._load(located)
        except (DamagedError, RefusedError) as error:
            self._explain(refused, error)
            return "refused"
        except RegistryError as error:
            self._explain(f"Version {located.version} could not be downloaded; {goes_on}", error)
            return "failed"
        self._models.switch(new)
        self._behind_since = None
        self._metrics.reloads.labels("switched").inc()
        self._metrics.describe(new)
        last_known_good.remember(self._settings, new.located)
        self._prune()
        startup.give_back_memory()
        self._say(self._alias, logging.INFO, _in_service(new))
        return "switched"

    def _follow_challenger(self) -> None:
        models = self._models
        try:
            located = self._settings.registry.ask(self._name, CHALLENGER)
        except RegistryError:
            return  # the log has it from the question about the champion
        if located is None or located.path == models.champion.located.path:
            models.challenger = None
            return
        if models.challenger and models.challenger.located.path == located.path:
            return
        models.challenger = None  # the alias has left it, whether the new one can be loaded or not
        if self._refused.get(CHALLENGER) == located.path:
            return
        what = f"the challenger, version {located.version},"
        try:
            models.challenger = self._load(located)
        except (DamagedError, RefusedError) as error:
            self._say(CHALLENGER, logging.ERROR, f"{what} was refused", error)
        except RegistryError as error:
            self._say(CHALLENGER, logging.WARNING, f"{what} could not be downloaded", error)
        else:
            self._say(CHALLENGER, logging.INFO, f"the challenger is version {located.version}")
            self._prune()

    def _load(self, located: Located) -> Model:
        """Downloads and tries the version, unless it is in memory already.

        Raises:
            DamagedError, RefusedError: it may never serve, and is not kept.
            RegistryError: it could not be downloaded.
        """
        self._refused.pop(located.alias, None)
        try:
            found = self._models.loaded(located)
            if found is None:
                found = startup.load(self._settings, self._settings.registry.fetch(located))
            self._check_classes(found)
            return found
        except (DamagedError, RefusedError) as error:
            if isinstance(error, RefusedError):
                discard(located.path)
            self._refused[located.alias] = located.path
            self._metrics.reloads.labels("refused").inc()
            raise
        except RegistryError:
            self._metrics.reloads.labels("failed").inc()
            raise

    def _check_classes(self, new: Model) -> None:
        """Raises RefusedError if its classes are others: clients know these, and a name is one label set's."""
        known, others = ([each.key for each in model.contract.classes] for model in (self._models.champion, new))
        if known != others and not self._settings.other_classes:
            raise RefusedError(
                f"classes: it knows {', '.join(others)}, and the server's clients {', '.join(known)}. Register it "
                "under another name, or let the server change over with LEUKDETECT_OTHER_CLASSES=true"
            )

    def _prune(self) -> None:
        loaded = (self._models.champion, self._models.previous, self._models.challenger)
        last_known_good.forget(self._settings, keep=[model.located for model in loaded if model])

    def _lag(self) -> float:
        since = self._behind_since
        return 0.0 if since is None else time.monotonic() - since

    def _explain(self, note: str, error: Exception | None = None) -> None:
        """Says, at /health and in the log, why the champion is not the version that the alias names."""
        self._models.note = note
        self._say(self._alias, logging.WARNING, note, error)

    def _say(self, subject: str, level: int, message: str, error: Exception | None = None) -> None:
        """Logs a message unless it is the subject's last one, so that a turn like the one before logs nothing."""
        if self._said.get(subject) != message:
            self._said[subject] = message
            expected = error is None or isinstance(error, (RegistryError, RefusedError))
            log.log(level, message, exc_info=None if expected else error, extra={"error": str(error)} if error else {})


def _in_service(champion: Model) -> str:
    return f"version {champion.located.version} is in service"
