"""
Right but unusual solutions, each as what a student might hand in: name -> (problem, source).

selfcheck.py grades each of them inside the reference submission, confined: it gets full points.
"""

VOTE_SUM = """
def vote_sum(ballots):
    {0}
    voters = [scores for scores in ballots if scores is not None]
    return [sum(column) for column in zip(*voters)] if voters else None
"""
# What torch, numpy and Python load only when it is needed.
LAZY = {
    "prints a tensor": "import torch; print(torch.rand(3))",
    "a tensor in an f-string": "import torch; f'{torch.rand(3):}' and f'{torch.rand(1).item():.2f}'",
    "torch.testing": "import torch; torch.testing.assert_close(torch.ones(2), torch.ones(2))",
    "torch.func": "import torch; torch.func.grad(lambda x: x ** 2)(torch.tensor(2.0))",
    "gradcheck": "import torch; x = torch.ones(2, dtype=torch.float64, requires_grad=True); "
                 "torch.autograd.gradcheck(lambda x: x ** 2, x)",
    "an optimizer": "import torch; x = torch.nn.Parameter(torch.ones(2)); x.sum().backward(); "
                    "torch.optim.SGD([x], 0.1).step()",
    "masked arrays": "import numpy as np; np.ma.masked_array([1, 2], [0, 1]).sum()",
    "numpy.fft": "import numpy as np; np.fft.fft([1, 2])",
    "graphlib": "import graphlib; list(graphlib.TopologicalSorter({1: [2]}).static_order())",
    "codecs": "b'\\x81'.decode('cp437'); b'a'.decode('unicode_escape')",
    "pandas is not there": "\n    try:\n        import pandas\n    except ImportError:\n        pandas = None",
    "prints a lot": "print('x' * 1_000_000)",
    "warns": "import warnings; warnings.warn('think again')",
    "a thread that ends": "import threading; t = threading.Thread(target=len, args=([],)); t.start(); t.join()",
    "a temporary file": "import tempfile; tempfile.TemporaryFile().write(b'x')",
    "seeds the generators": "import random, torch; random.seed(0); torch.manual_seed(0)",
}
HONEST = {name: ("P17", VOTE_SUM.format(line)) for name, line in LAZY.items()} | {
    "a star import": ("P17", """
from math import *


def vote_sum(ballots):
    voters = [scores for scores in ballots if scores is not None]
    return [int(fsum(column)) for column in zip(*voters)] if voters else None
"""),
    "an import that may fail": ("P17", """
try:
    import numba_that_is_not_there as fast
except ImportError:
    fast = None


def vote_sum(ballots):
    voters = [scores for scores in ballots if scores is not None and fast is None]
    return [sum(column) for column in zip(*voters)] if voters else None
"""),
    "a table that a loop fills": ("P1", """
WORDS = {}
for _good, _word in ((True, "good"), (False, "bad")):
    WORDS[_good] = _word


def checks_text(checks, weights=None):
    text, total = [], 0
    for name, evidence, good in checks:
        total += weights[name] if weights and good else 0
        text.append(f" {name}:" + (f" {evidence}," if evidence else "") + f" {WORDS[bool(good)]}"
                    + (f" {total}" if weights else ""))
    return "".join(text)
"""),
    "a helper annotated with a class below": ("P17", """
def voters_of(ballots, judgement: "Judgement" = None):
    return [scores for scores in ballots if scores is not None]


def vote_sum(ballots):
    voters = voters_of(ballots)
    return [sum(column) for column in zip(*voters)] if voters else None
"""),
    "a cached helper and a lambda": ("P18", """
import functools


@functools.lru_cache(maxsize=None)
def share(count):
    return Fraction(1, count)


best = lambda scores: [i for i, score in enumerate(scores) if score == max(scores)]


def vote_plurality(ballots):
    sums = vote_sum(ballots)
    votes = [Fraction(0) for _ in sums or []]
    for scores in filter(None, ballots):
        for i in best(scores):
            votes[i] += share(len(best(scores)))
    return sums and list(zip(votes, sums))
"""),
    "a class with a method": ("P17", """
class Counter:
    def __init__(self, ballots):
        self.voters = [scores for scores in ballots if scores is not None]

    def total(self):
        return [sum(column) for column in zip(*self.voters)] or None


def vote_sum(ballots):
    return Counter(ballots).total()
"""),
    "a tuple for a list": ("P17", """
def vote_sum(ballots):
    voters = [scores for scores in ballots if scores is not None]
    return tuple(map(sum, zip(*voters))) if voters else None
"""),
    "numbers of numpy": ("P17", """
def vote_sum(ballots):
    import numpy as np
    voters = [scores for scores in ballots if scores is not None]
    return list(np.sum(voters, axis=0)) if voters else None
"""),
    "Fractions": ("P17", """
def vote_sum(ballots):
    voters = [scores for scores in ballots if scores is not None]
    return [sum(map(Fraction, column)) for column in zip(*voters)] if voters else None
"""),
    "named tuples": ("P18", """
from typing import NamedTuple


class Votes(NamedTuple):
    votes: float
    total: int


def vote_plurality(ballots):
    sums = vote_sum(ballots)
    if sums is None:
        return None
    votes = [Fraction(0)] * len(sums)
    for scores in ballots:
        for i, score in enumerate(scores or []):
            if score == max(scores):
                votes[i] += Fraction(1, scores.count(max(scores)))
    return [Votes(float(v), total) for v, total in zip(votes, sums)]
"""),
    "an ordered dict": ("P2", """
from collections import Counter, OrderedDict


def train_bpe(texts, vocab_size):
    chunks = Counter(chunk.encode() for text in texts for chunk in re.findall(PATTERN, text))
    words = {chunk: [bytes([b]) for b in chunk] for chunk in chunks}
    ranks = OrderedDict((bytes([b]), len(SPECIAL) + b) for b in range(256))
    while len(SPECIAL) + len(ranks) < vocab_size:
        pairs = Counter()
        for chunk, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += chunks[chunk]
        if not pairs:
            break
        most = max(pairs.values())
        a, b = min(pair for pair, count in pairs.items() if count == most)
        ranks[a + b] = len(SPECIAL) + len(ranks)
        for chunk, parts in words.items():
            merged = []
            for part in parts:
                if merged and merged[-1] == a and part == b:
                    merged[-1] = a + b
                else:
                    merged.append(part)
            words[chunk] = merged
    return ranks
"""),
    "an int for a float": ("P22", """
def tie_broken(scores, gold):
    if scores is None:
        return 1 / len(gold)
    best = gold.index(max(gold))
    if scores[best] < max(scores):
        return 0
    return 1 if scores.count(max(scores)) == 1 else 1 / scores.count(max(scores))
"""),
    "float64": ("P14", """
def group_advantages(rewards):
    x = rewards.double()
    std = x.std(dim=1, keepdim=True, unbiased=False)
    return torch.where(std > 1e-9, (x - x.mean(dim=1, keepdim=True)) / std.clamp(min=1e-9), 0.0)
"""),
    "in place, on a copy": ("P14", """
def group_advantages(rewards):
    rewards = rewards.clone()
    rewards -= rewards.mean(dim=1, keepdim=True)
    std = rewards.square().mean(dim=1, keepdim=True).sqrt()
    rewards *= std > 1e-6
    rewards /= std.clamp(min=1e-6)
    return rewards
"""),
    "loops": ("P15", """
def kl_k2(logp, logp_ref):
    return torch.stack([(a - b) * (a - b) / 2 for a, b in zip(logp, logp_ref)])
"""),
    "a parameter with the name of a broken helper": ("P20", """
def meta_loss(logits, correct):
    broken = torch.nn.functional.softplus(logits) - logits * correct
    return broken.mean()


broken = 1 / 0
"""),
}
