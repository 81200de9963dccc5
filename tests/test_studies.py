"""The studies in experiments/: their rules against the core's, and that each of them runs."""

import csv
import json
import os
import re

import numpy as np
import pytest

from data.judgement import Judgement, correct, vote_plurality, vote_sum
from data.world import make_items
from experiments import study, votes
from metarm import vote_guided


@pytest.fixture(scope="module")
def sampled():
    """Items, made-up judgements of each (some do not parse), and the same as arrays."""
    rng = np.random.default_rng(0)
    items = make_items(0, "test", 60, least=2)
    groups = [[Judgement(item.id, i, [], 0, [], [1] * int(rng.integers(1, 9)), -float(rng.random()))
               for i in range(6)] for item in items]
    for group, item in zip(groups, items):
        for j in group:
            if rng.random() < 0.8:
                j.scores, j.meta = rng.integers(1, 5, item.n).tolist(), float(rng.normal())
    return items, groups, [votes.Samples(group, item) for group, item in zip(groups, items)]


def test_rules_are_those_of_the_core(sampled):
    """Guards against a study of other rules than those that are used: sum, plurality and filter."""
    items, groups, samples = sampled
    for k in (1, 2, 3, 6):
        for rule, vote in (("sum", vote_sum), ("plurality", vote_plurality)):
            found = votes.accuracy(samples, rule, k, {})
            assert found.tolist() == [correct(vote([j.scores for j in group[:k]]), item.gold)
                                      for group, item in zip(groups, items)]
        found = votes.accuracy(samples, "filter", k, {})
        assert found.tolist() == [correct(vote_guided(group[:k]), item.gold) for group, item in zip(groups, items)]


def test_other_rules():
    """Guards against a Borda count or a standard score that mixes samples, and weights that do nothing."""
    assert votes.borda(np.array([[3.0, 1, 2], [5, 5, 1]])).tolist() == [[2, 0, 1], [1.5, 1.5, 0]]
    z = votes.standardised(np.array([[1.0, 3], [7, 7]]))
    assert z.tolist() == [[-1, 1], [0, 0]]
    assert votes.weight_of("probe", 2, np.array([0.0])) == 0.5
    assert votes.weight_of("length", 2, np.log([2.0, 4])).tolist() == pytest.approx([0.25, 1])


def test_stopping_early(sampled):
    """Guards against a lead that is counted in samples, and a vote of samples that were not taken."""
    _, _, samples = sampled
    right, taken = votes.stop_early(samples, 100)
    assert (taken == 6).all() and right.tolist() == votes.accuracy(samples, "plurality", 6, {}).tolist()
    _, few = votes.stop_early(samples, 1)
    assert (few < 6).any()
    for s, k in zip(samples, few.astype(int)):
        two = np.sort(s.picks[:k].sum(axis=0))[-2:]
        assert k == 6 or two[1] - two[0] >= 1 - 1e-9


def test_differences_have_both_intervals():
    """Guards against an interval over items alone, which is too narrow where items share a query."""
    better, worse = np.array([1.0, 1, 0, 0] * 50), np.zeros(200)
    found = study.difference([better], [worse], [["a", "a", "b", "b"] * 50])
    assert found[0] == 0.5 and found[1] > 0.4 and (found[3], found[4]) == (0, 1)
    assert study.in_words(found) == "+0.500 (+0.000 to +1.000)"


@pytest.mark.slow
@pytest.mark.parametrize("module", [votes], ids=lambda m: m.__name__)
def test_quick(module, tmp_path, monkeypatch, capsys):
    """Guards against a study that does not run, whose second run samples anew, or that differs from its first."""
    monkeypatch.chdir(tmp_path)
    module.main(["--quick"])
    first = capsys.readouterr().out
    name = module.__name__.split(".")[-1]
    folder = tmp_path / "runs" / "quick-seed1" / "studies"
    assert {f"{name}.json", f"{name}.csv", f"{name}.png"} <= {path.name for path in folder.iterdir()}
    json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(study, "judge", None)
    module.main(["--quick"])
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("name, title", [("votes", "## Which vote is best, and how many samples does it take?")])
def test_findings_are_those_of_the_numbers(name, title):
    """Guards against findings that no run has shown, or that an older one has. Each number must be one of the
    study's. (Whether it is the right one of them, a reader has to see.)"""
    folder = os.path.dirname(study.__file__)
    with open(os.path.join(folder, "RESULTS.md"), encoding="utf-8") as f:
        chapter = f.read().split(title + "\n")[1].split("\n## ")[0].split("\n# ")[0]
    with open(os.path.join(study.OUT, name + ".json"), encoding="utf-8") as f:
        result = json.load(f)
    with open(os.path.join(study.OUT, name + ".csv"), encoding="utf-8") as f:
        assert all("| " + " | ".join(row) + " |" in chapter for row in csv.reader(f))
    lists = []

    def collect(x):
        if isinstance(x, dict):
            for value in x.values():
                collect(value)
        elif isinstance(x, list):
            lists.append(x)

    collect(result)
    short = lambda x: re.sub(r"\b0\.", ".", x)
    differences = {short(study.in_words(x)) for x in lists if len(x) == 5}
    numbers = {short(f"{v:.3f}") for x in lists for v in {2: x[:1], 3: x, 5: []}[len(x)]}    # no half-widths
    findings = " ".join(chapter.split("\n- ", 1)[1].split())
    said = re.findall(r"[+-]\.\d+ \([^()]* to [^()]*\)", findings)
    assert len(said) >= 3 and set(said) <= differences
    rest = re.sub(r"[+-]\.\d+( \([^()]* to [^()]*\))?", "", findings)
    assert set(re.findall(r"(?<![\d.])\.\d{3}\b", rest)) <= numbers, set(re.findall(r"\.\d{3}\b", rest)) - numbers
