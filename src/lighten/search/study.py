"""The study: every trial of a search, kept so that a killed search goes on and several processes share one.

An Optuna study (SQLite in the work folder, or any storage URL that Optuna takes) says which trials there are and how
they ended; what a trial made lies in the work folder, `trials/NUMBER`, written before the study hears of it. So a trial
that the study calls complete can be read. One that runs holds a lock; a running one without is a dead process's.
Source: Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", arXiv:1907.10902.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from lighten.errors import ArtifactError, ConfigError
from lighten.metric import Metric, Scores
from lighten.runtime.folder import try_lock
from lighten.search.candidate import Candidate, stored

DATABASE = "study.db"
NAME = "lighten"
FAMILY = CategoricalDistribution(("listed", "channels", "zeros", "both", "integers"))
WHOLE = IntDistribution(0, 1_000_000)


@dataclass(frozen=True)
class Spec:
    """What a trial is: a point of a family by its step, trained for so many epochs."""

    family: str
    step: int
    epochs: int


class Study:
    """The trials in folder.

    storage: of Optuna, None = a file there. about: what all processes must agree on. resume: go on
    with what is there, which may know more about itself; else the folder must be new, or is replaced.

    Raises:
        ConfigError: there is another search in the folder, or none to resume. ArtifactError: it cannot be read.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], *, storage: str | None = None, resume: bool = False
    ) -> None:
        self.folder = folder
        url = storage or f"sqlite:///{folder / DATABASE}"
        if not resume:
            _must_be_ours(folder)
            shutil.rmtree(folder, ignore_errors=True)
        elif storage is None and not (folder / DATABASE).is_file():
            raise ConfigError(f"There is no search to resume in '{folder}'. Leave out --resume to begin one.")
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            if storage is not None and not resume:
                with contextlib.suppress(KeyError):
                    optuna.delete_study(study_name=NAME, storage=url)
            self._study = optuna.create_study(
                storage=url, study_name=NAME, directions=["minimize", "minimize"], load_if_exists=True
            )
        except Exception as error:  # each database has its own
            raise ArtifactError(f"Optuna cannot open the study at '{url}': {error}") from error
        known = self._study.user_attrs.get("about")
        if known is None:
            self._study.set_user_attr("about", about)
        elif changed := [name for name, value in json.loads(json.dumps(about)).items() if known.get(name) != value]:
            raise ConfigError(
                f"The search in '{folder}' was of something else: {', '.join(changed)} differ. Use the same task and "
                "settings, or another --work."
            )
        self._bury_the_dead()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What make gave when the search began: what is measured must not change while it goes on."""
        known = self._study.user_attrs.get(name)
        if known is None:
            known = make()
            self._study.set_user_attr(name, known)
        return known

    def finished(self, spec: Spec, metric: Metric, baseline: Scores) -> list[Candidate] | None:
        """What the trial made, if it is complete.

        Raises:
            ArtifactError: its folder is damaged.
        """
        done = [t for t in self._trials(spec) if t.state == TrialState.COMPLETE]
        return stored(self._folder(done[0]), metric, baseline) if done else None

    def all_finished(self, metric: Metric, baseline: Scores) -> list[Candidate]:
        """What all complete trials made, in their order.

        Raises:
            ArtifactError: a folder is damaged.
        """
        done = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return [candidate for trial in done for candidate in stored(self._folder(trial), metric, baseline)]

    def is_running(self, spec: Spec) -> bool:
        """Whether another process is at it, and lives."""
        self._bury_the_dead()
        return any(trial.state == TrialState.RUNNING for trial in self._trials(spec))

    @contextlib.contextmanager
    def trial(self, spec: Spec) -> Iterator["Running"]:
        """A trial that is complete once its finish is called, and failed if it is not."""
        distributions = {"family": FAMILY, "step": WHOLE, "epochs": WHOLE}
        given = {"family": spec.family, "step": spec.step, "epochs": spec.epochs}
        frozen = optuna.trial.create_trial(state=TrialState.RUNNING, params=given, distributions=distributions)
        identity = self._study._storage.create_new_trial(self._study._study_id, template_trial=frozen)
        number = self._study._storage.get_trial(identity).number
        folder = self.folder / "trials" / str(number)
        lock_folder = self.folder / "running" / str(number)
        lock_folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(lock_folder)
        running = Running(folder)
        try:
            yield running
        finally:
            if running.values is None:
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, running.values)
            if lock is not None:
                os.close(lock)
            shutil.rmtree(lock_folder, ignore_errors=True)

    def checkpoints(self, spec: Spec) -> Path:
        """Where the training of that trial may be gone on from, whichever process began it."""
        # By a name that is this study's alone: a worker on another machine may have such a folder of another search.
        study = self.once("id", lambda: secrets.token_hex(4))
        folder = self.folder / "checkpoints" / f"{study}-{spec.family}-{spec.step}-{spec.epochs}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def n_finished(self) -> int:
        """Trials that are complete."""
        return len(self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))

    def _trials(self, spec: Spec) -> list[FrozenTrial]:
        wanted = {"family": spec.family, "step": spec.step, "epochs": spec.epochs}
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.params == wanted]

    def _folder(self, trial: FrozenTrial) -> Path:
        return self.folder / "trials" / str(trial.number)

    def _bury_the_dead(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            place = self.folder / "running" / str(trial.number)
            lock = try_lock(place) if place.is_dir() else None
            if lock is None and place.is_dir():
                continue  # its process lives
            self._study.tell(trial.number, state=TrialState.FAIL)
            if lock is not None:
                os.close(lock)
            shutil.rmtree(place, ignore_errors=True)


class Running:
    """A trial at work. folder: where its candidates are to be stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: tuple[float, float] | None = None

    def finish(self, candidates: list[Candidate], cost: float) -> None:
        """It made these, and they are stored in folder. cost: predicted; the lowest drop is the other value."""
        drops = [c.drop.value for c in candidates if c.drop is not None]
        self.values = (min(drops, default=1e9), cost)


def _must_be_ours(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"'{folder}' is not a folder. Choose another --work.")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and not found <= {DATABASE, f"{DATABASE}-journal", "trials", "running", "checkpoints"}:
        raise ConfigError(f"'{folder}' holds other things ({', '.join(sorted(found)[:5])}). Choose another --work.")
