"""Driver: has the trials made that a search asks for, by as many workers as there are.

What a search does is written as *courses*: generators that yield the trial they want next and are sent whether it was
good. A course depends on these answers alone, so it can be begun again at any time, led by what is known to where it
stands, and by a guess to where it may stand next. So workers with nothing to do run ahead: first on the courses that
come later, then on what either outcome of a running trial leads to, and so on. What a wrong guess began is cancelled.

What is found is what one worker would have found. Trials count in the order in which courses ask for them, whenever
they were made; one that was made ahead and never asked for is kept in the study, and counts for nothing.
"""

import contextlib
import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lighten.metric import Scores
from lighten.search.candidate import Candidate, store, stored
from lighten.search.choose import Budget, admissible
from lighten.search.config import SearchConfig
from lighten.search.realize import Variant, realize
from lighten.search.study import Running, Spec, Study
from lighten.search.workers import WAIT_S, Tell, WorkerLost, Workers
from lighten.task import Task

AHEAD = 3  # guesses in a row


@dataclass(frozen=True)
class Progress:
    """What the search is doing: done of total units of work, and a sentence."""

    done: float
    total: float
    doing: str


OnProgress = Callable[[Progress], None]


class OutOfTime(Exception):  # noqa: N818  the limit that was asked for, not an error
    """The time limit is reached."""


class _Enough(Exception):  # noqa: N818
    """There were as many trials as there may be."""


@dataclass(frozen=True)
class Wanted:
    """A trial that a course asks for. is_good: what its candidates mean to the course."""

    spec: Spec
    variant: Variant
    is_good: Callable[[list[Candidate]], bool]


T = TypeVar("T")
Course = Generator[Wanted, bool, T]
Begin = Callable[[], Course[T]]
Guesses = tuple[tuple[Wanted, bool], ...]


@dataclass
class _AtWork:
    """A trial that a worker is at. guesses: that it is of use if they are right. lost: how many workers it cost."""

    wanted: Wanted
    guesses: Guesses
    trial: Running
    ending: contextlib.ExitStack
    future: Future[Any] = field(default_factory=Future)
    lost: int = 0


