from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighten.report import words

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.floats() | st.none(), max_size=3)
)


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (words.plain, 0.98333, "0.9833"),
        (words.plain, -0.0041, "−0.0041"),
        (words.plain, 0.00034, "0.00034"),
        (words.plain, -0.0, "0.0000"),
        (words.milliseconds, 0.0603, "0.0603 ms"),
        (words.milliseconds, 1234.5, "1,230 ms"),
        (words.milliseconds, 9.999, "10.0 ms"),
        (words.size, 812, "812 B"),
        (words.size, 171_204, "171 kB"),
        (words.size, 999_999, "1.00 MB"),
        (words.count, 4_870_144, "4.87 M"),
        (words.count, 0, "0"),
        (words.seconds, 61.04, "61.0 s"),
        (words.seconds, 600, "10 min"),
        (words.times, 1.349, "1.35×"),
        (words.times, 0.5, "2.0×"),
        (words.interval, [-0.0041, 0.0086], "−0.0041 to 0.0086"),
    ],
)
def test_hand_worked(function: Any, value: Any, shown: str) -> None:
    assert function(value) == shown


@pytest.mark.parametrize(
    ("gain", "shown"), [(2.0, "2.0× faster"), (0.8, "1.25× slower"), (1.001, "unchanged"), (0.0, "–"), (None, "–")]
)
def test_a_change_names_its_direction(gain: float | None, shown: str) -> None:
    assert words.change(gain, "faster", "slower") == shown


@given(value=anything)
def test_no_value_is_too_odd_to_show(value: Any) -> None:
    for function in (
        words.plain, words.interval, words.milliseconds, words.size, words.count, words.seconds, words.times,
    ):  # fmt: skip
        shown = function(value)
        assert isinstance(shown, str)
        assert shown
        assert "nan" not in shown
        assert "inf" not in shown
