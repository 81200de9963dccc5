"""
The Meta RM: a reward model that reads one judgement (query, responses, principles, critiques and scores) and
says how likely it is to be correct. At inference it reads each of the k samples, and only the better half
votes.

How this differs from the paper: there the Meta RM is trained on the judgements of RFT, and on new ones by the
policy that it will filter. Here it is trained on the judgements of RFT and those that RL has sampled on its
way, by earlier versions of the policy. None are sampled for it alone.

Mind the cost: each sample is read once more, so k filtered samples cost more than k samples.
"""

import random

import torch
import torch.nn.functional as F

from data.judgement import vote_plurality, vote_sum
from model import RewardModel, pad_left

# ----------------------------------------------------------------------------------------
# The filter, its random control, and the rules of a vote

def keep_best(samples, logits, count):
    """The `count` samples with the largest logits, best first; of equal ones the earlier. A sample that does
    not parse has no logit (None), and comes last.

    >>> keep_best(["a", "b", "c", "d"], [0.5, None, 2.0, 0.5], 3)
    ['c', 'a', 'd']
    """
    best_first = sorted(range(len(samples)), key=lambda i: (logits[i] is None, -(logits[i] or 0.0), i))
    return [samples[i] for i in best_first[:count]]


def half(samples):
    """How many samples are kept: half of them, as in the paper."""
    return max(1, len(samples) // 2)


def vote_guided(samples):
    """The paper's guided vote: the sum (Eq 14) over the half of the Judgements that the Meta RM rates best.

    >>> from types import SimpleNamespace as Sample
    >>> vote_guided([Sample(scores=[2, 9], meta=1.5), Sample(scores=[8, 1], meta=-0.5)])
    [2, 9]
    """
    return vote_sum([j.scores for j in keep_best(samples, [j.meta for j in samples], half(samples))])


def vote_random(samples, seed):
    """Its control: the sum over a random half. Anyone can see that a judgement does not parse, so the control
    leaves these out, too."""
    parsed = [j.scores for j in samples if j.scores is not None]
    return vote_sum(random.Random(seed).sample(parsed, min(half(samples), len(parsed))))


# Judgements of one item -> a number (or a pair) for each response. The largest wins.
RULES = {"sum": lambda samples: vote_sum([j.scores for j in samples]),
         "plurality": lambda samples: vote_plurality([j.scores for j in samples]),
         "guided": vote_guided}

# ----------------------------------------------------------------------------------------
# The model: spct.py trains it

def from_policy(policy):
    """A Meta RM that starts with a policy's weights, and a new scalar head."""
    model = RewardModel(policy.cfg).to(policy.device)
    model.gpt.load_state_dict(policy.state_dict())
    return model


def meta_loss(logits, correct):
    """Binary cross-entropy: logits (B,); correct (B,), 1.0 for a correct judgement, else 0.0 -> their mean.

    >>> meta_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.6931)
    """
    return F.binary_cross_entropy_with_logits(logits, correct)


@torch.inference_mode()
def rate(model, groups):
    """Set `meta`, the Meta RM's logit, on every judgement that parses (the others do not vote)."""
    judgements = sorted((j for group in groups for j in group if j.scores is not None),
                        key=lambda j: len(j.prompt) + len(j.ids))            # of similar length: little padding
    for start in range(0, len(judgements), 128):
        batch = judgements[start:start + 128]
        ids, padding = pad_left([j.prompt + j.ids for j in batch], device=model.gpt.device)  # (B, T), (B,)
        for j, logit in zip(batch, model(ids, padding).tolist()):
            j.meta = logit
