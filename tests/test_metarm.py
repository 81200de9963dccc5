import random

import pytest
import torch

import metarm
from data.judgement import Judgement
from metarm import RULES, from_policy, half, keep_best, rate, vote_guided, vote_random


def judged(scores, meta=None, ids=(5, 6)):
    return Judgement("x", 0, [0, 1], 0, [3, 4], list(ids), 0.0, scores=scores, meta=meta)


def test_guided_vote():
    """Guards against a filter that keeps the worst, more or fewer than half, or a sample that failed."""
    scores, metas = [[9, 1], [2, 8], None, [1, 9], [7, 3]], [2.0, -1.0, None, -3.0, 1.0]
    samples = [judged(*both) for both in zip(scores, metas)]
    assert keep_best(scores, metas, 2) == [[9, 1], [7, 3]] and keep_best(scores, metas, 4).count(None) == 0
    assert keep_best("abcd", [-1.0, None, 0.0, None], 4) == list("cabd")     # 0 is a logit
    assert RULES["guided"](samples) == vote_guided(samples) == [16, 4]
    assert vote_guided(samples[1:4]) == [2, 8] and vote_guided(samples[3:4]) == [1, 9]
    assert vote_guided([judged(None), judged(None)]) is None
    assert vote_guided([judged(None), judged(None), judged([4, 3], -9.0), judged(None)]) == [4, 3]
    assert [half([0] * n) for n in (1, 2, 3, 4, 5, 32)] == [1, 1, 1, 2, 2, 16]


def test_random_control_is_random_and_of_equal_size():
    """Guards against a control that keeps the same places, more samples, or what does not parse."""
    samples = [judged(scores) for scores in ([1, 0, 0], [0, 10, 0], None, [0, 0, 100], None, [1000, 0, 0])]
    kept = [tuple(vote_random(samples, seed)) for seed in range(100)]        # a sum tells who has voted
    assert set(kept) == {(1, 10, 100), (1001, 10, 0), (1001, 0, 100), (1000, 10, 100)}
    assert kept == [tuple(vote_random(samples, seed)) for seed in range(100)]
    assert vote_random(samples[2:5], 0) == [0, 0, 100] and vote_random([judged(None)], 0) is None
    assert vote_random([judged(None)] * 5 + [judged([3, 4])], 0) == [3, 4]   # fewer parse than half


def test_rate(tiny):
    """Guards against logits that stay sorted by length, that padding changes, or that belong to the prompt
    alone: several batches of mixed lengths, against each judgement alone. What does not parse gets none."""
    model, gen = from_policy(tiny()), random.Random(1)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    some = lambda: [gen.randrange(40) for _ in range(gen.randint(1, 40))]
    groups = [[judged([1] if gen.random() < 0.8 else None, ids=some()) for _ in range(5)] for _ in range(60)]
    rate(model, groups)
    for j in (j for group in groups for j in group):
        if j.scores is None:
            assert j.meta is None
        else:
            alone = model(torch.tensor([j.prompt + j.ids]), torch.tensor([0])).item()
            assert type(j.meta) is float and j.meta == pytest.approx(alone, rel=1e-3, abs=1e-3)
    metarm.rate(model, [])


def test_from_policy(tiny):
    """Guards against a Meta RM that starts from nothing, or that changes the policy while it learns."""
    policy = tiny(seed=3)
    model = from_policy(policy)
    before = policy.wte.weight.clone()
    for p, q in zip(policy.parameters(), model.gpt.parameters()):
        assert torch.equal(p, q)
        q.data += 1
    assert torch.equal(policy.wte.weight, before)
    assert not model.head.weight.any() and not model.head.bias.any()
