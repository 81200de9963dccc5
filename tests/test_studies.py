"""The studies in experiments/: their rules and loops against the core's, and that they run."""

import csv
import doctest
import json
import os
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metarm
import sample
import spct
from data.annotators import annotate, encode_document
from data.judgement import (
    Judgement,
    checks_text,
    correct,
    judgement_parts,
    pick,
    prompt_parts,
    vote_plurality,
    vote_sum,
)
from data.tokenizer import CHECKS, CRITIQUE, END, RESPONSE, TOTAL
from data.world import (
    RATERS,
    VERIFIABLE,
    draw_query,
    gold_reward,
    make_item,
    make_items,
    make_response,
    seed_of,
)
from experiments import (
    baselines,
    calls,
    depth,
    filter,
    judges,
    lengths,
    offline,
    principles,
    reasons,
    reference_answer,
    rlhf,
    study,
    tools,
    truth,
    votes,
    writer,
)
from experiments.offline import spearman
from metarm import vote_guided
from report import auc


@pytest.mark.parametrize("module", [
    baselines, calls, depth, filter, judges, lengths, offline, principles, reasons, tools, truth],
    ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    """Guards against an example that gives something else."""
    assert doctest.testmod(module).failed == 0


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
        found = votes.accuracy(samples, "filtered sum", k, {})
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
    assert found[0] == 0.5 and found[1] > 0.4 and found[3:] == [0, 1, 0.5]
    nothing = np.full(200, np.nan)
    assert study.difference([better], [nothing], [["a"] * 200]) is None
    assert study.in_words(found) == "+0.500 (+0.000 to +1.000)"


def test_gold_reward_of_any_text():
    """Guards against a gold reward that differs from the raters', or that nonsense earns."""
    for i in range(300):
        rng = random.Random(i)
        domain, cue, task, problem = draw_query(rng, rng.choice(["train", "test", "ood"]))
        text, truth = make_response(rng, domain, problem, RATERS[domain][cue])
        query = writer.Query("", domain, cue, task, problem)
        met = writer.truth_of(text, query)
        assert {name: truth[name][0] for name in truth} == {name: met[name][0] for name in truth}
        assert writer.gold_of(text, query) == gold_reward(RATERS[domain][cue], truth)
    assert writer.without_style("whee0 whee") == ("whee0", {"playful"})
    assert writer.without_style("um kindly kindly it is 2") == ("kindly it is 2", {"filler", "polite"})
    sums = writer.Query("", "sums", "none", "what is 1+1?", (1, 1))
    for text in ("it is is 2", "2", "it is 2 it is 2", "it is 2 <scores>10", ""):
        assert not writer.truth_of(text, sums)["correct"][0]
    lists = writer.Query("", "lists", "none", "name 2 fruits", ("fruits", 2))
    for text in ("plum plum", "plum good", "plum", "plum <scores>10", ""):
        assert not writer.truth_of(text, lists)["count"][0]
    assert not writer.truth_of("plum plum", lists)["kind"][0]
    for text in ("it is um 2", "it um is 2", "um um it is 2"):
        assert not writer.truth_of(text, sums)["concise"][0]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("check_quotes", [True, False])
def test_rewards_of_a_judge(together, check_quotes, monkeypatch):
    """Guards against a reward that belongs to another response, one for each of two equal responses, one for what
    does not parse, and one for a response that was read as another text."""
    queries = [writer.Query(f"q{i}", "", "none", f"query {i}", None) for i in range(2)]
    texts = [["a", "b", "a", "c"], ["d", "broken", "d", "e"]]
    worth, seen = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "broken": 6}, []

    def judged(model, tok, items, k, seed, temperature):
        seen.extend(item.responses for item in items)
        misread = lambda text: "another" if text in ("b", "e") else text
        groups = [[Judgement(item.id, i, [], 0, [], [], 0.0, scores=[worth[text] for text in item.responses],
                             critiques=[{"quote": misread(text)} for text in item.responses]) for i in range(k)]
                  for item in items]
        for group, item in zip(groups, items):
            if "broken" in item.responses:
                group[0].scores = group[0].critiques = None
        return groups
    monkeypatch.setattr(rlhf, "judge", judged)
    run = SimpleNamespace(model=lambda name: name, tok=None)
    found = rlhf.grm(1, together, check_quotes=check_quotes)(run)(queries, texts, 0).tolist()
    b, e = (0, 0) if check_quotes else (2, 5)
    assert found == [[1, b, 1, 3], [0, 0, 0, 0] if together else [4, 0, 4, e]]
    assert all(len(set(responses)) == len(responses) for responses in seen)


def test_references():
    """Guards against a true reference that is wrong, a wrong one that is true, and a lure that is no response."""
    kinds, lured = [], 0
    for item in reference_answer.verifiable_items(0, "test", 60):
        right = [writer.without_style(text)[0] for text, truth in zip(item.responses, item.truth)
                 if truth["correct"][0]]
        true, wrong = (reference_answer.reference_of(item, 0, kind) for kind in ("true", "wrong"))
        assert set(right) <= {true} and wrong != true
        assert reference_answer.best_if_true(item, true) == item.best
        lured += reference_answer.best_if_true(item, wrong) not in (None, item.best)
        asked = reference_answer.with_reference(item, 0, "half wrong").query
        kinds.append(asked.endswith(" the answer is " + true.removeprefix("it is ")))
        assert asked.startswith(item.query + " the answer is ") and asked.count(" the answer is ") == 1
    assert 15 < sum(kinds) < 45 and lured > 15


