"""What a task is judged by, and how sure one can be of it.

A metric is a function of (outputs, targets). It returns one value a sample, [n], whose mean is the metric (accuracy,
squared error, …), or one number for the whole set (F1, a rank correlation, …). The first kind has closed-form
intervals; the second is bootstrapped over samples.

Sources: Wilson (1927) for one proportion; Agresti & Min, "Simple improved confidence intervals for comparing matched
proportions", Statistics in Medicine 24 (2005), for the paired drop of 0/1 outcomes, which stays honest when no sample
changed its outcome (where a bootstrap would claim certainty); Student's t for the paired drop of other per-sample
values; the percentile bootstrap (Efron 1979) for the rest.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from lighten.errors import TaskError

Z95 = float(stats.norm.ppf(0.975))
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """name: as shown. function: (outputs, targets) -> values [n], or one number for the set."""

    name: str
    function: Callable[[Any, Any], Tensor]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval, of 95 % where nothing else is said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """What one model scored on one data set, kept so that a second model can be compared sample by sample.

    values: [n] per-sample values, or None where the metric is one number for the set; then outputs and targets,
    [n, …] each, are what it is recomputed from.
    """

    metric: Metric
    n: int
    values: Tensor | None
    outputs: Tensor | None = None
    targets: Tensor | None = None

    @property
    def interval(self) -> Interval:
        """The metric with its 95 % interval."""
        if self.values is None:
            return _bootstrap(lambda rows: self._on(rows), self.n)
        mean = float(self.values.double().mean())
        if _is_binary(self.values):
            return _wilson(mean, self.n)
        margin = _t_margin(self.values)
        return Interval(mean, mean - margin, mean + margin)

    def _on(self, rows: Tensor) -> float:
        assert self.outputs is not None
        assert self.targets is not None
        return float(self.metric.function(self.outputs[rows], self.targets[rows]))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the largest of outputs [n, classes] is at targets [n], else 0.0."""
    return (outputs.argmax(-1) == targets).float()


ACCURACY = Metric("accuracy", accuracy)


def score(batches: Iterable[tuple[Any, Any]], metric: Metric) -> Scores:
    """Apply metric to batches of (outputs, targets).

    Raises:
        TaskError: there is no sample, the metric is NaN or infinite, or its shape fits neither kind, or not the kind of
        the first batch.
    """
    values: list[Tensor] = []
    outputs: list[Any] = []
    targets: list[Any] = []
    per_sample = True  # until the first batch says otherwise; then outputs are kept instead of values
    n = 0
    for output, target in batches:
        n_batch = len(target)
        n += n_batch
        if per_sample:
            value = torch.as_tensor(metric.function(output, target)).detach()
            if value.shape not in ((n_batch,), ()):
                raise TaskError(
                    f"Metric '{metric.name}' returned shape {list(value.shape)} for a batch of {n_batch} samples. "
                    f"Return one value a sample, [{n_batch}], or one number."
                )
            if values and value.ndim != values[0].ndim:
                raise TaskError(
                    f"Metric '{metric.name}' returned one value a sample at first, but a single number for a batch of "
                    f"{n_batch}. It must always return one kind: does it squeeze() a batch of one? Return [{n_batch}]."
                )
            per_sample = value.ndim == 1
            values.append(value)
        if not per_sample:
            outputs.append(output)
            targets.append(target)
    if n == 0:
        raise TaskError("The evaluation set is empty: there is nothing to score. Give at least one batch.")
    if per_sample:
        scores = Scores(metric, n, torch.cat(values).double())
        assert scores.values is not None
        finite = bool(scores.values.isfinite().all())
    else:
        scores = Scores(metric, n, None, torch.cat(outputs), torch.cat(targets))
        finite = math.isfinite(scores._on(torch.arange(n)))
    if not finite:
        raise TaskError(
            f"Metric '{metric.name}' is NaN or infinite on {n} samples. Check the metric on the original model first."
        )
    return scores


def paired_drop(before: Scores, after: Scores, level: float = 0.95) -> Interval:
    """How much worse after is than before, from outcomes on the same samples; positive = worse.

    level: of the two-sided interval; one end of the 0.9 interval is the one-sided 95 % bound.
    """
    assert before.n == after.n, "a paired drop needs the same samples on both sides"
    sign = 1.0 if before.metric.higher_is_better else -1.0
    if before.values is None or after.values is None:
        return _bootstrap(lambda rows: sign * (before._on(rows) - after._on(rows)), before.n, level)
    difference = sign * (before.values - after.values)
    if _is_binary(before.values) and _is_binary(after.values):
        return _agresti_min(difference, level)
    mean, margin = float(difference.mean()), _t_margin(difference, level)
    return Interval(mean, mean - margin, mean + margin)


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _wilson(share: float, n: int) -> Interval:
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    margin = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - margin), min(1.0, centre + margin))


def _agresti_min(difference: Tensor, level: float) -> Interval:
    """difference [n] in {-1, 0, 1}. Half a discordant pair is added to each side before the Wald formula."""
    n = len(difference)
    worse = float((difference > 0).sum()) + 0.5
    better = float((difference < 0).sum()) + 0.5
    centre = (worse - better) / (n + 2)
    z = float(stats.norm.ppf((1 + level) / 2))
    margin = z * math.sqrt((worse + better) - (worse - better) ** 2 / (n + 2)) / (n + 2)
    return Interval(float(difference.mean()), max(-1.0, centre - margin), min(1.0, centre + margin))


def _t_margin(values: Tensor, level: float = 0.95) -> float:
    n = len(values)
    if n < 2:
        return math.inf
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * float(values.std()) / math.sqrt(n)


def _bootstrap(statistic: Callable[[Tensor], float], n: int, level: float = 0.95) -> Interval:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor(
        [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(RESAMPLES)],
        dtype=torch.float64,
    )
    low, high = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(statistic(torch.arange(n)), low, high)
