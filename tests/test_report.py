"""Measures, intervals and tables, against plain loops and hand counts."""

import json
import random

import numpy as np
import pytest

import report
from data import UserError
from data.judgement import Judgement, correct, vote_plurality
from data.world import Item

PERFECT = {"correct": (True, "x"), "polite": (False, "none"), "concise": (True, "none")}


def made(scores, principles=(("overall", 10),), checks=None, totals=None, meta=None):
    """A judgement by hand; scores: None if it does not parse. checks, totals: of each response."""
    n = len(scores or [])
    critiques = [{"checks": c, "total": t} for c, t in zip(checks or [[]] * n, totals or [1] * n)]
    return Judgement("i", 0, list(range(n)), 0, [1], [2] * 50, 0.0, "ok", principles, critiques, scores, meta)


def random_judgements(rng, items, K):
    """K judgements of each item. One in six does not parse, and has no logit."""
    parsed = lambda item: made([rng.randint(1, 10) for _ in range(item.n)], meta=rng.gauss(0, 1))
    return [[parsed(item) if rng.random() > 1 / 6 else made(None) for _ in range(K)] for item in items]


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
    good.append(["kind", "x", True])
    assert judge([10, 4], [good, bad], [10, 4]) == (1.0, 1.0, 0.5)           # a check without a principle
    assert report.faithfulness(made([8, 2], totals=[8, 2]), item) == (0.0, 0.0, 0.0)


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

    def wins(judgements, item):                    # a sum: the best response alone has the most
        total = [sum(j.scores[r] for j in judgements if j.scores) for r in range(item.n)]
        return all(total[r] < total[item.best] for r in range(item.n) if r != item.best)
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
            assert columns[f"sum@{k}"][i] == wins(first, item)
            assert columns[f"plurality@{k}"][i] == correct(vote_plurality([j.scores for j in first]), item.gold)
            assert columns[f"guided@{k}"][i] == wins(guided(first, k // 2), item)
            assert columns[f"pass@{k}"][i] == any(right[:k])
            if len([j for j in first if j.scores]) <= k // 2:                # then there is nothing to draw
                assert columns[f"random@{k}"][i] == columns[f"sum@{k}"][i]
    assert 0 < np.mean(columns["random@8"] % 1 > 0) < 1                      # draws differ


def test_measure_by_domain():
    """Guards against a domain that counts other items, sets that are exchanged, an interval of a wrong width."""
    rng = random.Random(1)
    items, others = random_items(rng, 30), random_items(rng, 11)
    sets = {"greedy": (items, random_judgements(rng, items, 1)),
            "votes": (items, random_judgements(rng, items, 4)),
            "ood-greedy": (others, [[made(item.gold)] for item in others]),
            "ood": (others, [[made(item.gold[::-1])] * 2 for item in others]),
            "single": ([Item("s", "sums", "q", ["a"], [7])] * 4, [[made([score])] for score in (7, 7, 7, 6)])}
    found, columns = report.measure(sets, 0)
    assert found["one response"] == [0.75, 0.3256, 1.1744]                   # 1.96 * sqrt(0.75 * 0.25 / 4)
    assert found["out of distribution, greedy"][0] == 1
    assert found["out of distribution, sum@2"][0] == found["out of distribution, plurality@2"][0] < 1
    assert found["tokens"] == 50.0 and set(found["by domain"]) == {"sums", "facts"}
    for domain, of in found["by domain"].items():
        mine = [value for value, item in zip(columns["greedy"], items) if item.domain == domain]
        assert of["items"] == len(mine) and of["greedy"][0] == pytest.approx(np.mean(mine), abs=1e-4)
    within = [report.auc([correct(j.scores, item.gold) for j in s if j.scores], [j.meta for j in s if j.scores])
              for item, s in zip(*sets["votes"])]
    expected = np.mean([value for value in within if value is not None])
    assert found["Meta RM's AUC"] == pytest.approx(expected, abs=1e-4)


def test_describe():
    """Guards against shares of the wrong judgements: ties of single responses, checks of what does not parse."""
    item = Item("i", "sums", "q", ["a", "b"], [9, 1], truth=[PERFECT] * 2)
    single = Item("s", "sums", "q", ["a"], [7], truth=[PERFECT])
    checked = made([8, 2], principles=[["correct", 10]], checks=[[["correct", "x", True]], []])
    stats = report.describe([[checked, made([5, 5])], [made([7]), made(None)]], [item, single])
    assert stats == {"correct": 0.5, "parses": 0.75, "ties": 0.5, "length": 50.0, "checks": pytest.approx(0.5 / 3)}


def test_table(tmp_path):
    """Guards against a cell under another policy, a row that is lost because base has no guided votes, and an
    interval in place of its half."""
    sums = {"items": 3, "greedy": [0.6, 0.5, 0.7], "one sample": [0.1] * 3, "sum@4": [0.5, 0.0, 1.0],
            "plurality@4": [0.2, 0.0, 0.4]}
    stage = lambda mean: {"greedy": [mean, mean - 0.1, mean + 0.1], "plurality@4": [mean] * 3,
                          "tokens": 50.5, "by domain": {"sums": sums}}
    results = {"stages": {"base": stage(0.2), "rft": stage(0.4), "rl": {**stage(0.6), "guided@4": [0.5] * 3}},
               "items": 3, "config": {"eval_split": "val"}, "seconds": {"RL": 60.0}}
    rows = {line.split("  ")[0]: line.split()[1:] for line in report.table(results).splitlines()}
    assert rows["greedy"] == ["0.200", "±0.100", "0.400", "±0.100", "0.600", "±0.100"]
    assert rows["guided@4"] == ["0.500", "±0.000"]
    assert rows["sums"] == "3 0.600 ±0.100 0.100 ±0.000 0.500 ±0.500 0.200 ±0.200".split()
    assert "3 items of the val split" in report.table(results) and "RL 60" in report.table(results)
    for text in ("{", "[]", '{"stages": {}}'):     # of no run, or of another program
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match="results.json is not the result"):
            report.read_results(str(tmp_path))
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.read_results(str(tmp_path)) == results