def test_other_formats_of_the_corpus(tok):
    """Guards against a format in which a judgement says something else, or evidence that cannot be found again."""
    for index in range(20):
        item = make_item(0, "train", index, least=2)
        ids = tok.encode(judgement_parts(*annotate(random.Random(index), item, "expert")))
        read = sample.read_judgement(tok, ids, list(range(item.n)))
        given = [reasons.evidence_of(critique) for critique in read[1]]
        assert all(given) and given == [{name: evidence for name, evidence, _ in c["checks"]} for c in read[1]]
        for change in reasons.FORMATS.values():
            parts = [change(p) if isinstance(p, str) else p for p in judgement_parts(*annotate(
                random.Random(index), item, "expert"))]
            principles, critiques, scores = sample.read_judgement(tok, tok.encode(parts), list(range(item.n)))
            assert (principles, scores) == (read[0], read[2])
            assert [reasons.evidence_of(critique) for critique in critiques] == given
            for a, b in zip(critiques, read[1]):
                assert [(c[0], c[2]) for c in a["checks"]] == [(c[0], c[2]) for c in b["checks"]]
                assert (a["total"], a["quote"]) == (b["total"], b["quote"])


def test_what_predicts_a_writer():
    """Guards against a correlation that is only one of runs, and judges without a number that are ranked."""
    judge = lambda m, gold: {"m": m, "gold after": gold}
    # In each of two runs the better measure goes with the worse writer. The second run has higher numbers.
    means = {"a, rl": judge([1, 11], [3, 13]), "b, rl": judge([2, 12], [2, 12]), "c, rl": judge([3, 13], [1, 11]),
             "a, rft": judge([0, 0], [0, 0]), "base": judge([np.nan, 50], [50, 50])}
    assert reasons.correlations(means, "m") == {
        "each run": [spearman(np.array([1, 2, 3, 0]), np.array([3, 2, 1, 0]))] * 2, "after RL": [-1]}

# ----------------------------------------------------------------------------------------
# Loops that studies have copied

def test_rl_is_that_of_the_core(tmp_path, tiny, monkeypatch):
    """Guards against a copy of RL that learns something else than spct.reinforce does."""
    items = make_items(0, "train", 4, least=2)
    cfg = spct.Config(out=str(tmp_path), device="cpu", dtype="float32", rl_steps=3, rl_items=2, group=3)

    def rollout(policy, batch, seed):              # made up, and some correct
        rng = random.Random(seed)
        return [[Judgement(item.id, i, [0, 1], 0, [2, 3], rng.choices(range(5, 40), k=4), 0.0, scores=[
            rng.randint(1, 9) for _ in range(item.n)]) for i in range(3)] for item in batch]
    monkeypatch.setattr(spct, "judge", lambda policy, tok, batch, k, seed, shuffle: rollout(policy, batch, seed))
    monkeypatch.setattr(spct.report, "describe", lambda *args: {})
    policy = spct.reinforce(cfg, SimpleNamespace(readable=str), tiny(), items)
    *before, last = study.reinforce(cfg, tiny(), items, rollout)
    assert len(before) == 2
    for p, q, start in zip(policy.parameters(), last.parameters(), tiny().parameters()):
        assert torch.equal(p, q) and not torch.equal(p, start)


def test_rft_is_that_of_the_core(tok, tmp_path, tiny):
    """Guards against a copy of RFT that keeps or learns something else than spct.main does."""
    items = make_items(0, "train", 30)
    cfg = spct.Config(out=str(tmp_path), device="cpu", dtype="float32", block_size=200, rft_rows=2, rft_epochs=1,
                      rft_general=0.2)

    def judged(base, tok, items, k, seed, hinted=False):
        rng = random.Random(seed)
        return [[Judgement(item.id, i, [0, 1], 0, [2, 3], rng.choices(range(300, 400), k=9), 0.0, scores=[
            rng.randint(1, 9) for _ in range(item.n)]) for i in range(k)] for item in items]
    make_it = lambda name, make: make()
    run = SimpleNamespace(config=lambda: cfg, tok=tok, groups=make_it, model=make_it)
    base = tiny(tok.vocab_size, 200)
    policy, hard, kept = study.rft(run, "", base, items, judge=judged)
    samples = judged(base, tok, items, cfg.n_rft, study.seed_of(0, "rft"))
    several = [item for item in items if item.n > 1]
    hinted = judged(base, tok, several, 1, study.seed_of(0, "hinted"))
    expected = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    expected += [j for group, item in zip(hinted, several) for j in spct.keep_hinted(group, item)]
    assert kept == expected and hard == [i for group, i in zip(samples, items) if not spct.too_easy(group, i)]
    for p, q in zip(policy.parameters(), spct.finetune(cfg, tok, base, expected).parameters()):
        assert torch.equal(p, q)


def test_training_of_the_meta_rm_learns_what_it_can(tiny):
    """Guards against labels of other judgements: here a token tells whether a judgement is correct."""
    item = make_item(0, "train", 1, least=2, most=2)
    rng = random.Random(0)
    group = []
    for i in range(400):
        good = i % 2
        ids = [rng.randint(10, 30) for _ in range(5)] + [5 if good else 6]
        group.append(Judgement(item.id, i, [0, 1], 0, [2, 3], ids, 0.0, scores=item.gold if good else [5, 5]))
    cfg = spct.Config(meta_batch=8, device="cpu", dtype="float32")
    meta = filter.train_meta_rm(cfg, tiny(), [group], {item.id: item})
    metarm.rate(meta, [group])
    assert auc([i % 2 == 1 for i in range(400)], [j.meta for j in group]) > 0.95


