"""Another version while the server runs: the alias is watched, and what it names is tried off to the side first."""

import logging
import math
import random
import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Literal

from leukdetect.model_file import Model, RefusedError
from leukdetect.registry import DamagedError, Located, Registered, RegistryError, discard, parse
from serving.inference import answers
from serving.metrics import Metrics
from serving.models import last_known_good, startup
from serving.models.last_known_good import Hold, Orders
from serving.models.served import Models
from serving.settings import Settings

Result = Literal["switched", "unchanged", "refused", "failed"]

CHALLENGER = "challenger"  # the alias of the version that may answer in the champion's shadow
LOOK_SECONDS = 1.0  # how often to look for orders that another worker was given
JITTER = 0.1  # of the time between two turns, so that servers started together do not ask together
STOP_SECONDS = 5.0  # how long a stop waits for a download or a load; it ends with the process

_CHANCE = random.SystemRandom()  # processes that were forked draw apart

log = logging.getLogger(__name__)


class Updates:
    """Keeps the champion the version that the alias names, in a thread of its own.

    A version that cannot be had is tried again every turn; one that is refused, when the alias moves or a reload is
    asked for. Orders (reload, roll back) are written to a file, through which they reach every worker within a second.
    """

    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._orders = Orders(settings)
        self._asked: SimpleQueue[Future[Result] | None] = SimpleQueue()
        self._changing = threading.Lock()  # around whatever changes the champion, or the order to hold one back
        self._name, self._alias = parse(settings.model)
        self._refused: dict[str, str] = {}  # by alias: the folder of the version that it named
        self._said = {self._alias: _in_service(models.champion)}  # by subject, an alias: the last thing in the log
        self._behind_since: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="updates", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a download or load that is under way ends with the process."""
        self._stopping = True
        self._asked.put(None)
        self._thread.join(STOP_SECONDS)

    def reload(self) -> Future[Result]:
        """Asks the registry at once, in every worker; what was refused or rolled back from gets another chance."""
        with self._changing:
            self._orders.give(None)
        return self._ask()

    def wake(self) -> Future[Result]:
        """Asks the registry at once, in every worker; what was rolled back from stays out."""
        with self._changing:
            self._orders.give(self._orders.hold)
        return self._ask()

    def roll_back(self) -> bool:
        """Puts the version before back in service, in every worker; False where there is none that can serve.

        The version that is left stays out until the alias names another or a reload is asked for. It takes no time
        where the version before is in memory, as it is in the process that left it.
        """
        with self._changing:
            hold = self._way_back()
            if hold is None:
                return False
            try:
                to = self._in_memory_or_loaded(hold.instead)
            except RefusedError as error:
                log.error("the version before cannot serve", extra={"error": str(error)})
                return False
            self._orders.give(hold)
            self._go_back(hold, to)
        self._ask()  # a turn that was under way may not have seen it
        return True

    def _ask(self) -> Future[Result]:
        answer: Future[Result] = Future()
        self._asked.put(answer)
        return answer

    def _way_back(self) -> Hold | None:
        """Which version to leave, and what for."""
        champion, previous = self._models.champion.located, self._models.previous
        good, before = last_known_good.last_known_good(self._settings), last_known_good.one_before(self._settings)
        if good and before and champion.path == before.path:
            return Hold(good, before)  # another worker has switched already; this one was about to
        if previous:
            return Hold(champion, previous.located)
        if good and before and champion.path == good.path:
            return Hold(good, before)  # this process started with it, yet the version before is still on disk
        return None

    def _go_back(self, hold: Hold, to: Model) -> None:
        """Needs `_changing`."""
        if self._models.champion.located.path == hold.left.path:
            self._models.go_back(to, hold.note)
            self._metrics.reloads.labels("rolled-back").inc()
        self._settle()
        self._say(self._alias, logging.WARNING, hold.note)

    def _watch(self) -> None:
        due = self._next_turn()
        while True:
            try:
                asked = self._asked.get(timeout=max(0.0, min(LOOK_SECONDS, due - time.monotonic())))
            except Empty:
                asked = None
            if self._stopping:
                return
            with self._changing:
                ordered = self._orders.look()
            if asked or ordered:
                self._refused.clear()
            elif time.monotonic() < due:
                self._show_lag()
                continue
            wanted = asked is not None and asked.set_running_or_notify_cancel()
            result = self._turn()
            if asked and wanted:
                asked.set_result(result)
            due = self._next_turn()

    def _next_turn(self) -> float:
        seconds = self._settings.watch_seconds
        return time.monotonic() + seconds * _CHANCE.uniform(1 - JITTER, 1 + JITTER) if seconds else math.inf

    def _turn(self) -> Result:
        """Whatever happens, there is another turn."""
        try:
            self._obey()
            result = self._follow_champion()
            if self._settings.shadow_share > 0 and result != "failed":
                self._follow_challenger()
        except Exception as error:
            self._say("", logging.ERROR, "looking for another version failed", error)
            self._metrics.reloads.labels("failed").inc()
            result = "failed"
        else:
            self._said.pop("", None)
        self._show_lag()
        return result

    def _obey(self) -> None:
        """Goes back where another worker was told to."""
        with self._changing:
            hold = self._orders.hold
            if hold is None or self._models.champion.located.path != hold.left.path:
                return
            try:
                self._go_back(hold, self._in_memory_or_loaded(hold.instead))
            except RefusedError as error:
                self._say(self._alias, logging.ERROR, "the version before cannot serve", error)

    def _follow_champion(self) -> Result:
        hold = self._orders.hold  # as it is before asking: an answer from before the order must not lift it
        try:
            registered = self._settings.registry.ask(self._name, self._alias)
        except RegistryError as error:
            self._metrics.registry_reachable.set(0)
            self._metrics.reloads.labels("failed").inc()
            self._say(self._alias, logging.WARNING, "the registry cannot be asked", error)
            return "failed"
        self._metrics.registry_reachable.set(1)
        if hold and registered and not hold.holds(registered):
            self._lift(hold)
            hold = None
        champion = self._models.champion
        if registered is None:
            self._behind_since = None
            self._explain(f"The alias names no version; version {champion.located.version} goes on serving.")
            return "unchanged"
        if registered.folder == champion.located.path.name:
            self._behind_since = self._models.note = None
            self._refused.pop(self._alias, None)
            self._say(self._alias, logging.INFO, _in_service(champion))
            return "unchanged"
        self._behind_since = self._behind_since or time.monotonic()
        if hold:
            self._explain(hold.note)
            return "unchanged"
        return self._try(registered)

    def _try(self, registered: Registered) -> Result:
        goes_on = f"version {self._models.champion.located.version} goes on serving."
        refused = f"Version {registered.version} was refused; {goes_on}"
        if self._refused.get(self._alias) == registered.folder:
            self._explain(refused)
            return "refused"
        try:
            new = self._load(registered)
        except (DamagedError, RefusedError) as error:
            self._explain(refused, error)
            return "refused"
        except RegistryError as error:
            self._explain(f"Version {registered.version} could not be downloaded; {goes_on}", error)
            return "failed"
        with self._changing:
            self._orders.look()
            if self._orders.hold and self._orders.hold.holds(registered):
                return "unchanged"  # another worker had it in service for a while, and was told to go back
            self._models.switch(new)
            self._behind_since = None
            self._metrics.reloads.labels("switched").inc()
            self._settle()
        self._say(self._alias, logging.INFO, _in_service(new))
        return "switched"

    def _follow_challenger(self) -> None:
        models = self._models
        try:
            registered = self._settings.registry.ask(self._name, CHALLENGER)
        except RegistryError:
            return  # it was said of the champion's
        if registered is None or registered.folder == models.champion.located.path.name:
            models.challenger = None
            return
        if models.challenger and models.challenger.located.path.name == registered.folder:
            return
        models.challenger = None  # another version is no challenger any more, whether this one can be or not
        if self._refused.get(CHALLENGER) == registered.folder:
            return
        try:
            models.challenger = self._load(registered)
        except (DamagedError, RefusedError) as error:
            self._say(CHALLENGER, logging.ERROR, f"the challenger, version {registered.version}, was refused", error)
        except RegistryError as error:
            message = f"the challenger, version {registered.version}, could not be downloaded"
            self._say(CHALLENGER, logging.WARNING, message, error)
        else:
            self._say(CHALLENGER, logging.INFO, f"the challenger is version {registered.version}")
            self._prune()

    def _load(self, registered: Registered) -> Model:
        """Downloads and tries the version, unless it is in memory already.

        Raises:
            DamagedError, RefusedError: it may never serve, and is not kept.
            RegistryError: it could not be downloaded.
        """
        self._refused.pop(registered.alias, None)
        try:
            located = self._settings.registry.fetch(registered)
            try:
                return self._in_memory_or_loaded(located)
            except RefusedError as error:
                if not located.path.is_dir():
                    raise RegistryError("another process removed it meanwhile") from error
                discard(located)
                raise
        except (DamagedError, RefusedError):
            self._refused[registered.alias] = registered.folder
            self._metrics.reloads.labels("refused").inc()
            raise
        except RegistryError:
            self._metrics.reloads.labels("failed").inc()
            raise

    def _in_memory_or_loaded(self, located: Located) -> Model:
        return self._models.loaded(located) or startup.load(self._settings, located)

    def _settle(self) -> None:
        """What follows from another champion. Needs `_changing`."""
        models, metrics = self._models, self._metrics
        metrics.describe(answers.identity(models.champion))
        try:
            last_known_good.remember(self._settings, models.champion.located)
        except OSError as error:  # a full disk, say; it serves all the same
            log.error("the champion could not be noted for the next start", extra={"error": str(error)})
        self._prune()
        startup.give_back_memory()

    def _prune(self) -> None:
        loaded = (self._models.champion, self._models.previous, self._models.challenger)
        last_known_good.forget(self._settings, keep=[model.located for model in loaded if model])

    def _lift(self, hold: Hold) -> None:
        """Ends a hold, unless there is a newer one."""
        with self._changing:
            self._orders.look()
            if self._orders.hold == hold:
                self._orders.give(None)

    def _show_lag(self) -> None:
        since = self._behind_since
        self._metrics.alias_lag.set(0 if since is None else time.monotonic() - since)

    def _explain(self, note: str, error: Exception | None = None) -> None:
        """Says, to everyone and in the log, why the champion is not the version that the alias names."""
        self._models.note = note
        self._say(self._alias, logging.WARNING, note, error)

    def _say(self, subject: str, level: int, message: str, error: Exception | None = None) -> None:
        """Logs what is new, and not the same every turn."""
        if self._said.get(subject) != message:
            self._said[subject] = message
            expected = error is None or isinstance(error, (RegistryError, RefusedError))
            log.log(level, message, exc_info=None if expected else error, extra={"error": str(error)} if error else {})


def _in_service(champion: Model) -> str:
    return f"version {champion.located.version} is in service"
