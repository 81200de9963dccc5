"""The studies in experiments/: that they run, and the rules that are theirs alone."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.annotators import annotate
from data.judgement import Judgement, correct, judgement_parts, read_judgement
from data.tokenizer import CRITIQUE, END, QUERY, RESPONSE, SCORES
from data.world import make_item, make_items
from experiments import ablations, reading, scaling, study, trl_reward, truth, votes
from experiments import all as all_studies
from experiments.baselines import (
    alone,
    drop_principles,
    name_best,
    pairs_of,
    read_critique,
    read_index,
    round_robin,
)
from sample import SHIPPED, judge, load_judge

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the studies run: they share its base run."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baselines", "ablations", "scaling", "truth", "votes"])
def test_quick_study(name, folder):
    """Guards against a study that no longer runs, or whose results are not kept."""
    results, out = quick(name, folder)
    assert results["seeds"] == [5] and results["text"] in out
    assert (folder / f"runs/{name}-quick/{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_study_goes_on(folder):
    """Guards against a study that does its work again, or finds something else, when it is repeated."""
    first, _ = quick("scaling", folder)
    again, out = quick("scaling", folder)
    assert first.pop("machine") and again.pop("machine")                     # its rate is measured anew
    assert again == first and "it/s" not in out    # no progress bar: nothing was trained or sampled


def quick(name, folder):
    """Run a study with --quick -> its results.json, all that it printed."""
    command = [sys.executable, "-m", f"experiments.{name}", "--quick", "--seeds", "5"]
    env = {**os.environ, "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=env, text=True, timeout=400, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"runs/{name}-quick/results.json").read_text()), done.stdout + done.stderr


@pytest.mark.slow
def test_control_reads_one_order(folder):
    """Guards against a control of the position bias whose samples read shuffled responses."""
    quick("truth", folder)
    orders = {path.parent.name: [json.loads(line)["order"] for line in path.read_text().splitlines()]
              for path in folder.glob("runs/arms/*/judgements-test-4.jsonl")}
    control = {name: found for name, found in orders.items() if name.startswith("fixed-order")}
    assert len(control) >= 6 and all(order == sorted(order) for found in control.values() for order in found)
    biased = [found for name, found in orders.items() if name.startswith("position-bias")]
    assert len(biased) == 3 and all(any(order != sorted(order) for order in found) for found in biased)


def test_part_of_the_seeds_leaves_the_results_alone(monkeypatch):
    """Guards against a RESULTS.md that speaks of three seeds and shows one."""
    written = []
    monkeypatch.setattr(all_studies.study, "main", lambda module, argv: None)
    monkeypatch.setattr(all_studies, "write_results", written.extend)
    all_studies.main(["--seeds", "1"])
    all_studies.main(["--quick"])
    assert not written
    all_studies.main(["truth"])
    assert written == ["truth"]
    all_studies.main([])
    assert written == ["truth", *all_studies.STUDIES]


def test_equal_compute():
    """Guards against votes that cost more than the judgement they are compared with, and one seed of a size
    that is compared with all seeds of a smaller one."""
    items = make_items(0, "test", 20, least=2)
    gold = [item.gold for item in items]
    answers = lambda **mflops: {"test": {name.replace("_", "@"): {"scores": gold, "flops": m * 1e6}
                                         for name, m in mflops.items()}}
    small = answers(greedy=1, weighted_2=3, weighted_3=4, weighted_4=6, guided_2=6)
    dear = answers(greedy=1, weighted_2=30, weighted_4=60, guided_2=60)
    sizes = {"S": [(small, None, answers(greedy=0.1), 1), (dear, None, answers(greedy=0.1), 1)],
             "M": [(answers(greedy=5), None, answers(greedy=0.5), 4)]}
    _, *rows = scaling.equal_compute_table([SimpleNamespace(parts={"test": items})] * 2, sizes)
    assert [row[:5] for row in rows] == [["M", "1", "5", "S, weighted@3", "4"]]    # @4 costs 6
    shown = scaling.side_by_side([SimpleNamespace(seed=1)] * 2, sizes)
    assert {name: len(judges) for name, judges in shown.items()} == {
        "S": 2, "S, seed 1 alone": 1, "M, seed 1 alone": 1}
    assert scaling.side_by_side([None] * 2, {"S": sizes["S"]}) == {"S": sizes["S"]}


def test_auc_of_single_responses():
    """Guards against a judge that gains by not parsing."""
    base = SimpleNamespace(parts={"single": [SimpleNamespace(gold=[g]) for g in (9, 8, 2)]})
    auc = lambda *scores: study.single_auc(base, {"single": {"greedy": {"scores": list(scores)}}}, "greedy")
    assert auc([7], [6], [5]) == auc([7], [6], None) == 1 and auc([7], None, [5]) == 0.5


def judgement(tok, item, seed):
    """A simulated expert's judgement of an item, in its own order."""
    ids = tok.encode(judgement_parts(*annotate(random.Random(seed), item, "expert")))
    order = list(range(item.n))
    status, _, _, scores = read_judgement(tok, ids, order)
    assert status == "ok"
    return Judgement(item.id, 0, order, 0, (QUERY, SCORES), ids, 0.0, scores=scores)


