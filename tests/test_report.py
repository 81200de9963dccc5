"""Measures, intervals and tables, against plain loops and hand counts."""

import json
import random

import numpy as np
import pytest

import report
from config import Config
from data.judgement import Judgement, correct, vote
from data.world import Item

PERFECT = {"correct": (True, "x"), "polite": (False, "none"), "brief": (True, "none")}


def made(scores, sample=0, principles=None, checks=None, totals=None, meta=None, n=2, logp=0.0):
    """A judgement by hand. checks, totals: per response."""
    n = len(scores or [0] * n)
    checks, totals = checks or [[]] * n, totals or [1] * n
    return Judgement("i", sample, list(range(n)), 0, (1,), [2] * 50, logp, "ok" if scores else "no end",
                     principles or [["overall", 10]],
                     [{"quote": "", "text": "", "checks": c, "total": t} for c, t in zip(checks, totals)],
                     scores, meta)


def random_judgements(rng, items, K):
    """K judgements an item; one in six does not parse, and has no Meta score then."""
    def one(item, k):
        if rng.random() < 1 / 6:
            return made(None, k, n=item.n)
        scores = [rng.randint(1, 10) for _ in range(item.n)]
        return made(scores, k, meta=rng.gauss(0, 1), logp=-8 * rng.random())
    return [[one(item, k) for k in range(K)] for item in items]


def items_of(rng, count):
    return [Item(f"i{i}", "sums", "q", list("abcd")[:n], rng.sample(range(1, 11), n), truth=[PERFECT] * n)
            for i, n in enumerate(rng.choices([2, 3, 4], k=count))]


def test_faithfulness_by_hand():
    """Guards against checks that are compared with another response, impressions that count as checks, and
    sub-totals that are never added up."""
    item = Item("i", "sums", "what is 1+1?", ["a", "b"], [9, 1], cue="none",
                truth=[PERFECT, {**PERFECT, "correct": (False, "x")}])
    good, bad = ([["correct", "x", met], ["brief", "none", True]] for met in (True, False))
    weights = [["correct", 6], ["brief", 4]]
    judge = lambda scores, checks, totals: report.faithfulness(
        made(scores, principles=weights, checks=checks, totals=totals), item)
    assert judge([10, 4], [good, bad], [10, 4]) == (1.0, 1.0, 1.0)
    assert judge([4, 9], [bad, good], [4, 9]) == (1.0, 0.5, 0.5)
    assert judge([9, 4], [good, bad], [10, 4]) == (1.0, 1.0, 0.5)   # a score that is not its sub-total
    assert judge([10, 4], [good, bad[:1]], [10, 4]) == (1.0, 0.75, 0.5)      # one check is missing
    glance = made([8, 2], principles=[["overall", 10]], totals=[8, 2])
    assert report.faithfulness(glance, item) == (0.0, 0.0, 0.0)
    groups = [[made(None), glance], [made(None)]]
    assert report.mean_faithfulness(groups, [item] * 2).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("scores, gold, chance", [
    ([7, 3], [9, 1], 1), ([3, 7], [9, 1], 0), ([5, 5], [9, 1], 1 / 2), ([5, 5, 5, 1], [9, 1, 2, 3], 1 / 3),
    ([4, 5, 5], [9, 1, 2], 0), (None, [9, 1, 2, 3], 1 / 4)])
def test_coin_flip(scores, gold, chance):
    """Guards against a tie that is right by being first, and a failure that counts as a tie."""
    assert report.coin_flip(scores, gold) == chance


