"""
The Meta RM: a scalar reward model that reads one judgement (query, responses, principles, critique and
scores) and says how likely it is to be right. At inference each of the k samples is scored, the best
k_meta of them are kept, and only those vote: a filter, not a weight.

Trained with binary cross-entropy; the label is the rule of Eq 10. Data, as in the paper: RFT's
judgements without a hint, right and wrong ones, plus judgements of the policy that it is to guide.

Mind the cost: guided votes spend one more forward pass over each sample, so k votes and k guided votes
are not equal compute.
"""

import contextlib
import random

import numpy as np
import torch
import torch.nn.functional as F

from data.judgement import plurality, vote
from data.world import seed_of
from model import Optimizer, RewardModel, pad_rows, trapezoid
from parallel import join, processes, share

# ----------------------------------------------------------------------------------------
# Rules of the vote, and the matched random control of the guided one

def keep_best(ballots, metas, k_meta):
    """The ballots (a sample's scores, or the sample) that the Meta RM likes best, k_meta of them; the earlier
    one on ties. Samples that do not parse have meta None: they come last.

    >>> keep_best(["a", "b", "c", "d"], [0.5, None, 2.0, 0.5], 3)
    ['c', 'a', 'd']
    """
    best_first = sorted(range(len(ballots)), key=lambda i: (metas[i] is None, -(metas[i] or 0.0), i))
    return [ballots[i] for i in best_first[:k_meta]]


def guided_vote(samples, k_meta):
    """Vote (Eq 14) of the best k_meta of some judgements, k_meta <= k."""
    return vote(keep_best([j.scores for j in samples], [j.meta for j in samples], k_meta))


def random_vote(samples, k_meta, seed):
    """The control: vote of a random k_meta of those that parse (to leave out the others takes no Meta RM)."""
    parsed = [j.scores for j in samples if j.scores is not None]
    return vote(random.Random(seed).sample(parsed, min(k_meta, len(parsed))))


def half(samples):
    """The paper's k_meta."""
    return max(1, len(samples) // 2)


# Judgements of one item -> a number for each response, the largest wins. Sum and filter are the paper's.
RULES = {"sum": lambda samples: vote([j.scores for j in samples]),
         "plurality": lambda samples: plurality([j.scores for j in samples]),
         "weighted": lambda samples: plurality([j.scores for j in samples], [j.confidence for j in samples]),
         "guided": lambda samples: guided_vote(samples, half(samples))}
PLAIN = ("sum", "plurality", "weighted")           # those that need no Meta RM

# ----------------------------------------------------------------------------------------
# Training

BATCH = 32                                         # judgements a step


def meta_loss(logit, right):
    """Binary cross-entropy, summed over the batch: logit (B,), right (B,) 1.0 or 0.0 -> a number.

    >>> meta_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(1.3863)
    """
    return F.binary_cross_entropy_with_logits(logit, right, reduction="sum")


def bradley_terry(better, worse):
    """The paper's Eq 4, the loss of scalar reward models (experiments/baselines.py): the mean of
    -log sigmoid(better - worse). better, worse (B,): what the model gives to the better and to the worse
    response of each pair.

    >>> bradley_terry(torch.tensor([2.0, 7.0]), torch.tensor([2.0, 7.0]))
    tensor(0.6931)
    """
    return F.softplus(worse - better).mean()


def from_policy(policy):
    """A Meta RM with the weights of a policy, to start from, and a new scalar head."""
    model = RewardModel(policy.cfg).to(policy.wte.weight.device)
    model.gpt.load_state_dict(policy.state_dict())
    return model


def batches_by_length(rows, size, rng):
    """Indices of rows in batches of like length (little padding), the batches in random order."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rng.random()))
    chunks = [order[i:i + size] for i in range(0, len(order), size)]
    rng.shuffle(chunks)
    return chunks


def train(run, unit, model, examples):
    """Binary cross-entropy on examples, (ids, right) pairs, each seen once."""
    rows, labels = zip(*examples)
    opt = Optimizer(model, run.cfg.meta_lr, run.dtype)
    batches = batches_by_length(rows, BATCH, random.Random(seed_of(run.cfg.seed, unit)))
    batches = [batch for batch in batches if len(batch) >= processes()]      # each process needs a row
    for step in run.steps(unit, len(batches)):
        batch = share(batches[step])
        ids, length = pad_rows([rows[i] for i in batch], device=run.device)          # (B, T), (B,)
        right = torch.tensor([float(labels[i]) for i in batch], device=run.device)   # (B,)
        with run.autocast():
            logit = model(ids, length)                                               # (B,)
        loss = meta_loss(logit, right) / len(batches[step])
        loss.backward()
        agree = ((logit > 0) == (right > 0.5)).float().sum() / len(batches[step])
        metrics = opt.step(trapezoid(step, len(batches)), loss=loss, agree=agree)
        run.log(unit, step=step, **metrics)
    run.finish(unit, model)

# ----------------------------------------------------------------------------------------
# Scoring

@torch.inference_mode()
def logits(model, rows, autocast=contextlib.nullcontext()):
    """The model's number for each row of ids, in their order. autocast: a context that sets the precision."""
    device = model.head.weight.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    mine, found = share(order), []
    for start in range(0, len(mine), 128):
        chunk = [rows[i] for i in mine[start:start + 128]]
        ids, length = pad_rows(chunk, device=device)                                 # (B, T), (B,)
        with autocast:
            found += model(ids, length).tolist()
    by_row = dict(zip(order, join(found)))
    return [by_row[i] for i in range(len(rows))]


def score(model, judgements, autocast=contextlib.nullcontext()):
    """Set `meta`, the Meta RM's logit, on every judgement that parses (the others never vote)."""
    parsed = [j for j in judgements if j.scores is not None]
    for j, meta in zip(parsed, logits(model, [j.tokens for j in parsed], autocast)):
        j.meta = meta

# ----------------------------------------------------------------------------------------
# How good is it?

def auc(right, scores):
    """Chance that a right judgement is scored above a wrong one, ties as half; None without both kinds.
    right: booleans, scores: as many numbers -> a float.

    >>> auc([True, False, False], [2.0, 1.0, 2.0])
    0.75
    """
    right, scores = np.asarray(right, bool), np.asarray(scores, float)
    good, bad = scores[right], np.sort(scores[~right])
    if len(good) == 0 or len(bad) == 0:
        return None
    below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + upto).mean() / 2 / len(bad))


def auc_within(groups):
    """Mean AUC inside items that have both kinds. groups: one (right, scores) pair an item. The pooled AUC
    also rewards knowing which items are easy, which is of no use to a filter. None if no item has both.

    >>> auc_within([([True, False], [2.0, 1.0]), ([True, True], [1.0, 2.0])])
    1.0
    """
    inside = [auc(right, scores) for right, scores in groups]
    inside = [a for a in inside if a is not None]
    return float(np.mean(inside)) if inside else None
