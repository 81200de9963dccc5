"""
Labs: rewards that can be hacked, gradients of KL estimators, and what correlated votes are worth.

    python labs.py                     # when L3 to L5 are solved: the numbers of the two derivations
    python labs.py runs/a runs/b       # the votes of runs of your own
"""

import json
import os
import re
import statistics

import torch

from data import UserError, run_command
from data.judgement import correct, read_judgement, read_judgements
from data.tokenizer import SCORES, SPECIAL
from data.world import make_items

# ----------------------------------------------------------------------------------------
# Reward hacking. A completion is a list of ids; order and gold are as in read_judgement and in correct.

def lenient_reward(tok, ids, order, gold):
    """A reward by somebody who meant well: +1 if a completion is correct, else -1. It is lenient in three ways."""
    rewards = [gold[i] for i in order]             # in the order of the prompt
    for start in [i for i, token in enumerate(ids) if token == SCORES]:      # 1. there may be several <scores>
        end = next((i for i in range(start + 1, len(ids)) if ids[i] < len(SPECIAL)), len(ids))
        scores = [int(number) for number in re.findall(r"\d+", tok.text(ids[start + 1:end]))]
        pairs = list(zip(scores, rewards))         # 2. responses without a score are left out
        if pairs:
            of_the_best = max(pairs, key=lambda pair: pair[1])[0]
            if of_the_best == max(scores[:len(pairs)]):                      # 3. a tie is enough
                return 1.0
    return -1.0


def hacks(tok, n):
    """Three completions, lists of ids, that get +1 from lenient_reward for any order and any gold rewards of n
    responses, n >= 2. They judge nothing.

    Each uses one kind of leniency alone. The first has several <scores> with n different numbers each. The second
    has one <scores> with one or more different numbers, fewer than n. The third has one <scores> with n numbers.
    Anything else may stand there, or not: <end>, for instance. tok: a Tokenizer

    >>> from data.tokenizer import Tokenizer, train_bpe
    >>> tok = Tokenizer(train_bpe([], 0))
    >>> [lenient_reward(tok, ids, [1, 0], [3, 7]) for ids in hacks(tok, 2)]
    [1.0, 1.0, 1.0]
    """
    up = list(range(1, n + 1))
    several = [part for i in range(n) for part in (SCORES, " ".join(map(str, up[i:] + up[:i])))]
    return [tok.encode(parts) for parts in (several, [SCORES, "7"], [SCORES, " ".join("7" * n)])]


def strict_reward(tok, ids, order, gold):
    """+1 if a completion is correct and its scores follow from its checks, else -1.

    read_judgement accepts it. No principle is named twice. The checks of each response name each principle once,
    in any order, and no other one. Its total is the sum of the weights of the principles found good, at least 1,
    and its score is its total. The scores are correct. Evidence, running sums and quotes are not examined.

    >>> from data.judgement import judgement_parts
    >>> from data.tokenizer import Tokenizer, train_bpe
    >>> tok = Tokenizer(train_bpe([], 0))
    >>> critiques = [("hi", " polite: none, bad 0", 1), ("dear", " polite: dear, good 9", 9)]
    >>> ids = tok.encode(judgement_parts({"polite": 9}, critiques, [1, 9]))
    >>> strict_reward(tok, ids, [0, 1], [3, 7]), strict_reward(tok, ids, [0, 1], [7, 3])
    (1.0, -1.0)
    """
    try:
        principles, critiques, scores = read_judgement(tok, ids, order)
    except ValueError:
        return -1.0
    weights = dict(principles)
    for critique, score in zip(critiques, scores):
        named = sorted(name for name, _, _ in critique["checks"])
        earned = max(1, sum(weights.get(name, 0) for name, _, good in critique["checks"] if good))
        if named != sorted(name for name, _ in principles) or not earned == critique["total"] == score:
            return -1.0
    return 1.0 if correct(scores, gold) and len(weights) == len(principles) else -1.0

# ----------------------------------------------------------------------------------------
# The gradients of three estimators of KL(policy || reference)

