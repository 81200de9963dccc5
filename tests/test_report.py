"""Measures, intervals and tables, against plain loops and hand counts."""

import json
import random

import numpy as np
import pytest

import report
from data import UserError
from data.judgement import Judgement, correct
from data.world import Item

PERFECT = {"correct": (True, "x"), "polite": (False, "none"), "concise": (True, "none")}


def made(scores, sample=0, principles=None, checks=None, totals=None, meta=None, n=2):
    """A judgement by hand. checks, totals: of each response."""
    n = len(scores or [0] * n)
    checks, totals = checks or [[]] * n, totals or [1] * n
    return Judgement("i", sample, list(range(n)), 0, [1], [2] * 50, 0.0, "ok" if scores else "no end",
                     principles or [["overall", 10]],
                     [{"quote": "", "text": "", "checks": c, "total": t} for c, t in zip(checks, totals)],
                     scores, meta)


def random_judgements(rng, items, K):
    """K judgements of each item. One in six does not parse, and has no logit."""
    def one(item, k):
        if rng.random() < 1 / 6:
            return made(None, k, n=item.n)
        return made([rng.randint(1, 10) for _ in range(item.n)], k, meta=rng.gauss(0, 1))
    return [[one(item, k) for k in range(K)] for item in items]


def random_items(rng, count):
    return [Item(f"i{i}", rng.choice(["sums", "facts"]), "q", list("abcd")[:n], rng.sample(range(1, 11), n),
                 truth=[PERFECT] * n) for i, n in enumerate(rng.choices([2, 3, 4], k=count))]


def test_faithfulness_by_hand():
    """Guards against checks that are compared with another response, impressions that count as checks, and
    totals that are never added up."""
    item = Item("i", "sums", "what is 1+1?", ["a", "b"], [9, 1], cue="none",
                truth=[PERFECT, {**PERFECT, "correct": (False, "x")}])
    good, bad = ([["correct", "x", met], ["concise", "none", True]] for met in (True, False))
    weights = [["correct", 6], ["concise", 4]]
    judge = lambda scores, checks, totals: report.faithfulness(
        made(scores, principles=weights, checks=checks, totals=totals), item)
    assert judge([10, 4], [good, bad], [10, 4]) == (1.0, 1.0, 1.0)
    assert judge([4, 9], [bad, good], [4, 9]) == (1.0, 0.5, 0.5)
    assert judge([9, 4], [good, bad], [10, 4]) == (1.0, 1.0, 0.5)            # a score that is not its total
    assert judge([10, 4], [good, bad[:1]], [10, 4]) == (1.0, 0.75, 0.5)      # a check is missing
    none = [["correct", "x", False], ["concise", "none", False]]
    assert judge([1, 4], [none, bad], [1, 4]) == (1.0, 0.5, 1.0)             # a total is at least 1
    extra = [*good, ["kind", "x", True]]
    assert judge([10, 4], [extra, bad], [10, 4]) == (1.0, 1.0, 0.5)          # a check without a principle
    assert report.faithfulness(made([8, 2], totals=[8, 2]), item) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("scores, gold, chance", [
    ([7, 3], [9, 1], 1), ([3, 7], [9, 1], 0), ([5, 5], [9, 1], 1 / 2), ([5, 5, 5, 1], [9, 1, 2, 3], 1 / 3),
    ([4, 5, 5], [9, 1, 2], 0), (None, [9, 1, 2, 3], 1 / 4)])
def test_ties_broken_at_random(scores, gold, chance):
    """Guards against a tie that is correct by being first, and a failure that counts as a tie."""
    assert report.tie_broken(scores, gold) == chance


def test_auc_against_all_pairs():
    """Guards against ties that count as wins or losses, exchanged kinds, and a number where there are no pairs."""
    rng = random.Random(0)
    for _ in range(50):
        good = [rng.random() < 0.5 for _ in range(6)]
        logits = [rng.randint(0, 3) for _ in good]
        pairs = [(a, b) for a, g in zip(logits, good) if g for b, h in zip(logits, good) if not h]
        expected = sum(1 if a > b else 0.5 if a == b else 0 for a, b in pairs) / len(pairs) if pairs else None
        assert report.auc(good, logits) == expected