def test_other_forms_of_judgement(tok):
    """Guards against a grammar that reads another response's index, or takes what has no index."""
    j = next(j for i in range(99) if (j := judgement(tok, make_item(0, "train", i, least=3), i))
             and j.scores.count(max(j.scores)) == 1)
    j.order = [2, 0, 1]                            # slot 0 held response 2
    slots = j.scores
    j.scores = [slots[j.order.index(i)] for i in range(3)]
    named = name_best(tok, j).ids
    status, _, _, scores = read_index(tok, named, j.order)
    assert status == "ok" and sorted(scores) == [1, 1, 2]
    assert scores.index(2) == j.scores.index(max(j.scores)) == j.order[slots.index(max(slots))]
    for bad in (named[:-1], named[:-2] + [END], named[:-2] + tok.encode(["4"]) + [END], [END], []):
        assert read_index(tok, bad, j.order)[3] is None
    without = drop_principles(j)
    assert list(without.prompt) + without.ids == [QUERY] + [CRITIQUE] + j.ids[j.ids.index(CRITIQUE) + 1:]
    assert read_critique(tok, without.ids, j.order)[3] == j.scores
    assert read_critique(tok, without.ids, [0, 1])[3] is None


def test_round_robin():
    """Guards against a tournament in which the loser of a pair gets the point, or a tie goes to the first."""
    assert round_robin(3, {(0, 1): -2.0, (0, 2): 1.0, (1, 2): 3.0}) == [1, 2, 0]
    assert round_robin(2, {(0, 1): 0.0}) == round_robin(2, {(0, 1): None}) == [0.5, 0.5]
    item = make_item(0, "train", 0, least=4)
    pairs = pairs_of(item)
    assert len(pairs) == 6 and pairs[1, 3].gold == [item.gold[1], item.gold[3]]
    by_gold = round_robin(4, {pair: duel.gold[0] - duel.gold[1] for pair, duel in pairs.items()})
    assert by_gold.index(max(by_gold)) == item.best
    assert [one.responses for one in alone(item)] == [[text] for text in item.responses]


def test_overall_is_the_mean_over_subsets():
    """Guards against an overall accuracy in which frequent subsets count more."""
    items = make_items(0, "test", 60, least=2)
    base = SimpleNamespace(parts={"test": items})
    rng = random.Random(0)
    answers = {"test": {"greedy": {"scores": [rng.choice([item.gold, item.gold[::-1]]) for item in items]}}}
    by_subset = {}
    for item, scores in zip(items, answers["test"]["greedy"]["scores"]):
        by_subset.setdefault(item.subset, []).append(correct(scores, item.gold))
    expected = np.mean([np.mean(values) for values in by_subset.values()])
    assert study.mean(study.overall([base], [answers], "greedy")) == pytest.approx(expected)


