"""Measures ratios, and collects their medians and the range of the middle half.

The speed of a machine drifts, so the two sides of a ratio are measured one right after the other, in
alternating order.
"""

from statistics import median


def middle_half(values):
    """Returns the lower and the upper bound of the middle half."""
    values = sorted(values)
    quarter = len(values) // 4
    return values[quarter], values[-1 - quarter]


class Report:
    """Collects the results of one benchmark on one backend.

    Attributes:
        rows: The results.
        backend: The backend, or `None` if the benchmark does not depend on it.
        quick: Whether the run is only a trial.
    """

    def __init__(self, backend, *, quick):
        self.rows = []
        self.backend = backend
        self.quick = quick

    def rounds(self, count):
        """Returns the number of rounds to measure: a few in a trial."""
        return max(2, count // 20) if self.quick else count

    def add(self, label, to, values, goal=None, unit="times", **more):
        """Adds the values of one measure: ratios, unless there is another unit."""
        low, high = middle_half(values)
        numbers = {"median": median(values), "low": low, "high": high}
        self.rows.append(
            {
                "label": label,
                "to": to,
                "backend": self.backend,
                "unit": unit,
                **{name: round(number, 4) for name, number in numbers.items()},
                "measurements": len(values),
                "goal": goal,
                **more,
            }
        )

    async def pairs(self, ours, bare, rounds):
        """Returns the results of two functions, in pairs. Their first results are dropped."""
        await ours(), await bare()
        pairs = []
        for number in range(self.rounds(rounds)):
            if number % 2:
                second = await bare()
                pairs.append((await ours(), second))
            else:
                pairs.append((await ours(), await bare()))
        return pairs

    async def compare(self, label, to, ours, bare, rounds, goal=None):
        """Adds the ratios of the costs that two functions return."""
        self.add(label, to, [a / b for a, b in await self.pairs(ours, bare, rounds)], goal)
