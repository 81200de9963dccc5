import random

import numpy as np
import torch

import metarm
from config import Config
from data.judgement import Judgement, vote
from metarm import RULES, auc, auc_within, batches_by_length, guided_vote, keep_best, random_vote
from model import GPT, GPTConfig
from run import Run


def judged(scores, meta=None):
    return Judgement("x", 0, [0, 1], 0, (3, 4), [5, 6], 0.0, scores=scores, meta=meta)


def test_auc_against_all_pairs():
    """Guards against a wrong AUC: compare with counting every (right, wrong) pair, ties as half."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        right, scores = rng.random(25) < 0.4, rng.integers(0, 6, 25)
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
        assert abs(auc(right, scores) - np.mean(pairs)) < 1e-12
    assert auc([True, True], [1, 2]) is None


def test_auc_within_ignores_how_easy_items_are():
    """Guards against the pooled AUC in disguise: a judge that only knows which items are easy has 0.5
    within items."""
    easy, hard = ([1, 1, 1, 0], [5, 5, 5, 5]), ([1, 0, 0, 0], [1, 1, 1, 1])
    assert auc_within([easy, hard]) == 0.5
    assert auc(easy[0] + hard[0], easy[1] + hard[1]) > 0.5
    assert auc_within([([1, 1], [1, 2])]) is None


def test_guided_vote():
    """Guards against a filter that keeps the worst, or lets a sample vote that did not parse."""
    scores, metas = [[9, 1], [2, 8], None, [1, 9], [7, 3]], [2.0, -1.0, None, -3.0, 1.0]
    samples = [judged(*both) for both in zip(scores, metas)]
    assert keep_best(scores, metas, 2) == [[9, 1], [7, 3]]
    assert guided_vote(samples, 2) == [16, 4]
    assert guided_vote(samples, 5) == vote(scores)                           # k_meta = k: nothing is filtered
    assert keep_best(scores, metas, 4).count(None) == 0
    assert guided_vote([judged(None), judged(None)], 1) is None


def test_constant_meta_scores_are_a_plain_vote():
    """Guards against a Meta RM that matters although it says nothing: the first k_meta samples vote."""
    rng = random.Random(0)
    for _ in range(50):
        scores = [[rng.randint(1, 10) for _ in range(3)] for _ in range(8)]
        for k_meta in (1, 4, 8):
            assert guided_vote([judged(s, 0.3) for s in scores], k_meta) == vote(scores[:k_meta])


def test_the_guided_rule_keeps_half():
    """Guards against a filter that keeps more or fewer than the paper's k/2, or nobody of one."""
    samples = [judged([i, 0], float(i)) for i in (3, 9, 1, 5, 7)]
    assert RULES["guided"](samples) == [16, 0] and RULES["guided"](samples[:1]) == [3, 0]
    assert RULES["sum"](samples) == [25, 0]


def test_random_control_is_random_and_of_equal_size():
    """Guards against a control that always keeps the same places, keeps more samples, or keeps what does not
    parse."""
    samples = [judged(scores) for scores in ([1, 0, 0], [0, 10, 0], None, [0, 0, 100], None, [1000, 0, 0])]
    kept = [tuple(random_vote(samples, 2, seed)) for seed in range(60)]      # a sum tells who has voted
    assert set(kept) == {(1, 10, 0), (1, 0, 100), (1001, 0, 0), (0, 10, 100), (1000, 10, 0), (1000, 0, 100)}
    assert random_vote(samples, 9, 0) == [1001, 10, 100]                     # what does not parse is left out
    assert random_vote(samples, 2, 3) == random_vote(samples, 2, 3)


def test_batches_hold_every_row_once():
    """Guards against rows that the batching loses or repeats, and batches of mixed lengths."""
    rows = [[0] * (i % 13 + 1) for i in range(100)]
    chunks = batches_by_length(rows, 8, random.Random(0))
    assert sorted(i for chunk in chunks for i in chunk) == list(range(100))
    assert max(max(len(rows[i]) for i in c) - min(len(rows[i]) for i in c) for c in chunks) <= 2
    assert chunks != sorted(chunks)


def test_training_separates_right_from_wrong(tmp_path):
    """Guards against flipped labels and a head that is never trained: judgements that hold token 7
    are right."""
    run = Run(Config(device="cpu", dtype="float32", meta_lr=1e-2), str(tmp_path))
    gen = random.Random(0)
    examples = []
    for i in range(400):
        ids = [gen.randrange(10, 40) for _ in range(6)]
        right = i % 2 == 0
        if right:
            ids[gen.randrange(6)] = 7
        examples.append((Judgement(str(i), 0, [0], 0, (3, 4), ids, 0.0, scores=[1]), right))
    model = metarm.from_policy(GPT(GPTConfig(40, 32, 2, 4, 1, 32)))
    assert not run.done("meta", model)
    metarm.train(run, "meta", model, [(j.tokens, right) for j, right in examples] * 12)
    metarm.score(model, [j for j, _ in examples])
    assert auc([right for _, right in examples], [j.meta for j, _ in examples]) > 0.95
    failed = judged(None)
    metarm.score(model, [failed])
    assert failed.meta is None


def test_scores_come_back_in_order(tiny):
    """Guards against numbers that stay sorted by length, or that padding changes: several batches of rows of
    mixed lengths against each row alone."""
    model, gen = metarm.from_policy(tiny()), random.Random(1)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rows = [[gen.randrange(40) for _ in range(gen.randint(1, 40))] for _ in range(300)]
    np.testing.assert_allclose(metarm.logits(model, rows), [metarm.logits(model, [row])[0] for row in rows],
                               rtol=1e-4, atol=1e-4)