def test_difference_says_what_is_in_doubt():
    """Guards against a difference shown as if it were sure, when zero is inside its interval, or when it is
    the mean of seeds of which one says the opposite."""
    one, zero = np.ones(50), np.zeros(50)
    half = np.arange(50) % 2.0
    told = study.difference([one, one], [zero, half])                # standard error: 0.5 / sqrt(50) / 2
    found = [float(x) for x in re.findall(r"[+-][\d.]+", told)]
    assert found == pytest.approx([0.75, 0.681, 0.819], abs=0.015)
    assert "noise" not in told and "disagree" not in told
    assert study.difference([half], [1 - half]).endswith(", noise)")
    assert study.difference([one, one, zero], [zero, zero, half]).endswith(", seeds disagree)")


def test_both_orders():
    """Guards against a flip that is counted where both orders agree, or missed where the slot decides."""
    item = SimpleNamespace(n=2, best=1)
    base = SimpleNamespace(parts={"test": [item] * 5})
    forward, swapped = [[1, 9], [9, 1], [1, 9], [5, 5], None], [[9, 1], [9, 1], [1, 9], [9, 1], [9, 1]]
    answers = {"test": {"greedy": {"scores": forward}}, "swapped": {"greedy": {"scores": swapped}}}
    right, flipped = study.both_orders(base, answers)
    assert right.tolist() == [1, 0, 0, 1, 1] and flipped.tolist() == [0, 1, 1]


def test_biased_annotators():
    """Guards against a dose for the wrong response, or scores that differ from the totals."""
    changed = 0
    for kind in ("position", "length"):
        for i in range(60):
            item, skill = make_item(1, "train", i), ("sloppy", "average", "expert")[i % 3]
            weights, critiques, scores = truth.biased(kind, 3)(random.Random(i), item, skill)
            same, before, expected = annotate(random.Random(i), item, skill)
            slot = 0 if kind == "position" else max(range(item.n), key=lambda s: len(item.responses[s]))
            changed += expected[slot] < 10
            expected[slot] = min(10, expected[slot] + 3)
            assert weights == same and scores == expected == [total for _, _, total in critiques]
            assert [c[:2] for c in critiques] == [c[:2] for c in before]
    assert changed > 60


def test_bias_of_a_judge_that_knows_the_place_only():
    """Guards against a bias that is measured in the item's order where the judge saw another one."""
    items = make_items(0, "test", 200, least=2)
    orders = [random.Random(i).sample(range(item.n), item.n) for i, item in enumerate(items)]
    first = [[int(r == order[0]) for r in range(item.n)] for item, order in zip(items, orders)]
    assert truth.bias_of("position", items, first, orders).mean() > 0.5
    assert abs(truth.bias_of("position", items, first).mean()) < 0.12
    gold = [item.gold for item in items]
    assert not truth.bias_of("length", items, gold).any()
    ties = truth.bias_of("position", items, [[5] * item.n for item in items])
    assert np.isnan(ties).all() and truth.mean_known([ties, np.ones(200)]).tolist() == [1.0] * 200
    assert np.isnan(truth.mean_known([ties])).all()          # no pick is no preference: it is left out


def test_biases_are_paired():
    """Guards against a difference of biases over different items: some have no pick, and so no bias."""
    one, other = np.array([1.0, np.nan, 0.0, 1.0]), np.array([0.0, 1.0, np.nan, 1.0])
    assert truth.change([one], [other]).startswith("+0.500")
    assert [values.tolist() for values in truth.known([one, other])] == [[1, 0, 1], [0, 1, 1]]


def test_impressions_are_no_checks():
    """Guards against an AUC among judgements that check everything which counts those that do not."""
    check, principles = ["correct", "x", True], [["correct", 10]]
    of = lambda *checks: judged([1, 9], [{"checks": c} for c in checks], principles)
    assert truth.all_checked(of([check], [check]))
    assert not truth.all_checked(of([check], [])) and not truth.all_checked(of([], []))