@dataclass(kw_only=True)
class Driver:
    """The trials of a search.

    baseline: the original's scores on selection data. cost: the original's, of the objective. deadline: by
    time.monotonic. candidates: of all trials that were asked for, in that order. stopped: why no trial begins any
    more, or "".
    """

    task: Task
    budget: Budget
    config: SearchConfig
    study: Study
    baseline: Scores
    cost: float
    workers: Workers
    tell: OnProgress
    deadline: float = math.inf
    candidates: list[Candidate] = field(default_factory=list)
    stopped: str = ""
    n_asked: int = 0
    _found: dict[Spec, list[Candidate]] = field(default_factory=dict)
    _answers: dict[Spec, bool] = field(default_factory=dict)
    _errors: dict[Spec, Exception] = field(default_factory=dict)
    _at_work: dict[Spec, _AtWork] = field(default_factory=dict)

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """The time in which trials are made; a limit or Ctrl-C ends it, and nothing runs behind it."""
        ahead = False
        try:
            yield
        except _Enough:
            self.stopped = f"stopped after {self.config.max_trials} trials"
        except OutOfTime:
            self.stopped, ahead = f"stopped after {self.config.time_limit_s:g} s", True
        except KeyboardInterrupt:
            self.stopped, ahead = "stopped by hand", True
        finally:
            self._end()
        if ahead:  # the best so far is of everything that was made
            asked = {spec: found for spec, found in self._found.items() if spec not in self._answers}
            for spec in sorted(asked, key=lambda s: (s.family, s.step, s.epochs)):
                self.candidates += asked[spec]

    def follow(self, begins: Sequence[Begin[T]]) -> Iterator[T]:
        """What each course returns, one course after another. begins: of courses that do not need each other."""
        for i, begin in enumerate(begins):
            ahead = begins[i:]
            _, returned = _led(begin(), lambda wanted, ahead=ahead: self._ask(wanted, ahead))  # type: ignore[misc]
            yield returned

    def part(self, of_a_trial: float) -> Tell:
        """What tells progress within a trial, and stops it when the time is up."""
        so_far = self._so_far()

        def tell(share: float, doing: str) -> None:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            self.tell(Progress(self.n_asked + of_a_trial * share, self._total, f"{doing}{so_far}" if doing else ""))

        return tell

    @property
    def _total(self) -> int:
        return max(self.config.max_trials if not self.config.is_listed else 0, self.n_asked + 1)

    def _ask(self, wanted: Wanted, ahead: Sequence[Begin[Any]]) -> bool:
        """Whether the trial is good, now that it counts. ahead: the course that wants it, and those after it."""
        if self.n_asked >= self.config.max_trials:
            raise _Enough
        while (found := self._known(wanted.spec)) is None:
            if wanted.spec in self._errors:
                raise self._errors[wanted.spec]
            self._work(ahead)
        self.n_asked += 1
        self.candidates += found
        self._answers[wanted.spec] = wanted.is_good(found)
        return self._answers[wanted.spec]

    def _known(self, spec: Spec) -> list[Candidate] | None:
        """What the trial made, by this process, before, or in another one that shares the study."""
        if spec not in self._found:
            found = self.study.finished(spec, self.task.metric, self.baseline)
            if found is None:
                return None
            self._found[spec] = found
        return self._found[spec]

    def _so_far(self) -> str:
        """The best of the finished trials, by what is known before candidates are timed side by side."""
        found = [candidate for made in self._found.values() for candidate in made]
        best = min(admissible(found, found, self.budget), key=lambda c: (c.macs, c.size_bytes), default=None)
        if best is None or best.drop is None:
            return ""
        return f"; within the budget so far: {best.name}, drop {best.drop.value:.4f}"

    def _work(self, begins: Sequence[Begin[Any]]) -> None:
        """Give free workers something to do, and wait for news."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        for running in [x for x in self._at_work.values() if any(self._is_wrong(guess) for guess in x.guesses)]:
            self._cancel(running)
        likely = itertools.islice(self._likely(begins), max(1, self.config.max_trials - len(self._found)))
        while len(self._at_work) < self.workers.n and (following := next(likely, None)) is not None:
            wanted, guesses = following
            if wanted.spec in self._at_work or wanted.spec in self._errors:
                continue
            is_busy = self.study.is_running(wanted.spec)  # asked first: it may finish in between
            if not is_busy and self._known(wanted.spec) is None:
                self._start(wanted, guesses)
        if not self._at_work:
            time.sleep(WAIT_S)  # another process is at what is wanted
            return
        if self.workers.n > 1:
            names = "; ".join(running.wanted.variant.name for running in self._at_work.values())
            self.part(0.0)(0.0, f"{len(self._at_work)} of {self.workers.n} workers at trials: {names}")
        self.workers.wait([running.future for running in self._at_work.values()], WAIT_S)
        for running in [x for x in self._at_work.values() if x.future.done()]:
            self._collect(running)

    def _likely(self, begins: Sequence[Begin[Any]]) -> Iterator[tuple[Wanted, Guesses]]:
        """Trials that nothing is known of: what the courses wait for, then what each of its outcomes leads to, …"""
        seen: set[Spec] = set()
        level: list[tuple[Begin[Any], Guesses]] = [(begin, ()) for begin in begins]
        for _ in range(AHEAD + 1):
            following = []
            for begin, guesses in level:
                guessed = {wanted.spec: good for wanted, good in guesses}
                wanted, _returned = _led(begin(), lambda w, guessed=guessed: self._answer(w, guessed))  # type: ignore[misc]
                if wanted is None:
                    continue
                if wanted.spec not in seen:
                    seen.add(wanted.spec)
                    yield wanted, guesses
                following += [(begin, (*guesses, (wanted, good))) for good in (True, False)]
            level = following

    def _answer(self, wanted: Wanted, guessed: dict[Spec, bool]) -> bool | None:
        """What was answered, would be by what is known, or is guessed."""
        if wanted.spec in self._answers:
            return self._answers[wanted.spec]
        found = self._found.get(wanted.spec)
        return wanted.is_good(found) if found is not None else guessed.get(wanted.spec)

    def _is_wrong(self, guess: tuple[Wanted, bool]) -> bool:
        return self._answer(guess[0], {}) is (not guess[1])

    def _start(self, wanted: Wanted, guesses: Guesses) -> None:
        ending = contextlib.ExitStack()
        running = _AtWork(wanted, guesses, ending.enter_context(self.study.trial(wanted.spec)), ending)
        self._at_work[wanted.spec] = running
        self._submit(running)

    def _submit(self, running: _AtWork) -> None:
        wanted = running.wanted
        checkpoints = self.study.checkpoints(wanted.spec)
        running.future = self.workers.submit(
            make_trial, self.baseline, wanted.variant, self.config, checkpoints,
            into=running.trial.folder, tell=self.part(1.0),
        )  # fmt: skip

    def _collect(self, running: _AtWork) -> None:
        """Take in what a worker finished, failed at, or was lost with."""
        wanted = running.wanted
        error = running.future.exception()
        if isinstance(error, WorkerLost):
            running.lost += 1
            if self.workers.has_lost(wanted.variant.name, running.lost, error):
                self._submit(running)
                return
            # Not kept in the study: a search that is resumed, on better machines, tries it again.
            note = f"lost {running.lost} workers, the last one so: {error}"
            self._found[wanted.spec] = [replace(trial, note=note) for trial in wanted.variant.trials()]
        elif isinstance(error, Exception):
            self._errors[wanted.spec] = error  # raised if the search comes to it
        else:
            found = stored(running.trial.folder, self.task.metric, self.baseline)
            running.trial.finish(found, wanted.variant.predicted_ms or self.cost)
            self._found[wanted.spec] = found
        self._leave(running)
        if error is None:
            shutil.rmtree(self.study.checkpoints(wanted.spec), ignore_errors=True)

    def _cancel(self, running: _AtWork) -> None:
        self.workers.cancel(running.future)
        self._leave(running)

    def _leave(self, running: _AtWork) -> None:
        del self._at_work[running.wanted.spec]
        running.ending.close()

    def _end(self) -> None:
        """Keep what is finished, cancel the rest."""
        for running in list(self._at_work.values()):
            if running.future.done() and running.future.exception() is None:
                self._collect(running)
            else:
                self._cancel(running)


def make_trial(
    task: Task,
    baseline: Scores,
    variant: Variant,
    config: SearchConfig,
    checkpoints: Path | None,
    *,
    folder: Path,
    tell: Tell,
) -> None:
    """A job: realize variant's candidates and store them in folder. checkpoints: used where there is such a folder."""
    if checkpoints is not None and not checkpoints.is_dir():
        checkpoints = None  # another machine's, which shares no files with this one
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        store(realize(task, baseline, variant, config, Path(scratch), tell, checkpoints=checkpoints), folder)


def _led(course: Course[T], answer: Callable[[Wanted], bool | None]) -> tuple[Wanted | None, Any]:
    """The first trial of the course without an answer, and None; or None, and what the course returns."""
    try:
        wanted = next(course)
        while (good := answer(wanted)) is not None:
            wanted = course.send(good)
    except StopIteration as end:
        return None, end.value
    return wanted, None
