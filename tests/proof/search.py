"""What the random searches share."""

import os

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, Phase, settings
from proof import clocks

PROFILE = os.environ.get("OWNERTASK_PROOF")
IS_LONG = PROFILE == "long"

clock = pytest.mark.parametrize("clock", [clock for clock in clocks.CLOCKS if clock != "uvloop"])


def searched(examples):
    return settings(
        max_examples=examples * 30 if IS_LONG else examples,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if PROFILE == "mutants" else [Phase.generate, Phase.shrink],
    )


async def let_all_tasks_run(turns=60):
    for _ in range(turns):
        await checkpoint()


def innermost(error):
    """Returns the innermost first exception of a group, by which hypothesis tells failures apart."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