def judged(scores, critiques=None, principles=None):
    return Judgement("i", 0, list(range(len(scores))), 0, (1,), [2], 0.0, scores=scores, critiques=critiques,
                     principles=principles or [["correct", 10]])


def test_rules_by_hand():
    """Guards against a standardised sum that still counts sizes, and ranks that run the wrong way."""
    far, near = judged([1, 10]), judged([6, 5])
    assert votes.PLAIN["sum (Eq 14)"]([far, near, near]) == [13, 20]
    assert votes.PLAIN["sum, standardised"]([far, near, near]) == pytest.approx([1, -1])
    assert votes.PLAIN["sum, standardised"]([judged([5, 5])]) == [0, 0]
    assert votes.PLAIN["Borda"]([judged([9, 5, 5, 1])]) == [3, 1.5, 1.5, 0]


def test_repairs():
    """Guards against verdicts that stay false, weights that stay those of the judge, and impressions that are
    repaired."""
    item = make_item(1, "train", 3, least=2)
    weights, critiques, scores = annotate(random.Random(0), item, "expert")
    checks = [[[name, "x", not truth[name][0]] for name in weights] for truth in item.truth]      # all false
    liar = judged(scores, [{"checks": c} for c in checks], [list(pair) for pair in weights.items()])
    mended = votes.repaired(liar, item, verdicts=True, weights=True)
    assert mended.scores == item.gold != votes.repaired(liar, item, verdicts=False).scores
    impression = judged(scores, [{"checks": []}] * item.n, [["overall", 10]])
    assert votes.repaired(impression, item, verdicts=True).scores == scores


def test_expected_scores_by_hand():
    """Guards against chances that go to another response or check: they stand in the order of the prompt."""
    checks = [[["correct", "x", True], ["brief", None, False]], [["correct", "y", False]]]
    j = Judgement("i", 0, [1, 0], 0, (1,), [2], 0.0, scores=[7, 1], principles=[["correct", 7], ["brief", 3]],
                  critiques=[{"checks": c} for c in checks])
    assert reading.with_chances(j, [0.1, 0.9, 0.5]).scores == pytest.approx([7 * 0.9 + 3 * 0.5, 7 * 0.1])
    for chances in ([0.1, 0.9], []):               # not those of its verdicts, or an impression
        assert reading.with_chances(j, chances).scores == [7, 1]


def test_expected_scores_are_the_policys():
    """Guards against chances that are read at another token, or of another judgement, when many are read at
    once, padded and sorted by length: here the policy reads one prefix after the other."""
    policy, tok, _ = load_judge(SHIPPED, "rl", "cpu")
    groups = judge(policy, tok, make_items(7, "val", 6), 2, 0, "test", 1.0)
    groups[0][0] = replace(groups[0][0], scores=None)                        # one that does not parse
    found = reading.expected(policy, tok, groups)
    assert found[0][0] is groups[0][0] and [len(g) for g in found] == [2] * 6
    good, bad = tok.encode([" good", " bad"])
    compared = 0
    for j, new in zip(sum(groups, [])[1:], sum(found, [])[1:]):
        if j.scores is None or not any(c["checks"] for c in j.critiques):
            assert new is j
            continue
        weights, scores, slot = dict(map(tuple, j.principles)), [0.0] * len(j.order), -1
        names = iter([name for i in j.order for name, _, _ in j.critiques[i]["checks"]])
        for t in range(len(j.prompt), len(j.tokens)):
            slot += j.tokens[t] in RESPONSE
            if j.tokens[t] in (good, bad):
                with torch.no_grad():
                    p = policy.logits(policy(torch.tensor([j.tokens[:t]]))[0, -1])[[good, bad]].softmax(0)
                scores[j.order[slot]] += weights.get(next(names), 0) * float(p[0])
        assert new.scores == pytest.approx(scores, abs=1e-3)
        compared += 1
    assert compared >= 3


