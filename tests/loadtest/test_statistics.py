"""What may be said of a difference, held to account where the truth is known."""

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clients.recording import folded
from loadtest.results import statistics
from loadtest.results.statistics import (
    holm,
    interval,
    least_rounds,
    mann_whitney,
    paired_ratio,
    percentiles,
    rank,
    unpaired_ratio,
    unstable,
)


def test_percentiles() -> None:
    assert set(percentiles(folded([])).values()) == {None}
    hundred = percentiles(folded(list(range(1, 101))))
    assert hundred == {
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "p999": 100,
        "max": 100,
        "mean": 50,
    }
    assert percentiles(folded([5] * 999 + [7]))["p999"] == 5


@pytest.mark.parametrize("scale", [10, 1000, 1_000_000, 30_000_000])
def test_the_mean_is_the_librarys(scale: int) -> None:
    draw = random.Random(scale)
    counts = folded([int(draw.expovariate(1 / scale)) + 1 for _ in range(2000)])
    assert percentiles(counts)["mean"] == round(counts.get_mean_value())


def test_mann_whitney_is_the_share_of_all_deals() -> None:
    """Against the definition: every way to deal the values, counted."""
    draw = random.Random(1)
    for _ in range(50):
        one = [draw.choice([1.0, 2, 3, 3.5, 4]) for _ in range(draw.randint(1, 5))]
        two = [draw.choice([1.0, 2, 3, 3.5, 4]) for _ in range(draw.randint(1, 5))]
        pooled = sorted([*one, *two])
        ranks = {
            v: sum(i + 1 for i, x in enumerate(pooled) if x == v) / pooled.count(v) for v in pooled
        }
        middle = len(one) * (len(pooled) + 1) / 2
        distance = abs(sum(ranks[v] for v in one) - middle)
        deals = list(itertools.combinations([ranks[v] for v in pooled], len(one)))
        as_far = sum(abs(sum(deal) - middle) >= distance - 1e-9 for deal in deals)
        assert mann_whitney(one, two) == pytest.approx(as_far / len(deals))


@pytest.mark.ci
def test_mann_whitney_of_many_agrees_with_the_exact_one() -> None:
    draw = random.Random(2)
    for shift in (0.0, 0.4, 0.8):
        one = [draw.gauss(0, 1) for _ in range(30)]
        two = [draw.gauss(shift, 1) for _ in range(30)]
        exact = mann_whitney(one, two)
        assert statistics._approximate(one, two) == pytest.approx(exact, abs=0.01)
    assert mann_whitney([1.0] * 40, [1.0] * 40) == 1.0


@given(
    one=st.lists(st.integers(0, 10**6), min_size=2, max_size=12),
    two=st.lists(st.integers(0, 10**6), min_size=2, max_size=12),
)
def test_mann_whitney_agrees_with_scipy(one: list[int], two: list[int]) -> None:
    """`make oracles` installs it; without ties, for which its exact test makes no allowance."""
    stats = pytest.importorskip("scipy.stats")
    assume(len({*one, *two}) == len(one) + len(two))
    expected = stats.mannwhitneyu(one, two, method="exact").pvalue
    assert mann_whitney(one, two) == pytest.approx(expected)


def test_holm() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


@pytest.mark.parametrize(("targets", "rounds"), [(2, 4), (3, 5), (7, 6), (12, 7)])
def test_the_least_number_of_rounds(targets: int, rounds: int) -> None:
    assert least_rounds(targets) == rounds
    pairs = targets * (targets - 1) / 2
    for count, enough in ((rounds, True), (rounds - 1, False)):
        clearest = mann_whitney(range(count), range(count, 2 * count))
        assert (clearest * pairs <= 0.05) == enough
        assert clearest == pytest.approx(2 / math.comb(2 * count, count))


def test_ranks_are_shared_by_those_that_cannot_be_told_apart() -> None:
    rounds = {"slow": [9.0, 9.1, 9.2, 9.3, 9.4], "fast": [5.0, 5.1, 5.2, 5.3, 5.4]}
    rounds["also fast"] = [5.05, 5.15, 5.25, 5.12, 5.31]
    assert rank(rounds, lowest_first=True).ranks == {"fast": 1, "also fast": 1, "slow": 3}
    assert rank(rounds, lowest_first=False).ranks == {"slow": 1, "fast": 2, "also fast": 2}


@pytest.mark.ci
def test_a_thing_is_not_found_to_differ_from_itself() -> None:
    """Of 400 comparisons of seven equal servers, 5 % may claim any difference at all.

    The noise is what a machine's is: skewed, and now and then far off.
    """
    draw = random.Random(3)
    claims = 0
    for _ in range(400):
        rounds = {
            name: [
                draw.lognormvariate(0, 0.1) * (1.5 if draw.random() < 0.1 else 1) for _ in range(6)
            ]
            for name in "abcdefg"
        }
        claims += any(p <= 0.05 for p in rank(rounds, lowest_first=True).adjusted.values())
    assert claims <= 20 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_a_handicap_is_found() -> None:
    """15 % at 10 rounds whose noise is 5 %: nine times in ten at least."""
    draw = random.Random(4)
    found = 0
    for _ in range(100):
        rounds = {
            name: [draw.gauss(middle, 0.05 * middle) for _ in range(10)]
            for name, middle in (("whole", 1.0), ("handicapped", 1.15))
        }
        ranking = rank(rounds, lowest_first=True)
        found += ranking.ranks == {"whole": 1, "handicapped": 2}
    assert found >= 90


@pytest.mark.ci
def test_intervals_hold_what_they_promise() -> None:
    """The bootstrap's 95 % is less with few rounds; it must not be far less."""
    draw = random.Random(5)
    held = 0
    for seed in range(200):
        found = interval([draw.gauss(100, 10) for _ in range(10)], seed)
        assert found.low <= found.median <= found.high
        held += found.low <= 100 <= found.high
    assert held >= 170


def test_what_falls_on_both_cancels_out() -> None:
    weather = [1.0, 1.7, 0.8, 1.2, 0.5]
    ratio = paired_ratio([8.1 * w for w in weather], [4 * w for w in weather])
    assert ratio.median == ratio.low == ratio.high == pytest.approx(2.025)
    apart = unpaired_ratio([8.1 * w for w in weather], [4 * w for w in weather])
    assert apart.low < 1.5
    assert apart.high > 2.025


def test_unstable() -> None:
    assert not unstable([100.0, 101, 99, 102])
    assert unstable([100.0, 120, 80, 130])
    assert unstable([100.0] * 50 + [160.0]), "one that is far off"
    assert not unstable([100.0])