def test_columns_against_plain_loops():
    """Guards against votes that take the wrong samples, that keep the worst, or that let failures vote;
    against a control that keeps more or fewer."""
    rng = random.Random(0)
    items, K = items_of(rng, 60), 8
    greedy, samples = random_judgements(rng, items, 1), random_judgements(rng, items, K)
    parts = {"greedy": (items, greedy), "votes": (items, samples)}

    def winners(judgements, n):                    # of a vote of some judgements
        total = [sum(j.scores[r] for j in judgements if j.scores) for r in range(n)]
        return [r for r in range(n) if total[r] == max(total)]

    def most_picked(judgements, n, weight):        # the largest score of each sample alone
        picks, total = [0.0] * n, [sum(j.scores[r] for j in judgements if j.scores) for r in range(n)]
        for j in judgements:
            tops = [r for r in range(n) if j.scores and j.scores[r] == max(j.scores)]
            for r in tops:
                picks[r] += weight(j) / len(tops)
        ahead = [r for r in range(n) if picks[r] > max(picks) - 1e-9]
        return [r for r in ahead if total[r] == max(total[a] for a in ahead)]

    def guided(judgements, kept):                  # those that vote
        return sorted([j for j in judgements if j.scores], key=lambda j: -j.meta)[:kept]

    columns = report.item_columns(parts, report.answers(Config(k=K), parts, True))
    assert all(len(values) == 60 and 0 <= values.min() <= values.max() <= 1 for values in columns.values())
    for i, (item, judgements) in enumerate(zip(items, samples)):
        right = [correct(j.scores, item.gold) for j in judgements]
        assert columns["greedy"][i] == correct(greedy[i][0].scores, item.gold)
        assert columns["one sample"][i] == pytest.approx(sum(right) / K)
        assert columns["parses"][i] == pytest.approx(sum(j.scores is not None for j in judgements) / K)
        lucky = [report.coin_flip(j.scores, item.gold) for j in judgements]
        assert columns["coin flip, one sample"][i] == pytest.approx(sum(lucky) / K)
        for k in (2, 4, 8):
            first = judgements[:k]
            voters = {"sum": first, "guided": guided(first, k // 2)}
            for name, who in voters.items():
                assert columns[f"{name}@{k}"][i] == (winners(who, item.n) == [item.best])
            for name, weight in (("plurality", lambda j: 1), ("weighted", lambda j: np.exp(j.logp * 0.4))):
                assert columns[f"{name}@{k}"][i] == (most_picked(first, item.n, weight) == [item.best])
            top = winners(first, item.n)
            assert columns[f"coin flip, sum@{k}"][i] == pytest.approx((item.best in top) / len(top))
            assert columns[f"pass@{k}"][i] == any(right[:k])
            parsed = [j.scores for j in first if j.scores]
            if len(parsed) <= k // 2:              # the control has nothing to draw then: all that parse vote
                assert columns[f"random@{k}"][i] == correct(vote(parsed), item.gold)
    control = columns["random@8"]
    assert 0 < np.mean(control != np.round(control)) < 1                     # draws differ


def test_base_has_no_guided_votes():
    """Guards against guided votes of judgements that no Meta RM has read."""
    rng = random.Random(1)
    items = items_of(rng, 5)
    samples = random_judgements(rng, items, 4)
    for j in sum(samples, []):
        j.meta = None
    ways = report.answers(Config(k=4), {"greedy": (items, random_judgements(rng, items, 1)),
                                        "votes": (items, samples)}, guided=False)
    plain = {f"{way}@{k}" for way in ("sum", "plurality", "weighted") for k in (2, 4)}
    assert set(ways) == {"greedy", "one sample", *plain}


def test_interval_is_that_of_a_mean():
    """Guards against an interval that is too narrow or too wide: half of it is 1.96 standard errors."""
    values = (np.random.default_rng(0).random(400) < 0.6).astype(float)
    mean, low, high = report.with_interval(values)
    assert mean == pytest.approx(values.mean(), abs=1e-4) and [low, high] == report.interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.12)
    assert (high + low) / 2 == pytest.approx(mean, abs=0.005)


def test_table_in_words():
    """Guards against a cell under the wrong stage, a row that is lost because base has no guided votes, an
    interval in place of its half, subsets of another stage."""
    stage = lambda mean: {"greedy": [mean, mean - 0.1, mean + 0.1], "sum@4": [mean, mean, mean],
                          "coin flip, sum@4": [0.5, 0.5, 0.5], "ties": 0.25,
                          "subsets": {"sums": {"items": 3, "greedy": [mean, mean, mean],
                                               "one sample": [0.0, 0.0, 0.0], "sum@4": [mean, 0.0, 1.0],
                                               "weighted@4": [mean, 0.0, 1.0]}}}
    with_guide = lambda mean: {"greedy": None, "guided@4": [mean, mean, mean], **stage(mean)}
    text = report.table({
        "stages": {"base": stage(0.2), "rft": with_guide(0.4), "rl": with_guide(0.6)},
        "meta": {"rl": {"AUC, all pairs": 0.75, "AUC, pairs of one item": None}},
        "items": 3, "config": {"eval_split": "val"},
        "seconds": {"pretrain": 60.0, "rft": 30.0, "rl": 30.0}, "machine": "m"})
    rows = {line.split("  ")[0]: line.split()[-9:] for line in text.splitlines()}
    assert rows["greedy"][-6:] == ["0.200", "±0.100", "0.400", "±0.100", "0.600", "±0.100"]
    assert rows["guided@4"] == ["guided@4", "0.400", "±0.000", "0.600", "±0.000"]
    assert rows["sums"] == "3 0.600 ±0.000 0.000 ±0.000 0.600 ±0.500 0.600 ±0.500".split()
    assert "Meta RM of rl: AUC 0.750 over all pairs, none over pairs" in text
    minutes = next(line for line in text.splitlines() if line.startswith("minutes"))
    assert minutes.split()[-3:] == ["1.0", "1.5", "2.0"]
    assert "3 items of the val split" in text


def test_unfinished_run(tmp_path, capsys):
    """Guards against a report that needs the end of a run, or that trips over a line half written."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "progress.json").write_text('{"base": 12.3}')
    shown = "reward kl entropy length silent_groups tie parse".split()
    row = dict.fromkeys([*shown, *report.FAITHFUL], 0.5)
    lines = "".join(json.dumps({"step": i, **row}) + "\n" for i in range(3))
    (tmp_path / "metrics-rl.jsonl").write_text(lines + '{"step": 3, ')
    report.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "base 12 s" in out and "3 lines" in out and '"step": 2' in out and (tmp_path / "rl.png").exists()