def test_correlation_of_samples():
    """Guards against a correlation that is 0 where all samples of an item agree, or 1 where they do not."""
    items = [SimpleNamespace(gold=[1, 2])] * 400
    right, wrong, rng = judged([1, 2]), judged([2, 1]), random.Random(0)
    voters = lambda groups: SimpleNamespace(test=groups, items={"test": items})
    alike = [[right] * 4 if i % 2 else [wrong] * 4 for i in range(400)]
    assert votes.correlation(voters(alike)) == pytest.approx(1)
    mixed = [[rng.choice([right, wrong]) for _ in range(4)] for _ in items]
    assert abs(votes.correlation(voters(mixed))) < 0.1


def test_stopping_early():
    """Guards against a stop at a tie or before the lead is reached, and against drawing more than allowed."""
    one, two = judged([9, 1]), judged([1, 9])
    assert votes.stop_early([one, two, one, one, one], 2, 5)[0] == 4
    assert votes.stop_early([one, two, one, two], 2, 4)[0] == 4
    assert votes.stop_early([one, one], 1, 2)[0] == 1 and votes.stop_early([two, two, one], 2, 3)[0] == 2


def test_hidden_states_keep_their_place(tiny):
    """Guards against a probe that reads another judgement's state: rows are sorted by length, and padded."""
    model, rng = tiny().eval(), random.Random(0)
    js = [SimpleNamespace(tokens=[rng.randrange(40) for _ in range(n)]) for n in (30, 5, 17, 5, 60, 2)]
    one_by_one = torch.cat([votes.hidden_states(model, [j]) for j in js])
    assert torch.allclose(votes.hidden_states(model, js), one_by_one, atol=1e-5)
    assert len({round(float(x), 4) for x in one_by_one[:, 0]}) > 3


def test_the_random_control_is_matched(tok, monkeypatch):
    """Guards against a control of RFT's rules that differs in its share of hinted samples, too."""
    points = make_items(3, "train", 30, least=2)
    judged = lambda p, sample, right: Judgement(p.id, sample, [], 0, (), [sample], 0.0,
                                                scores=p.gold if right else p.gold[::-1])
    plain = [[judged(p, 0, i % 3 == 0), judged(p, 0, False)] for i, p in enumerate(points)]
    hinted = [[judged(p, 1, i % 2 == 0)] for i, p in enumerate(points)]
    base = SimpleNamespace(seed=3, points=points, samples=plain, hinted=hinted, cfg=None, tok=tok)
    monkeypatch.setattr(ablations, "rft_examples", lambda cfg, tok, kept: [j.ids[0] for j in kept])
    kinds = ablations.at_random(base)
    kept = [j.ids[0] for j in ablations.all_kept(points, plain, hinted)]
    assert 0 < kinds.count(0) == kept.count(0) and 0 < kinds.count(1) == kept.count(1)


def test_a_fit_finds_the_minimum():
    """Guards against an optimiser that stops before it has learned what is easy."""
    states = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 1.0], [-2.0, 1.0]], dtype=torch.float64)
    w = votes.fit_probe(states, [1.0, 0.0, 1.0, 0.0])
    assert ((states @ w > 0) == torch.tensor([True, False, True, False])).all() and abs(w[1]) < 1e-3


def test_calibration():
    """Guards against an ECE that a calibrated judge does not bring to 0, or that hides overconfidence."""
    sure = np.array([0.75] * 8 + [1.0] * 4)
    assert truth.expected_error(sure, np.array([1, 1, 1, 0] * 2 + [1] * 4)) == 0
    assert truth.expected_error(sure, np.zeros(12)) == pytest.approx((0.75 * 8 + 4) / 12)


@pytest.mark.parametrize("rule", ["sum", "guided"])
def test_reward_for_others(rule):
    """Guards against a reward that is not one number a completion, or that fails on a strange one."""
    answers = ["it is lima", "it is cairo", "\ufffd"]
    rewards = trl_reward.reward_function(k=2, rule=rule)(["capital of peru?\n"] * 3, answers, extra=[0])
    assert len(rewards) == 3 and all(r is None or 1 <= r <= 10 for r in rewards)
    assert rewards[0] is not None