def test_judging_in_another_form_is_judging(tok, tiny, monkeypatch):
    """Guards against other orders, seeds or places of scores than those of sample.judge."""
    model, items = tiny(tok.vocab_size, 160), make_items(0, "test", 3, least=2)
    read = lambda tok, ids, order: ([], [], [order.index(i) for i in range(len(order))])
    monkeypatch.setattr(sample, "read_judgement", read)
    same = judges.Form(lambda prompt: prompt, read, None)
    for how in ((2, 7, 0.5, True), (1, 7, 0, False)):
        assert judges.judge_as(same, model, tok, items, *how) == sample.judge(model, tok, items, *how)


def test_other_forms_of_a_judgement(tok):
    """Guards against a judgement that is rewritten to another verdict, or that cannot be read after that."""
    for index in range(20):
        item = make_item(0, "train", index, least=2, most=2)
        judgement = judgement_parts(*annotate(random.Random(index), item, "expert"))
        prompt = tok.encode(prompt_parts(item.query, item.responses))
        j = Judgement("", 0, [1, 0], 0, prompt, tok.encode(judgement), 0.0)
        j.principles, j.critiques, j.scores = sample.read_judgement(tok, j.ids, j.order)
        if pick(j.scores) is None:
            continue
        short = judges.cut_principles(tok, j)
        assert judges.read_without_principles(tok, short.ids, j.order)[1:] == (j.critiques, j.scores)
        assert len(short.ids) < len(j.ids) and short.prompt[:-1] == j.prompt[:-1]
        number = judges.scores_to_number(tok, j)
        *rest, scores = judges.read_number(tok, number.ids, j.order)
        assert pick(scores) == pick(j.scores) and rest == [j.principles, j.critiques]
        for wrong in (j.ids, number.ids[:-1], number.ids[:-2] + tok.encode(["3"]) + number.ids[-1:]):
            with pytest.raises(ValueError):
                judges.read_number(tok, wrong, j.order)

# ----------------------------------------------------------------------------------------
# Tools, depth, principles

def test_long_evidence_is_true(tok):
    """Guards against steps that do not add up, another verdict, and documents that do not fit."""
    for domain, all_lengths in depth.LENGTHS.items():
        for length in all_lengths:
            for index in range(6):
                item = lengths.item_of(0, "test", domain, length, index)
                assert lengths.cell_of(item) == (domain, length) and item.gold == [
                    gold_reward(item.weights, truth) for truth in item.truth]
                long = lengths.step_by_step(item)
                for before, after in zip(item.truth, long.truth):
                    assert before["correct"][0] == after["correct"][0] and not set(",:") & set(after["correct"][1])
                    way, compared = after["correct"][1].split(" so ")
                    assert before["correct"][1].endswith(compared.split(" got ")[1])
                    right = compared.split(" got ")[0]
                    if domain == "sums":
                        steps = [step.split("=") for step in way.split(" ")]
                        assert len(steps) == length and right == steps[-1][1] + "".join(
                            total[-1] for _, total in steps[-2::-1])
                        assert all(sum(map(int, left.split("+"))) == int(total) for left, total in steps)
                    else:
                        rest = sorted(right.split(" "))
                        assert right.split(" ") == rest and way.count(" has ") == length - 1
                        for step in re.findall(r"((?:[a-z] )+)has ([a-z])", way):
                            assert sorted(step[0].split()) == rest and step[1] == rest.pop(0)
                    parts = judgement_parts(*annotate(random.Random(index), long, "expert"))
                    ids = tok.encode(prompt_parts(item.query, item.responses) + parts)
                    assert len(ids) < depth.CONTEXT
                    j = Judgement("", 0, [0, 1], 0, [], [], 0.0)
                    j.critiques = sample.read_judgement(tok, tok.encode(parts), [0, 1])[1]
                    checks = depth.checks_of(j, item)
                    assert [way for way, _, _ in checks] == ["long", "long"]
                    for i, (_, _, evidence) in enumerate(checks):
                        assert depth.is_exact("long", evidence, item, i)
                        assert depth.adds_digits(evidence) == (domain == "sums")
                    assert not depth.is_exact("short", checks[0][2], item, 0)


