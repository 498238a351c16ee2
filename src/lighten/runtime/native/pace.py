"""Whether threads should share a sample, by how long calls took.

Sharing can lose: where two cores have no cache in common, a line takes 200 ns from one to the other instead of 50, and
a virtual machine moves between such places within seconds. So it is measured, and again from time to time.
"""

import math

PERIOD, TRIES = 128, 3


class Pace:
    """Of every PERIOD calls TRIES are shared and TRIES are not; the others are as the shortest of these was.

    Callers at the same time may miscount, which costs no more than some calls of the slower kind.
    """

    def __init__(self) -> None:
        self.calls, self.shortest = 0, [math.inf, math.inf]

    def shares(self) -> bool:
        """Whether to share in the next call."""
        at, self.calls = self.calls % PERIOD, self.calls + 1
        if at == 0:
            self.shortest = [math.inf, math.inf]
        return at < TRIES if at < 2 * TRIES else self.shortest[True] <= self.shortest[False]

    def took(self, shared: bool, ns: float) -> None:
        """How long a call took, for each sample."""
        self.shortest[shared] = min(self.shortest[shared], ns)
