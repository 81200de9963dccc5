"""
Judgements read in another way: what the policy gave to its words, in place of the words that it wrote.

A score that is written is a number of ten, and two of them are often equal. The probabilities behind it are
not, and take one more forward pass: those of the index that an LLM-as-a-Judge names (baselines.py), and of
the verdicts that make up our judge's scores (votes.py).
"""

from dataclasses import replace

import numpy as np
import torch

from data.tokenizer import CHECKS, SCORES, TOTAL
from model import pad_rows

# ----------------------------------------------------------------------------------------
# The index of the best response

@torch.inference_mode()
def index_probability(policy, tok, group):
    """The mean probability, over samples that parse, that the index names response 0 of a pair."""
    parsed = [j for j in group if j.scores is not None]
    if not parsed:
        return 0.5
    device = policy.wte.weight.device
    rows = [j.tokens[:len(j.prompt) + j.ids.index(SCORES) + 1] for j in parsed]
    ids, length = pad_rows(rows, device=device)                                  # (B, T), (B,)
    last = policy(ids, torch.arange(len(parsed), device=device) * ids.size(1) + length - 1)  # (B, C)
    one_or_two = tok.encode(["12"])                # digits are tokens: the ids of 1 and of 2
    p = policy.logits(last)[:, one_or_two].softmax(dim=1).tolist()                           # (B, 2)
    return float(np.mean([slots[j.order.index(0)] for slots, j in zip(p, parsed)]))

# ----------------------------------------------------------------------------------------
# Scores as expectations

def with_chances(j, chances):
    """The judgement with expected scores: the sum of its weights, each times the chance of "good" in place of
    the verdict. chances: one a verdict, in the order written. One without any stays as it is."""
    checks = [(i, name) for i in j.order for name, _, _ in j.critiques[i]["checks"]] if chances else []
    if not checks or len(checks) != len(chances):
        return j
    weights, scores = dict(map(tuple, j.principles)), [0.0] * len(j.order)
    for (i, name), chance in zip(checks, chances):
        scores[i] += weights.get(name, 0) * chance
    return replace(j, scores=scores)


def verdict_places(j, verdicts):
    """Where the verdicts of a judgement stand in its tokens: between <checks> and <total>. Of one that does
    not parse, nowhere."""
    places, inside = [], False
    for t, token in enumerate(j.ids if j.scores is not None else [], len(j.prompt)):
        inside = token == CHECKS or inside and token != TOTAL
        places += [t] if inside and token in verdicts else []
    return places


@torch.inference_mode()
def expected(policy, tok, groups):
    """Groups of judgements -> the same with expected scores. A chance is that of " good" against " bad" at
    T = 1, whatever T the judgement was drawn at."""
    verdicts, device, judgements = tok.encode([" good", " bad"]), policy.wte.weight.device, sum(groups, [])
    order = sorted(range(len(judgements)), key=lambda i: len(judgements[i].tokens))          # little padding
    for start in range(0, len(order), 128):
        chunk = order[start:start + 128]
        ids, _ = pad_rows([judgements[i].tokens for i in chunk], device=device)              # (B, T)
        where = [verdict_places(judgements[i], verdicts) for i in chunk]
        # each verdict is predicted at the token before it
        at = [b * ids.size(1) + t - 1 for b, places in enumerate(where) for t in places]
        states = policy(ids, torch.tensor(at, dtype=torch.long, device=device))              # (N, C)
        chances = iter(policy.logits(states)[:, verdicts].softmax(dim=1)[:, 0].tolist())     # of " good"
        for i, places in zip(chunk, where):
            judgements[i] = with_chances(judgements[i], [next(chances) for _ in places])
    left = iter(judgements)
    return [[next(left) for _ in g] for g in groups]
