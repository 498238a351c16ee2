"""A made-up run with everything a report may have to show: a failed trial, a skipped layer, a name with markup."""

from typing import Any

import pytest

from lighten.plan import LayerPlan, Plan


def measured(value: float, median: float | None, size: int, share: float = 1.0, n: int = 899) -> dict[str, Any]:
    """The measurement keys of result.json."""
    margin = 1.96 * (value * (1 - value) / n) ** 0.5
    data: dict[str, Any] = {
        "metric": {"name": "accuracy", "value": value, "ci95": [value - margin, min(1.0, value + margin)], "n": n},
        "size_bytes": size,
        "n_params": int(41_866 * share),
        "macs": int(4_870_144 * share),
    }
    if median is not None:
        data["latency_ms"] = {
            "median": median, "p90": 1.13 * median, "runtime": "onnxruntime", "threads": 2, "batch": 1,
        }  # fmt: skip
    return data


def candidate(ratio: float, scheme: str | None, drop: float, median: float | None, size: int) -> dict[str, Any]:
    """One entry of candidates; without a median, one that failed."""
    return {
        "name": f"{100 * (1 - ratio):.0f} % of the channels, {scheme or 'float'}",
        "ratio": ratio,
        "scheme": scheme,
        **measured(0.9844 - drop, median, size, (1 - ratio) ** 1.7, n=450),
        "drop": {"value": drop, "ci95": [drop - 0.008, drop + 0.007 + drop / 8]},
        "within_budget": drop <= 0.01 and median is not None,
        "chosen": (ratio, scheme) == (0.5, "w8a8"),
        "note": "" if median is not None else "not timed: one operator has no integer kernel in this runtime",
    }


@pytest.fixture(scope="session")
def result() -> dict[str, Any]:
    return {
        "task": "digits",
        "seed": 0,
        "accepted": True,
        "verdict": "3.1× faster and 9.8× smaller, accuracy drop 0.0022 (budget 0.01).",
        "budget": {"max_drop": 0.01, "minimize": "latency"},
        "baseline": measured(0.9833, 0.187, 171_204),
        "compressed": measured(0.9811, 0.0603, 17_469, 0.31),
        "drop": {"value": 0.0022, "ci95": [-0.0041, 0.0086]},
        "speedup": 3.1,
        "speedup_ci95": [2.95, 3.27],
        "size_ratio": 9.8,
        "trials": 9,
        "candidates": [
            candidate(0.0, None, 0.0, 0.187, 171_204),
            candidate(0.0, "w8a8", 0.0, 0.121, 49_120),
            candidate(0.3, None, 0.0022, 0.141, 96_010),
            candidate(0.3, "w8a8", 0.0022, 0.0874, 28_733),
            candidate(0.5, None, 0.0044, 0.103, 60_204),
            candidate(0.5, "w8a8", 0.0067, 0.0605, 17_469),
            candidate(0.7, None, 0.0289, 0.071, 27_915),
            candidate(0.7, "w8a8", 0.0311, 0.0498, 9_871),
            candidate(0.9, "w4a8", 0.244, None, 4_310),
        ],
        "environment": {
            "cpu": "Example CPU @ 2.60 GHz",
            "threads": 2,
            "torch": "2.13.0",
            "runtime_version": "1.24.1",
            "python": "3.11.2",
            "os": "Linux 6.1",
        },
        "wall_s": 61.04,
    }


@pytest.fixture(scope="session")
def plan() -> Plan:
    return Plan(
        layers={
            "conv1": LayerPlan(channels=32, kept=16, granularity="channel", scheme="w8a8"),
            "conv2": LayerPlan(channels=64, kept=32, granularity="channel", scheme="w8a8"),
            "fc": LayerPlan(channels=10, kept=10, scheme="w8a8"),
        },
        ratio=0.5, importance="l2", scope="global", epochs=4, scheme="w8a8", observer="mse", weight_bits=8, threads=2,
        skipped={"fc": "its outputs are the model's outputs"},
    )  # fmt: skip
