"""Tests for the policy by which a manager opens a connection again, and for what it shows of it."""

import copy
import pickle
import random
from math import inf, nan

import pytest

from ownertask import Reconnecting, ReconnectPolicy


def is_timeout(exc):
    return isinstance(exc, TimeoutError)


POLICY = ReconnectPolicy(initial_delay=1, max_delay=60, max_retries=3, give_up_on=is_timeout)
FAILURE = OSError("no route to host")
VALUES = [POLICY, ReconnectPolicy(), Reconnecting(3, 12.5, FAILURE)]
IDS = ["policy", "default policy", "reconnecting"]

values = pytest.mark.parametrize("value", VALUES, ids=IDS)


def test_the_defaults_retry_forever_with_growing_delays():
    policy = ReconnectPolicy()
    assert (policy.initial_delay, policy.max_delay, policy.multiplier) == (0.5, 30.0, 2.0)
    assert (policy.jitter, policy.stable_after) == (0.2, 60.0)
    assert policy.max_retries is None
    assert policy.give_up_on is None


TIMES = ["initial_delay", "max_delay", "stable_after"]


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in TIMES for value in (-1, -0.001, nan, -inf)]
    + [("multiplier", value) for value in (0.999, 0, -2, nan)]
    + [("jitter", value) for value in (-0.1, 1.1, nan, inf)]
    + [("max_retries", -1)],
)
def test_a_value_out_of_range_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must"):
        ReconnectPolicy(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in [*TIMES, "multiplier", "jitter"] for value in (True, "1", None, 1j)]
    + [("max_retries", value) for value in (True, 1.0, "1", inf)]
    + [("give_up_on", value) for value in (True, OSError(), (OSError,))],
)
def test_a_value_of_another_type_is_an_error_that_names_the_field(field, value):
    with pytest.raises(TypeError, match=rf"^{field} must"):
        ReconnectPolicy(**{field: value})


def test_give_up_on_must_not_be_a_coroutine_function():
    """Its result would always be true, so the manager would never try again."""

    async def give_up_on(exc):
        return False

    with pytest.raises(TypeError, match=r"^give_up_on must be a plain function"):
        ReconnectPolicy(give_up_on=give_up_on)


@pytest.mark.parametrize("field", [*TIMES, "multiplier"])
def test_infinity_is_accepted(field):
    assert getattr(ReconnectPolicy(**{field: inf}), field) == inf


def test_the_arguments_must_be_named():
    with pytest.raises(TypeError):
        ReconnectPolicy(1)


def test_K1_without_jitter_the_delay_grows_by_the_multiplier_up_to_the_maximum():
    policy = ReconnectPolicy(initial_delay=1, multiplier=3, max_delay=20, jitter=0)
    assert [policy.delay_after(failures) for failures in range(1, 6)] == [1, 3, 9, 20, 20]


@pytest.mark.parametrize("edge", ["shortest", "longest"])
def test_K1_jitter_spreads_the_delay_both_ways(monkeypatch, edge):
    monkeypatch.setattr(random, "uniform", lambda low, high: low if edge == "shortest" else high)
    policy = ReconnectPolicy(initial_delay=1, multiplier=2, max_delay=10, jitter=0.25)
    delays = [policy.delay_after(failures) for failures in range(1, 6)]
    shortest, longest = [0.75, 1.5, 3, 6, 7.5], [1.25, 2.5, 5, 10, 10]
    assert delays == (shortest if edge == "shortest" else longest)


def test_K1_delays_differ():
    """Clients that lost the same server must not all return at the same moment."""
    policy = ReconnectPolicy()
    assert len({policy.delay_after(20) for _ in range(10)}) > 1


SIZES = (0, 1e-300, 0.5, 3, 1e308, inf)


@pytest.mark.parametrize("failures", [1, 2, 3, 100, 2000, 10**6, 10**400], ids=lambda n: f"{n:.0e}"
                         if n < 10**300 else "huge")  # fmt: skip
@pytest.mark.parametrize("jitter", [0, 0.2, 1])
def test_K4_a_delay_is_never_negative_above_the_maximum_or_not_a_number(jitter, failures):
    for initial_delay in SIZES:
        for max_delay in SIZES:
            for multiplier in (1, 1.0000001, 2, 10**9, 1e308, inf):
                policy = ReconnectPolicy(
                    initial_delay=initial_delay,
                    max_delay=max_delay,
                    multiplier=multiplier,
                    jitter=jitter,
                )
                assert 0 <= policy.delay_after(failures) <= max_delay, policy


@pytest.mark.parametrize("failures", [0, -1])
def test_there_is_no_delay_without_a_failure(failures):
    with pytest.raises(ValueError, match="at least 1"):
        ReconnectPolicy().delay_after(failures)


@values
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_value_has_the_same_fields(value, protocol):
    twin = pickle.loads(pickle.dumps(value, protocol))
    assert type(twin) is type(value)
    assert repr(twin) == repr(value)
    assert (twin == value) is isinstance(value, ReconnectPolicy)  # exceptions are compared by identity


@values
def test_a_copy_is_equal(value):
    assert copy.copy(value) == value
    assert repr(copy.deepcopy(value)) == repr(value)


@values
def test_a_value_cannot_be_changed(value):
    before = repr(value)
    for field in type(value).__slots__:
        with pytest.raises(AttributeError, match=f"'{field}'"):
            setattr(value, field, 1)
        with pytest.raises(AttributeError, match=f"'{field}'"):
            delattr(value, field)
    with pytest.raises(AttributeError, match="'other'"):
        value.other = 1
    assert repr(value) == before


def test_equal_values_have_the_same_hash():
    assert {POLICY, ReconnectPolicy(), ReconnectPolicy()} == {POLICY, ReconnectPolicy()}
    assert ReconnectPolicy() != POLICY
    assert Reconnecting(3, 12.5, FAILURE) == VALUES[2]
    assert hash(Reconnecting(3, 12.5, FAILURE)) == hash(VALUES[2])
    assert Reconnecting(4, 12.5, FAILURE) != VALUES[2]
    assert ReconnectPolicy() != "policy"


def test_a_repr_shows_all_fields():
    assert repr(ReconnectPolicy(max_retries=3)) == (
        "ReconnectPolicy(initial_delay=0.5, max_delay=30.0, multiplier=2.0, jitter=0.2, max_retries=3, "
        "stable_after=60.0, give_up_on=None)"
    )
    assert repr(VALUES[2]) == (
        "Reconnecting(failures=3, due=12.5, exception=<OSError: no route to host>)"
    )


def test_the_repr_of_reconnecting_never_raises_and_shows_no_secret():
    class OddError(Exception):
        def __repr__(self):
            raise RuntimeError

        __str__ = __repr__

    assert "<OddError: OddError>" in repr(Reconnecting(1, 0.0, OddError()))
    shown = repr(
        Reconnecting(1, 0.0, OSError("cannot connect to http://me:s3cret@example.org?key=s3cret"))
    )
    assert "example.org" in shown
    assert "s3cret" not in shown