def test_per_item_against_plain_loops():
    """Guards against votes that take the wrong samples, that keep the worst, or that let failures vote; and
    against a control that keeps more or fewer."""
    rng = random.Random(0)
    items, K = random_items(rng, 60), 8
    greedy, samples = random_judgements(rng, items, 1), random_judgements(rng, items, K)

    def winners(judgements, n):                    # of a sum
        total = [sum(j.scores[r] for j in judgements if j.scores) for r in range(n)]
        return [r for r in range(n) if total[r] == max(total)] if any(j.scores for j in judgements) else []

    def most_picked(judgements, n):                # of a plurality, with sums to break ties
        picks, total = [0.0] * n, [sum(j.scores[r] for j in judgements if j.scores) for r in range(n)]
        for j in judgements:
            tops = [r for r in range(n) if j.scores and j.scores[r] == max(j.scores)]
            for r in tops:
                picks[r] += 1 / len(tops)
        ahead = [r for r in range(n) if picks[r] > max(picks) - 1e-9 and max(picks) > 0]
        return [r for r in ahead if total[r] == max(total[a] for a in ahead)]

    guided = lambda judgements, kept: sorted([j for j in judgements if j.scores], key=lambda j: -j.meta)[:kept]
    columns = report.per_item(items, greedy, samples, seed=0)
    assert all(len(values) == 60 and 0 <= values.min() <= values.max() <= 1 for values in columns.values())
    for i, (item, judgements) in enumerate(zip(items, samples)):
        right = [correct(j.scores, item.gold) for j in judgements]
        assert columns["greedy"][i] == correct(greedy[i][0].scores, item.gold)
        assert columns["greedy, ties broken at random"][i] == report.tie_broken(greedy[i][0].scores, item.gold)
        assert columns["one sample"][i] == pytest.approx(sum(right) / K)
        parsed = [j.scores for j in judgements if j.scores]
        assert columns["parses"][i] == len(parsed) / K
        ties = sum(scores.count(max(scores)) > 1 for scores in parsed)
        assert columns["ties"][i] == (ties / len(parsed) if parsed else 0)
        for k in (2, 4, 8):
            first = judgements[:k]
            assert columns[f"sum@{k}"][i] == (winners(first, item.n) == [item.best])
            assert columns[f"plurality@{k}"][i] == (most_picked(first, item.n) == [item.best])
            assert columns[f"guided@{k}"][i] == (winners(guided(first, k // 2), item.n) == [item.best])
            assert columns[f"pass@{k}"][i] == any(right[:k])
            if len([j for j in first if j.scores]) <= k // 2:                # then there is nothing to draw
                assert columns[f"random@{k}"][i] == columns[f"sum@{k}"][i]
    assert 0 < np.mean(columns["random@8"] % 1 > 0) < 1                      # draws differ


def test_measure_by_domain():
    """Guards against a domain's accuracy that counts other items, and sets of items that are exchanged."""
    rng = random.Random(1)
    items, others = random_items(rng, 30), random_items(rng, 11)
    singles = [Item("s", "sums", "q", ["a"], [7])] * 4
    scores = [[made([7])], [made([7])], [made([7])], [made([6])]]
    sets = {"greedy": (items, random_judgements(rng, items, 1)),
            "votes": (items, random_judgements(rng, items, 4)),
            "ood-greedy": (others, [[made(item.gold)] for item in others]),
            "ood": (others, [[made(item.gold[::-1])] * 2 for item in others]), "single": (singles, scores)}
    found, columns = report.measure(sets, 0)
    assert found["one response"][0] == 0.75 and found["out of distribution, greedy"][0] == 1
    assert found["out of distribution, sum@2"][0] == found["out of distribution, plurality@2"][0] < 1
    assert found["tokens"] == 50.0 and set(found["by domain"]) == {"sums", "facts"}
    for domain, of in found["by domain"].items():
        mine = [value for value, item in zip(columns["greedy"], items) if item.domain == domain]
        assert of["items"] == len(mine) and of["greedy"][0] == pytest.approx(np.mean(mine), abs=1e-4)
    parsed = [[j for j in s if j.scores] for s in sets["votes"][1]]
    logits = [[j.meta for j in s] for s in parsed]
    right = [[correct(j.scores, item.gold) for j in s] for s, item in zip(parsed, items)]
    within = [a for a in map(report.auc, right, logits) if a is not None]
    assert found["Meta RM's AUC"] == pytest.approx(np.mean(within), abs=1e-4)


def test_describe():
    """Guards against shares of the wrong judgements: ties of single responses, checks of what does not parse."""
    item = Item("i", "sums", "q", ["a", "b"], [9, 1], truth=[PERFECT] * 2)
    single = Item("s", "sums", "q", ["a"], [7], truth=[PERFECT])
    checked = made([8, 2], principles=[["correct", 10]], checks=[[["correct", "x", True]], []])
    stats = report.describe([[checked, made([5, 5])], [made([7]), made(None, n=1)]], [item, single])
    assert stats == {"correct": 0.5, "parses": 0.75, "ties": 0.5, "length": 50.0, "checks": pytest.approx(0.5 / 3)}


def test_interval_is_that_of_a_mean():
    """Guards against an interval that is too narrow or too wide."""
    mean, low, high = report.interval([1, 1, 1, 0])
    assert mean == 0.75 and high - mean == pytest.approx(1.96 * (0.1875 / 4) ** 0.5, abs=1e-3)
    assert mean - low == pytest.approx(high - mean, abs=1e-3)


def test_table(tmp_path):
    """Guards against a cell under another policy, a row that is lost because base has no guided votes, and an
    interval in place of its half."""
    stage = lambda mean: {"greedy": [mean, mean - 0.1, mean + 0.1], "plurality@4": [mean, mean, mean],
                          "tokens": 50.5, "by domain": {"sums": {
                              "items": 3, "greedy": [mean, mean, mean], "one sample": [0.0, 0.0, 0.0],
                              "sum@4": [mean, 0.0, 1.0], "plurality@4": [mean, 0.0, 1.0]}}}
    results = {"stages": {"base": stage(0.2), "rft": stage(0.4), "rl": {**stage(0.6), "guided@4": [0.5] * 3}},
               "items": 3, "config": {"eval_split": "val"}, "seconds": {"RL": 60.0}}
    rows = {line.split("  ")[0]: line.split()[1:] for line in report.table(results).splitlines()}
    assert rows["greedy"] == ["0.200", "±0.100", "0.400", "±0.100", "0.600", "±0.100"]
    assert rows["guided@4"] == ["0.500", "±0.000"]
    assert rows["sums"] == "3 0.600 ±0.000 0.000 ±0.000 0.600 ±0.500 0.600 ±0.500".split()
    assert "3 items of the val split" in report.table(results) and "RL 60" in report.table(results)
    for text in ("{", "[]", '{"stages": {}}'):     # of no run, or of another program
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match="results.json is not the result"):
            report.read_results(str(tmp_path))
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.read_results(str(tmp_path)) == results