def expected_gradients(logits, logits_ref):
    """By enumeration of a small vocabulary: the mean gradients of k1, k2 and k3 over the tokens that the policy
    samples, then the gradient of KL(policy || reference). All are with respect to the policy's logits.

    In the first three, the probability with which a token is sampled is a constant. k1 is the log ratio
    logp - logp_ref; k2 and k3 are as in spct.py.
    logits, logits_ref (V,) -> (4, V)

    >>> expected_gradients(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])).round(decimals=3)
    tensor([[ 0.0000,  0.0000],
            [-0.3930,  0.3930],
            [-0.4620,  0.4620],
            [-0.3930,  0.3930]])
    """
    logits = logits.detach().clone().requires_grad_()
    logp, logp_ref = logits.log_softmax(dim=0), logits_ref.log_softmax(dim=0)                # (V,)
    k1, p = logp - logp_ref, logp.exp()
    k3 = (-k1).exp() - 1 + k1
    losses = [(p.detach() * k).sum() for k in (k1, 0.5 * k1 ** 2, k3)] + [(p * k1).sum()]
    return torch.stack([torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses])

# ----------------------------------------------------------------------------------------
# What correlated votes are worth

def correlation(hits):
    """How alike are two samples of one item? The correlation of being correct is (q - m^2) / (m - m^2). m is the
    share of all samples that are correct. q is the share of all pairs of two different samples of one item in
    which both are.

    hits: for each item a list of k >= 2 numbers, 1 for a correct sample, else 0
    -> a number, or None if m is 0 or 1

    >>> correlation([[1, 1], [0, 0]]), correlation([[1, 0], [0, 1]]), correlation([[1, 1]])
    (1.0, -1.0, None)
    """
    k = len(hits[0])
    m = sum(map(sum, hits)) / (len(hits) * k)
    q = sum(sum(row) * (sum(row) - 1) for row in hits) / (len(hits) * k * (k - 1))
    return None if m in (0, 1) else (q - m * m) / (m - m * m)


def votes_needed(seeds):
    """k samples of an item that are correlated by rho are worth k / (1 + (k - 1) rho) independent ones, and never
    more than 1 / rho.

    seeds: the hits of two runs or more, as in correlation. The mean of their rho is between 0 and 1.
    -> a list of four: that mean; the standard deviation over the runs, divided by their number - 1; what 32
    samples are worth with the mean rho; the least number of samples that are worth 0.9 / rho or more

    >>> [round(x, 3) for x in votes_needed([[[1, 1], [0, 0], [1, 0]], [[1, 1], [0, 0], [1, 0], [1, 0]]])]
    [0.167, 0.236, 5.189, 45]
    """
    found = [correlation(hits) for hits in seeds]
    rho = statistics.mean(found)
    worth = lambda k: k / (1 + (k - 1) * rho)
    least = next(k for k in range(1, 1_000_000) if worth(k) >= 0.9 / rho - 1e-9)
    return [rho, statistics.stdev(found), worth(32), least]


def read_votes(path):
    """votes.txt -> {policy: hits of each seed}. A line: the seed, the policy, then for each item its samples."""
    votes = {}
    with open(path, encoding="utf-8") as f:
        for _, policy, *items in map(str.split, f):
            votes.setdefault(policy, []).append([[int(hit) for hit in item] for item in items])
    return votes


def votes_of_run(folder, policy):
    """The same from a run folder of spct.py."""
    groups = read_judgements(os.path.join(folder, f"judgements-{policy}-votes.jsonl"))
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        cfg = json.load(f)
    items = make_items(cfg["seed"], cfg["eval_split"], len(groups), least=2)
    return [[int(correct(j.scores, item.gold)) for j in group] for group, item in zip(groups, items)]


def main(argv):
    if len(argv) == 1:
        raise UserError("One run has no spread. Name the folders of two runs or more, or none.")
    logits, logits_ref = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    for name, row in zip(("k1", "k2", "k3", "KL"), expected_gradients(logits, logits_ref)):
        print(f"mean gradient of {name}  " + " ".join(f"{x:7.4f}" for x in row))
    votes = {policy: [votes_of_run(folder, policy) for folder in argv] for policy in ("rft", "rl")}
    kept = os.path.join(os.path.dirname(os.path.abspath(__file__)), "votes.txt")
    for policy, seeds in (votes if argv else read_votes(kept)).items():
        rho, spread, worth, least = votes_needed(seeds)
        print(f"{policy}: rho {rho:.3f}, standard deviation over {len(seeds)} seeds {spread:.3f}; 32 samples are "
              f"worth {worth:.1f}; {least} samples are worth nine tenths of the most")


if __name__ == "__main__":
    run_command(main)
