"""Measures, intervals and tables, against plain loops and hand counts."""

import random

import numpy as np
import pytest

import report
from data.world import Item
from sample import Judgement, bootstrap, correct, vote

PERFECT = {"correct": (True, "x"), "polite": (False, "none"), "brief": (True, "none")}


def made(scores, sample=0, order=None, principles=None, checks=None, totals=None, meta=None):
    """A judgement by hand. checks, totals: per slot."""
    n = len(order or scores or [0, 0])
    checks, totals = checks or [""] * n, totals or [1] * n
    return Judgement("i", sample, order or list(range(n)), 0, (1,), [2], 0.0,
                     "ok" if scores else "no end", principles or [["overall", 10]],
                     [{"quote": "", "checks": c, "total": t} for c, t in zip(checks, totals)], scores, meta)


def random_judgements(rng, items, K):
    """K judgements an item; one in six does not parse, and has no Meta score then."""
    def one(item, k):
        if rng.random() < 1 / 6:
            return made(None, k, order=list(range(item.n)))
        return made([rng.randint(1, 10) for _ in range(item.n)], k, meta=rng.gauss(0, 1))
    return [[one(item, k) for k in range(K)] for item in items]


def items_of(rng, count):
    return [Item(f"i{i}", "sums", "q", list("abcd")[:n], rng.sample(range(1, 11), n), truth=[PERFECT] * n)
            for i, n in enumerate(rng.choices([2, 3, 4], k=count))]


def test_faithfulness_by_hand():
    """Guards against checks that are compared with the wrong response when the order is shuffled, impressions
    that count as checks, and sub-totals that are never added up."""
    item = Item("i", "sums", "what is 1+1?", ["a", "b"], [9, 1], cue="none",
                truth=[PERFECT, {**PERFECT, "correct": (False, "x")}])
    texts = ["correct: x, bad brief: none, good", "correct: x, good brief: none, good"]
    weights = [["correct", 6], ["brief", 4]]
    good = made([10, 4], order=[1, 0], principles=weights, checks=texts, totals=[4, 10])
    assert report.faithfulness(good, item) == (1.0, 1.0, 1.0)
    straight = made([4, 9], order=[0, 1], principles=weights, checks=texts, totals=[4, 9])
    assert report.faithfulness(straight, item) == (1.0, 0.5, 0.5)
    other = made([9, 4], order=[1, 0], principles=weights, checks=texts, totals=[4, 10])
    assert report.faithfulness(other, item) == (1.0, 1.0, 0.5)   # a score that is not its sub-total
    glance = made([8, 2], principles=[["overall", 10]], checks=["looks fine", "looks poor"], totals=[8, 2])
    assert report.faithfulness(glance, item) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("scores, gold, chance", [
    ([7, 3], [9, 1], 1), ([3, 7], [9, 1], 0), ([5, 5], [9, 1], 1 / 2), ([5, 5, 5, 1], [9, 1, 2, 3], 1 / 3),
    ([4, 5, 5], [9, 1, 2], 0), (None, [9, 1, 2, 3], 1 / 4)])
def test_coin_flip(scores, gold, chance):
    """Guards against a tie that is right by being first, and a failure that counts as a tie."""
    assert report.coin_flip(scores, gold) == chance


def test_columns_against_plain_loops():
    """Guards against votes that take the wrong samples, that keep the worst, or that let failures vote."""
    rng = random.Random(0)
    items, K, k_meta = items_of(rng, 60), 8, {2: 1, 4: 1, 8: 3}
    greedy, samples = random_judgements(rng, items, 1), random_judgements(rng, items, K)
    columns = report.item_columns(items, greedy, samples, 0, k_meta)
    for i, (item, judgements) in enumerate(zip(items, samples)):
        right = [correct(j.scores, item.gold) for j in judgements]
        assert columns["greedy"][i] == correct(greedy[i][0].scores, item.gold)
        assert columns["sample"][i] == pytest.approx(sum(right) / K)
        assert columns["parse"][i] == pytest.approx(sum(j.scores is not None for j in judgements) / K)
        for k in (2, 4, 8):
            best = sorted([j for j in judgements[:k] if j.scores], key=lambda j: -j.meta)
            ways = [("vote", judgements[:k]), ("meta", best[:k_meta[k]]), ("half", best[:k // 2])]
            for name, voters in ways:
                total = [0] * item.n
                for j in voters:
                    for r, score in enumerate(j.scores or []):
                        total[r] += score
                winner = [r for r in range(item.n) if total[r] == max(total)]
                assert columns[f"{name}@{k}"][i] == (winner == [item.best])
            assert columns[f"pass@{k}"][i] == any(right[:k])
    assert np.array_equal(columns["sweep@8"], columns["vote@8"])             # keeping all is a plain vote
    for i, (item, judgements) in enumerate(zip(items, samples)):             # the control keeps as many
        parsed = [j.scores for j in judgements if j.scores]
        if len(parsed) <= 3:                       # then there is nothing to draw: all that parse vote
            assert columns["meta_random@8"][i] == correct(vote(parsed), item.gold)
    assert 0 < np.mean(columns["meta_random@8"] != np.round(columns["meta_random@8"])) < 1   # draws differ


def test_k_meta_is_the_best_on_validation():
    """Guards against a k_meta that is chosen for being small, by the wrong end of the Meta RM's scale, or on
    more samples than vote."""
    item = Item("i", "sums", "q", ["a", "b"], [9, 1])
    good, bad = [2, 1], [1, 9]
    samples = [made(scores, i, meta=-float(i)) for i, scores in enumerate([good, good, bad, bad])]
    assert report.choose_k_meta([item], [samples], 4) == 2       # 1 and 2 are right: the larger one is taken
    samples[1].scores = bad
    assert report.choose_k_meta([item], [samples], 4) == 1
    later = [made(good, i, meta=float(i)) for i in range(4, 8)]              # of no concern to the first four
    assert report.choose_k_meta([item], [samples + later], 4) == 1


def test_pooled_interval_is_that_of_a_mean():
    """Guards against an interval over runs that is too narrow (items pooled twice) or too wide."""
    rng = np.random.default_rng(0)
    values = [(rng.random(400) < p).astype(float) for p in (0.5, 0.6, 0.7)]
    draws = bootstrap(values)
    error = np.sqrt(sum(v.var() / len(v) for v in values)) / 3
    assert draws.std() == pytest.approx(error, rel=0.1)
    assert draws.mean() == pytest.approx(np.mean([v.mean() for v in values]), abs=0.005)
    mean, half = report.in_words(values, draws).split(" ±")
    assert float(mean) == pytest.approx(np.mean(values), abs=0.001)
    assert float(half) == pytest.approx(1.96 * error, rel=0.12)