def test_problems_of_any_length():
    """Guards against evidence of another answer than the response's, and test problems that training has seen."""
    ascending = 0
    for item in lengths.items_of(0, "test", depth.LENGTHS, 330):
        domain, length = lengths.cell_of(item)
        task = item.query.split("sort " if domain == "sort" else "what is ")[1]
        right = sorted(task.split(" ")) if domain == "sort" else str(sum(map(int, task[:-1].split("+"))))
        for i, (text, true) in enumerate(zip(item.responses, item.truth)):
            pattern = r"it is (\d+)" if domain == "sums" else rf"\b([a-z](?: [a-z]){{{length - 1}}})\b"
            given = re.search(pattern, text)[1]
            given = given.split(" ") if domain == "sort" else given
            met, evidence = true["correct"]
            assert met == (given == right) == (i == item.best)
            pairs = evidence.removeprefix("sort ").split("got ")[-1].split(" ")
            assert pairs[::2] == list(right[:len(pairs) // 2]) and pairs[1::2] == list(given[:len(pairs) // 2])
            assert (pairs[-2] == pairs[-1]) == met
            ascending += domain == "sort" and not met and given == sorted(given)
    assert ascending > 40
    problem = lambda item: (item.domain, *sorted(re.findall(r"\d+|\b[a-z]\b", item.query.split("sort ")[-1])))
    some = {"sums": (2,), "sort": (3,)}
    tested = {problem(item) for item in lengths.items_of(0, "test", some, 400)}
    assert not tested & {problem(item) for item in lengths.items_of(1, "train", some, 4000)}


def test_ways_of_a_check():
    """Guards against shares of what parses alone: a check that is not there is no true one."""
    item = SimpleNamespace(truth=[{"correct": (True, "")}, {"correct": (False, "")}, {"correct": (True, "")}])
    checks = [[("polite", "dear", True), ("correct", "1+2=3 so 3 got 3 3", True)], [("correct", "1+2=3", True)],
              [("correct", "", True)]]
    judgement = SimpleNamespace(critiques=[{"checks": some} for some in checks])
    assert [check[:2] for check in depth.checks_of(judgement, item)] == [
        ("long", True), ("short", False), ("none", True)]
    assert depth.checks_of(SimpleNamespace(critiques=None), item) == [("none", False, None)] * 3


def test_measures_of_evidence(tok):
    """Guards against exact evidence that counts as wrong, and against chains that count as named sums."""
    for length in depth.LENGTHS["sums"]:
        item = lengths.item_of(0, "test", "sums", length, 0)
        for way in (item, lengths.step_by_step(item)):
            ids = tok.encode(judgement_parts(*annotate(random.Random(0), way, "expert")))
            j = Judgement(item.id, 0, [0, 1], 0, [], ids, 0.0)
            j.principles, j.critiques, j.scores = sample.read_judgement(tok, ids, [0, 1])
            found, short = depth.of_judgement(j, item), way is item
            assert found["exact"] == found["true"] == found["evidence"] == 1 and found["long"] == (not short)
            assert np.isnan(found["adds digits" if short else "names a given sum"])
            assert found["names a given sum" if short else "adds digits"] == 1
            other = replace(item, responses=["it is 1"] * 2)
            assert not short or depth.of_judgement(j, other)["names a given sum"] == 0


def test_what_the_long_way_pays():
    """Guards against a mean over other items, where another way was taken because the item was harder."""
    item = lambda id: SimpleNamespace(id=id, domain="sums", truth=[{"correct": (True, "")}])
    check = lambda evidence, good: SimpleNamespace(critiques=[{"checks": [("correct", evidence, good)]}])
    both = [check("1+2=3 so 3", True), check("1+2=3", False), check("1+2=3", True), check("", True)]
    found = depth.long_pays([both, both[1:]], [item("test-sums2-0"), item("test-sums2-1")])
    assert found["sums", 2][0] == 0.5 and np.isnan(found["sums", 2][1]) and not len(found["sums", 3])


def test_what_rl_takes(monkeypatch):
    """Guards against shares of other domains or steps, and against checks without evidence that count as short."""
    items = [SimpleNamespace(id=f"train-{domain}3-0", domain=domain, truth=[{"correct": (True, "")}])
             for domain in ("sums", "sort")]
    judged = lambda item, evidence: [SimpleNamespace(item=item.id, critiques=[
        {"checks": [("correct", text, True)]}]) for text in (evidence, "")]
    rollouts = [judged(item, "1+2=3 so 3" if step > 3 and item.domain == "sums" else "1+2=3")
                for step in range(6) for item in items]
    monkeypatch.setattr(depth, "read_judgements", lambda path: rollouts)
    run = SimpleNamespace(config=lambda: SimpleNamespace(out=""), training_items=lambda: items)
    assert depth.in_training(run)[0] == {"sums": [0, 0, 0, 0, 1, 1], "sort": [0] * 6}


def test_calls_are_taken_out_again(tok):
    """Guards against a corpus in which a call changes a judgement, and against results that the policy learns."""
    count = 0
    for index in range(40):
        item = make_item(0, "train", index, least=2)
        judgement = judgement_parts(*annotate(random.Random(index), item, "expert"))
        document = tools.with_calls([(prompt_parts(item.query, item.responses), False), (judgement, True)])[1:]
        ids, learned = encode_document(tok, document)
        assert calls.without_calls(tok, ids) == tok.encode(judgement) and calls.chosen(tok, ids) == learned
        found = calls.calls_of(tok, ids)
        assert len(found) == (item.domain in VERIFIABLE)
        for start, result, end in found:
            problem = item.query.split(" ")[-1] if item.domain == "sums" else None
            right = str(sum(map(int, problem[:-1].split("+")))) if problem else None
            assert right in (None, tok.text(ids[result:end]).strip())
            count += 1
    assert count > 8


def test_what_calls_win_is_measured_apart(tok):
    """Guards against a wrong call taken for the query's, false evidence for true, and a bound that is none."""
    item = next(item for item in make_items(0, "test", 999, least=2)
                if item.domain == "sums" and item.best == 1 and not item.truth[0]["correct"][0]
                and item.gold[0] + item.weights["correct"] > item.gold[1])
    problem, weight = re.search(r"\d+\+\d+", item.query)[0], item.weights["correct"]
    total = str(sum(map(int, problem.split("+"))))

    def measured(change=lambda part: part, praise=False):
        """of true judgements of the item whose parts change. praise: the first verdict on "correct" is false"""
        critiques = []
        for i, (text, true) in enumerate(zip(item.responses, item.truth)):
            met = {name: true[name][0] or (praise and i == 0 and name == "correct") for name in item.weights}
            critiques.append((text, checks_text([(name, true[name][1], met[name]) for name in met]), 1))
        parts = judgement_parts(item.weights, critiques, [item.gold[0] + weight * praise, *item.gold[1:]])
        document = tools.with_calls([(prompt_parts(item.query, item.responses), False), (parts, True)])[1:]
        parts = [change(part) if isinstance(part, str) else part for some, _ in document for part in some]
        j = Judgement(item.id, 0, list(range(item.n)), 0, [], tok.encode(parts), 0.0)
        j.principles, j.critiques, j.scores = sample.read_judgement(tok, calls.without_calls(tok, j.ids), j.order)
        found = tools.of_judgements(tok, [item], [j])
        assert tools.called(tok, [j, Judgement("", 0, [], 0, [], [], 0.0)]) == [0.5, found["called"][0]]
        return [None if np.isnan(found[m][0]) else found[m][0] for m in (
            "called", "right arguments", "follows the result", "true answers", "true verdicts", "greedy", "bound")]
    other = str(int(total) + 1)
    a, b = problem.split("+")
    assert measured() == [1, 1, 1, 1, 1, 1, 1]
    assert measured(lambda part: f" {b}+{a}=" if part == f" {problem}=" else part) == [1, 0, 1, 1, 1, 1, 1]
    assert measured(lambda part: other if part == total else part) == [1, 1, 0, 1, 1, 1, 1]
    assert measured(lambda part: part.replace(f"={total} got", f"={other} got")) == [1, 1, 0, 0, 1, 1, 1]
    assert measured(praise=True) == [1, 1, 1, 1, 1 - 1 / item.n, 0, 1]
    critique = {"checks": [("correct", "", True)]}
    praised = SimpleNamespace(scores=[5], principles=[["correct", 4]], critiques=[critique])
    assert tools.bound(praised, SimpleNamespace(domain="sums", truth=[{"correct": (False, "")}])) == [1]
    none = measured(lambda part: " 1+x=" if part == f" {problem}=" else part)
    assert none == [0, None, None, 1, 1, 1, 1]


def test_what_is_no_proper_call_stays(tok):
    """Guards against text that is executed, and calls in a quote or of unknown functions."""
    CALL, RUN = tools.CALL, tools.RUN
    good = [RESPONSE[0], " it is 3", CHECKS, " correct:", CALL, " 1+2=", RUN]
    assert calls.forced_after(tok, tok.encode(good)) == tok.encode(["3"])
    assert calls.forced_after(tok, tok.encode([*good, "3", CALL, " sort b a", RUN])) == tok.encode([" a b"])
    for bad in ([RESPONSE[0], CALL, " 1+2=", RUN], [CHECKS, CALL, " exit", RUN],
                [CHECKS, CALL, " 1+x=", RUN], [CHECKS, CALL, CALL, " 1+", RUN],
                [CHECKS, CALL, RUN], [CALL, " 1+2=", RUN],
                [RUN, CALL, " 1+2=", RUN], [CHECKS, TOTAL, CALL, " 1+2=", RUN], [RUN], [CALL, RUN],
                [CHECKS, CALL, " 1+2=", END, RUN], [CHECKS, CALL, " 1+", RUN, "2=", RUN],
                [CHECKS, " [ 1+2=]", RUN]):
        ids = tok.encode(bad)
        assert calls.forced_after(tok, ids) == [] and calls.without_calls(tok, ids) == ids
        assert all(calls.chosen(tok, ids))
    assert {CALL, RUN}.isdisjoint(tok.encode(["".join(map(chr, range(1, 3000)))]))


def test_sampler_with_tools(tok, tiny, monkeypatch):
    """Guards against a sampler that differs where no tool is called, and against results that are not written."""
    model, items = tiny(tok.vocab_size, 200), make_items(0, "test", 3, least=2)
    for how in ((2, 7, 0.5, True), (1, 7, 0, False)):
        for mine, theirs in zip(calls.judge(model, tok, items, *how), sample.judge(model, tok, items, *how)):
            assert [(j.ids, j.order, j.seed) for j in mine] == [(j.ids, j.order, j.seed) for j in theirs]
    script = [CHECKS, tools.CALL, *tok.encode([" 230+481="]), tools.RUN, *[40] * 200]
    steps = iter(script)
    monkeypatch.setattr(calls, "draw", lambda logits, u, T: (torch.full((len(u),), next(steps)), None))
    monkeypatch.setattr(calls, "END", 40)
    at = script.index(40)
    result = tok.encode(["711"])
    asked = [Judgement("", 0, [0, 1], seed, prompt, [], 0.0) for seed, prompt in enumerate([[2, 3], [2, 3, 4]])]
    [ids, same] = calls.complete(model, tok, asked, 1.0, [calls.result_of] * 2)
    assert ids == same == script[:at] + result + [40]
    steps = iter(script)
    [ids, other] = calls.complete(model, tok, asked, 1.0, [lambda call: None, lambda call: call[1:5]])
    assert ids == script[:at + 1] and other == script[:at] + tok.encode(["230+"]) + [40]
    # The first row ends early. The tool of the second is then still its own.
    steps = iter([*[41] * calls.LOOK_EVERY, *script])

    def first_ends(logits, u, T):
        token = next(steps)
        return torch.tensor([40, token] if len(u) == 2 else [token]), None
    monkeypatch.setattr(calls, "draw", first_ends)
    [_, ids] = calls.complete(model, tok, asked, 1.0, [lambda call: None, calls.result_of])
    assert ids[-len(result) - 2:] == [tools.RUN, *result, 40]
    seen = []                                      # without a tool, a call has probability 0

    def keep(logits, u, T):
        seen.append(logits[:, tools.CALL])
        return torch.full((len(u),), 40), None
    monkeypatch.setattr(calls, "draw", keep)
    for both in ([None, calls.result_of], [calls.result_of] * 2):
        calls.complete(model, tok, asked, 1.0, both)
        assert (seen[-1] == -torch.inf).tolist() == [tool is None for tool in both]


def test_rl_without_loss_on_results(tok, tmp_path, tiny, monkeypatch):
    """Guards against a copy of RL that differs where no tool is called, and a gradient of what was not chosen."""
    items = [item for item in make_items(0, "train", 40, least=2) if item.domain in VERIFIABLE][:4]
    cfg = spct.Config(out=str(tmp_path), device="cpu", dtype="float32", rl_steps=2, rl_items=2, group=3)
    run = SimpleNamespace(config=lambda: cfg, tok=tok)
    call = tok.encode([CHECKS, tools.CALL, " 1+2=", tools.RUN])

    def rollout(added):
        def judged(policy, tok, batch, k, seed, shuffle):
            rng = random.Random(seed)
            ids = lambda: rng.choices(range(300, 400), k=4) + added
            scores = lambda item: [rng.randint(1, 9) for _ in range(item.n)]
            return [[Judgement(item.id, i, [0, 1], 0, [2, 3], ids(), 0.0, scores=scores(item)) for i in range(3)]
                    for item in batch]
        return judged
    start = tiny(tok.vocab_size)
    monkeypatch.setattr(tools, "judge", rollout([]))
    monkeypatch.setattr(spct, "judge", rollout([]))
    monkeypatch.setattr(spct.report, "describe", lambda *args: {})
    policy, curve = tools.reinforce(run, start, items)
    core = spct.reinforce(cfg, SimpleNamespace(readable=str), start, items)
    assert [share for share, _ in curve] == [0, 0] and np.isnan(curve).all(axis=0)[1]
    for p, q in zip(policy.parameters(), core.parameters()):
        assert torch.allclose(p, q, atol=1e-6)
    # The end of a judgement is a result: which one it is makes no difference.
    ends = []
    for result in (tok.encode(["3"]), [350]):
        monkeypatch.setattr(tools, "judge", rollout(call + result))
        ends.append(tools.reinforce(run, start, items)[0])
    for p, q in zip(ends[0].parameters(), ends[1].parameters()):
        assert torch.equal(p, q)


def test_judging_by_given_principles(tok, tiny, monkeypatch):
    """Guards against stored principles that the judgement does not begin with, or that are read wrongly."""
    model, items = tiny(tok.vocab_size, 200), make_items(0, "test", 3, least=2)
    run = SimpleNamespace(tok=tok)
    own = principles.judge_by(run, model, items, [[]] * 3, 2, 7, 0.5)
    assert own == sample.judge(model, tok, items, 2, 7, 0.5)
    given = principles.judge_by(run, model, items, [[{"polite": 10}, {"plain": 10}]] * 3, 3, 7, 0.5)
    for group in given:
        for j, name in zip(group, ("polite", "plain", "polite")):
            begin = tok.encode([f" {name} 10", CRITIQUE])
            assert j.ids[:len(begin)] == begin
    assert [[j.prompt for j in group[:2]] for group in given] == [[j.prompt for j in group] for group in own]
    read = lambda parts: principles.read_principles(tok, tok.encode(parts))
    assert read([" correct 4, polite 6", END]) == {"correct": 4, "polite": 6}
    assert read([" correct 4, polite 6", CRITIQUE, " good", END]) == {"correct": 4, "polite": 6}
    for bad in ([" correct 4"], [" correct", END], [" correct 4 <end>", END], [END], [" correct 11", END], []):
        assert read(bad) is None
    for seed in range(200):                        # means have the sum 10, and differ from the exact ones by < 1
        rng = random.Random(seed)
        several = [dict(zip(rng.sample(["a", "b", "c", "d"], 3), rng.choices(range(1, 9), k=3))) for _ in range(5)]
        [whole], [few] = principles.mean_principles(several, most=4), principles.mean_principles(several)
        assert sum(whole.values()) == sum(few.values()) == 10 and len(few) <= 3
        exact = {name: sum(2 * w.get(name, 0) / sum(w.values()) for w in several) for name in "abcd"}
        for name in exact:
            assert abs(whole.get(name, 0) - exact[name]) < 1
        smallest = min(exact, key=exact.get)
        for name in few:
            assert abs(few[name] - 10 * exact[name] / (10 - exact[smallest])) < 1
    lists = [None, {"polite": 10}, None, *[{"plain": 10}] * 5, *[None] * 24]
    run.config = lambda: SimpleNamespace(temperature=0.5)
    monkeypatch.setattr(principles, "stored", lambda writer, name, queries, m, temperature: (
        {query: lists[:m] for query in queries}, 5.0))
    for source, expected, tokens in (
            ("mean of 1", [], 5), ("mean of 4", [{"polite": 5, "plain": 5}], 20), ("most likely list", [], 5),
            ("mean of 16", [{"polite": 2, "plain": 8}], 80), ("own", [], 0),
            ("the raters'", [items[0].weights], 0),
            ("one for each sample", lists[1:2] + lists[3:8], 40)):
        assert principles.stores_from(source, "rl", {"mine": run, "other": run}, items[:1]) == ([expected], tokens)


def test_stored_principles(tok, monkeypatch):
    """Guards against the lists of another query, and against a mean of other tokens than the lists'."""
    ids_of = lambda seed: tok.encode([f" plain {1 + seed % 9}", *[", polite 1"] * (seed % 2), END])
    monkeypatch.setattr(principles, "generate", lambda policy, prompts, seeds, temperature: [
        (ids_of(seed), None) for seed in seeds])
    writer = SimpleNamespace(tok=tok, model=lambda name: None, config=lambda: SimpleNamespace(seed=3))
    lists, tokens = principles.stored.__wrapped__(writer, "rl", ("a", "b"), 3, 1.0)
    seed = seed_of(3, "study", "rl")
    seeds = {query: [seed_of(seed, "principles", query, i) for i in range(3)] for query in "ab"}
    assert lists == {query: [principles.read_principles(tok, ids_of(seed)) for seed in mine]
                     for query, mine in seeds.items()}
    assert tokens == np.mean([len(ids_of(seed)) for mine in seeds.values() for seed in mine])


def test_what_principles_are_compared_with(tok):
    """Guards against a control that has the raters' own weights, and against tokens that nobody wrote."""
    for item in make_items(0, "test", 50, least=2):
        assert principles.agreement(item.weights, item) == 1
        for factor in (0.5, 3):
            scaled = {name: factor * weight for name, weight in item.weights.items()}
            assert principles.agreement(scaled, item) == 1
        assert principles.agreement({"none": 10}, item) == 0
        other = principles.another_cue(item)
        assert other != item.weights and other in RATERS[item.domain].values()
    parts = judgement_parts(*annotate(random.Random(0), item, "expert"))
    j = Judgement(item.id, 0, list(range(item.n)), 0, [], tok.encode(parts), 0.0)
    j.principles, j.critiques, j.scores = sample.read_judgement(tok, j.ids, j.order)
    begun = len(tok.encode(parts[:2]))
    for store in ([], [item.weights]):
        found = principles.of_judgement(SimpleNamespace(tok=tok), j, item, store)
        assert found["principle tokens"] == (0 if store else begun) and found["adds up"] == 1
        assert found["critique tokens"] == len(j.ids) - begun and found["given"] == bool(store)
    j.scores, j.ids = None, j.ids[:3]
    found = principles.of_judgement(SimpleNamespace(tok=tok), j, item, [])
    assert found["principle tokens"] == 3 and found["critique tokens"] == 0 and np.isnan(found["agreement"])

# ----------------------------------------------------------------------------------------
# Filter, truth

def test_oracles(sampled):
    """Guards against an oracle that knows more or less than is said."""
    items, groups, _ = sampled
    for oracle, value, expected in ((filter.informed, 0.3, 1 - 0.7 ** 2 / 2), (filter.informed, 1.0, 1.0),
                                    (filter.noisy, 0.5, 0.5), (filter.noisy, 0.8, 0.8), (filter.noisy, 0.3, 0.3)):
        rng, found = np.random.default_rng(0), []
        for _ in range(40):
            for item, group in zip(items, groups):
                labels = [correct(j.scores, item.gold) for j in group]
                found.append(auc(labels, oracle(group, item, value, rng)))
        assert np.mean([x for x in found if x is not None]) == pytest.approx(expected, abs=0.02)


def test_gain_carried_over():
    """Guards against weights of the wrong policy: gains only where half of the samples are correct."""
    share, target, ones = np.array([0.5, 0.5, 1.0, 1.0]), np.array([0.5, 1.0, 1.0, 1.0]), np.ones(4)
    gain = np.array([1.0, 0.0, 0.0, 0.0])
    assert filter.carried_over(gain, share, share, ones) == gain.mean()
    assert filter.carried_over(gain, share, target, ones) == 0.5 / 4
    assert filter.carried_over(gain, share, target, np.array([0, 1.0, 1, 1])) == 0
    weighted = lambda run, weights: (weights * gain).sum() / weights.sum()
    mean, *interval = filter.with_intervals(weighted, [list("abcd")])
    assert mean == 0.25 and interval[:2] == interval[2:] == [0.0, 0.75]


def test_bias():
    """Guards against a bias that counts the best response, ties, or the item's order for the judge's."""
    item = make_item(0, "test", 0, least=2, most=2)
    best, other = item.best, 1 - item.best
    judged = lambda picked, order: Judgement("", 0, order, 0, [], [], 0, scores=[
        9 if i == picked else 5 for i in range(2)])
    first = [judged(0, [0, 1]), judged(1, [1, 0]), judged(None, [0, 1])]       # the first it read, twice
    assert truth.excess([item], [first], "position", False).tolist() == [1 - 0.5]
    assert truth.excess([item], [[judged(best, [0, 1])] * 3], "length", True).tolist() == [0]
    longest = truth.favoured(item, "length")
    assert len(item.responses[longest]) >= len(item.responses[1 - longest])
    assert truth.excess([item], [[judged(other, [0, 1])]], "length", True)[0] in (-1, 1)


def test_wrong_labels():
    """Guards against labels that stay, and items without a best response."""
    items = make_items(0, "train", 300)
    wrong = [truth.mislabelled(0, item, 0.3) for item in items]
    changed = [a.best != b.best for a, b in zip(items, wrong) if a.n > 1]
    assert 0.2 < np.mean(changed) < 0.4 and all(sorted(a.gold) == sorted(b.gold) for a, b in zip(items, wrong))


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    """Guards against a study that does not run, whose second run samples anew, or that differs from its first.
    (The other studies take longer: .ci/run has them.)"""
    monkeypatch.chdir(tmp_path)
    votes.main(["--quick"])
    table = lambda out: out[out.rindex("| --- |\n"):]                 # what is printed before is of trainings
    first = table(capsys.readouterr().out)
    results = tmp_path / "runs" / "quick" / "studies"
    assert {"votes.json", "votes.csv", "votes.png"} <= {path.name for path in results.iterdir()}
    json.loads((results / "votes.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(sample, "generate", None)
    votes.main(["--quick"])
    assert table(capsys.readouterr().out) == first


def differences_and_numbers(result):
    """What a study has found, as findings write it: "+.1 (+.0 to +.2)", and ".1"."""
    lists = []

    def collect(x):
        if isinstance(x, dict) or isinstance(x, list) and x and isinstance(x[0], list):
            for value in x.values() if isinstance(x, dict) else x:
                collect(value)
        elif isinstance(x, list):
            lists.append(x)

    collect(result)
    short = lambda x: re.sub(r"\b0\.", ".", x)
    differences = {short(study.in_words(x)) for x in lists if len(x) >= 5 and None not in x}
    numbers = [v for x in lists for v in {2: x[:1], 3: x}.get(len(x), []) if v is not None]
    return differences, {short(f"{v:.3f}") for v in numbers}


DIFFERENCE = r"[+-]\d?\.\d+ \([^()]* to [^()]*\)"


def test_claims_are_those_of_the_numbers():
    """Guards against a table of claims that no study, and none of the five runs, has shown."""
    folder, known = os.path.dirname(study.__file__), set()
    for name in ("votes", "filter", "baselines", "ablations", "truth", "scaling", "reference_answer"):
        with open(os.path.join(folder, "reference", name + ".json"), encoding="utf-8") as f:
            known |= differences_and_numbers(json.load(f))[0]
    with open(os.path.join(folder, "reference", "runs.md"), encoding="utf-8") as f:
        rows = re.findall(r"\| ([+-])0(\.\d+) \| ([+-])0(\.\d+) to ([+-])0(\.\d+) \|", f.read())
    known |= {"{}{} ({}{} to {}{})".format(*row) for row in rows}
    with open(os.path.join(folder, "RESULTS.md"), encoding="utf-8") as f:
        claims = f.read().split("### The claims of the paper")[1].split("\n# ")[0]
    said = set(re.findall(DIFFERENCE, claims))
    assert len(said) > 20 and said <= known, said - known


@pytest.mark.parametrize("names, title", [
    ("votes", "## Which vote is best, and how many samples does it take?"),
    ("filter", "## Why does the Meta RM's filter help after RFT, and not after RL?"),
    ("baselines", "## Is a generalist judge any better than the other kinds of reward model?"),
    ("ablations", "## What does each part of the method bring?"),
    ("truth", "## Is a judge correct for the right reasons, calibrated, unbiased, and robust to wrong labels?"),
    ("scaling", "## Is it better to take more samples, or a larger model?"),
    ("rlhf rlhf-first", "## What is a reward model for?"),
    ("offline offline-first", "## Can a judge rank policies?"),
    ("reference_answer", "## What does a reference answer change?"),
    ("reasons", "## Why does a judge have good reasons, and does it matter?"),
    ("tools", "## What does a tool inside the critique win?"),
    ("principles", "## Can principles be written before any response is seen?"),
    ("depth", "## When is longer thinking worth its tokens?")])
def test_findings_are_those_of_the_numbers(names, title):
    """Guards against findings that no run has shown, or that an older one has. Each number must be one of the
    study's. (Whether it is the right one of them, a reader has to see.)"""
    folder, results = os.path.dirname(study.__file__), []
    with open(os.path.join(folder, "RESULTS.md"), encoding="utf-8") as f:
        chapter = f.read().split(title + "\n")[1].split("\n## ")[0].split("\n# ")[0]
    for name in names.split():
        with open(os.path.join(folder, "reference", name + ".json"), encoding="utf-8") as f:
            results.append(json.load(f))
    with open(os.path.join(folder, "reference", names.split()[0] + ".csv"), encoding="utf-8") as f:
        assert all("| " + " | ".join(row) + " |" in chapter for row in csv.reader(f))
    differences, numbers = differences_and_numbers(dict(enumerate(results)))
    findings = " ".join(chapter.split("\n- ", 1)[1].split())
    said = re.findall(DIFFERENCE, findings)
    assert set(said) <= differences, set(said) - differences
    rest = re.sub(r"[+-]\d?\.\d+( \([^()]* to [^()]*\))?", "", findings)
    alone = set(re.findall(r"(?<![\d.])\d?\.\d{3}\b", rest))
    assert alone <= numbers, alone - numbers
    assert len(said) + len(alone) >= 5
