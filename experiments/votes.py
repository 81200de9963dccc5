"""
Which vote is best, how many samples does it take, and what is a Meta RM worth?

    python -m experiments.votes           # three seeds; --quick: a minute, numbers without meaning

The paper sums scores (Eq 14) at T = 0.5, and filters: the half that the Meta RM likes best votes. A sum and a
filter are two of many rules, and the Meta RM's is not the only number that says how far to trust a sample:

- without weights: the sum; a plurality (one vote for the largest score); the sum of scores that are
  standardised within a sample; Borda (a point for each response that is scored lower): the last two tell
  whether a sum loses by the size of scores;
- weights of a plurality: the Meta RM's probability; its log-odds, plus log(n - 1) for n responses, the best
  weight if samples erred independently and evenly (arXiv 2510.13918); and what comes for free: the policy's
  log-probability, the length, a linear probe on its last hidden state (arXiv 2601.22588);
- all of it in one: shares of picks under each weight and margins of scores, combined by a logistic choice
  among the responses, with and without the Meta RM's numbers. What they add to it is what a Meta RM is worth.

The probe is fitted on one half of the validation items, constants and the combination on the other.

Scores need not be read as they are written: "expected" scores take for each verdict the chance that the
policy gave to "good", times the judgement's own weight (arXiv 2503.03064 does so with the tokens of a score;
here a score follows from its verdicts). That takes one more forward pass and no training. Its control, "lots
for ties": a tie is broken at random.

Then, for k samples:

- rho: the correlation of two samples of one item, and k / (1 + (k - 1) rho), the number of independent
  samples that would be worth as much;
- what is left to win: the plurality if each check were true, if the weights were the raters' (what was not
  checked counts as bad), and with each sample weighted by its share of checks that are true. Their control,
  "added up anew": scores that follow from the judge's own checks and weights;
- stop early: draw until the leader is some votes ahead; for each lead, samples drawn and accuracy.

What to look at: rules at few and at many samples, at which temperature (log-probabilities are those of the
tempered distribution: weights are flatter, too); and free numbers beside the Meta RM. But for the tables of
temperatures and of expected scores all samples are drawn at T = 1, where they differ most.
"""

import copy
import functools
import math
import os
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

import report
from data import command
from data.judgement import correct, pick, plurality
from data.world import make_items
from experiments import study
from experiments.baselines import llm_judge, scalar_rm
from experiments.reading import expected
from experiments.study import accuracy, difference, mean, number, overall, trajectories
from metarm import RULES
from model import pad_rows
from report import faithfulness
from run import read_json, write_json

NAME = "votes"
TEMPERATURES = (0.3, 0.5, 0.7, 1.0)
PAPERS = (0.5, "sum")                              # how the paper votes
STAGES = ("rft", "rl")

# ----------------------------------------------------------------------------------------
# Rules: judgements of one item -> a number for each response, the largest wins

def by_sample(score):
    """A rule that adds up score(scores) of the samples that parse."""
    def rule(samples):
        parsed = [j.scores for j in samples if j.scores is not None]
        return np.sum([score(np.array(s, float)) for s in parsed], axis=0).tolist() if parsed else None
    return rule


def weighted(weight):
    """A plurality in which weight(judgement) says what a vote is worth."""
    def rule(samples):
        return plurality([j.scores for j in samples], [weight(j) if j.scores else 0.0 for j in samples])
    return rule


def standardised(scores):
    return (scores - scores.mean()) / (scores.std() or 1.0)


def borda(scores):
    """For each response, how many others are scored lower; half a point if level."""
    beats = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)       # (n, n)
    return beats.sum(axis=1) - 0.5                 # it is level with itself


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


PLAIN = {"sum (Eq 14)": RULES["sum"], "plurality": RULES["plurality"],
         "sum, standardised": by_sample(standardised), "Borda": by_sample(borda)}
GUIDED = {"filter: best half (paper)": RULES["guided"]}
WEIGHTS = {  # name: (weight(constant, judgement), constants to choose from)
    "Meta RM, probability": (lambda c, j: sigmoid(c * j.meta), (0.5, 1, 2)),
    "Meta RM, log-odds": (lambda c, j: c * j.meta + math.log(max(1, len(j.order) - 1)), (0.25, 0.5, 1)),
    "log-probability": (lambda c, j: math.exp(c * j.logp / len(j.ids)), (5, 10, 20, 40)),
    "length": (lambda c, j: len(j.ids) ** c, (0.5, 1, 2, 4)),
    "linear probe": (lambda c, j: sigmoid(c * j.probe), (0.5, 1, 2)),
}
COUNTS = (1, 2, 4, 8, 16, 32, 64)

# ----------------------------------------------------------------------------------------
# Fitting: two convex problems

def fit(loss, size):
    """-> the w (size,) that minimises loss(w) + a little of its length."""
    w = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        opt.zero_grad()
        value = loss(w) + 1e-3 * w.square().sum()
        value.backward()
        return value

    opt.step(closure)
    return w.detach()


@torch.no_grad()
def hidden_states(policy, judgements):
    """The policy's hidden state at the last token of each judgement -> (N, C)."""
    rows, device = [j.tokens for j in judgements], policy.wte.weight.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))             # of like length: little padding
    found = torch.empty(len(rows), policy.cfg.n_embd, dtype=torch.float64)
    for start in range(0, len(rows), 256):
        chunk = order[start:start + 256]
        ids, length = pad_rows([rows[i] for i in chunk], device=device)                      # (B, T), (B,)
        last = torch.arange(len(ids), device=device) * ids.size(1) + length - 1              # (B,)
        found[chunk] = policy(ids, last).cpu().double()                                      # (B, C)
    return found


def fit_probe(states, right):
    """Logistic regression of right (N,) on hidden states (N, C) -> w (C,)."""
    target = torch.tensor(right, dtype=torch.float64)
    return fit(lambda w: F.binary_cross_entropy_with_logits(states @ w, target), states.size(1))


def features(samples, n, weights):
    """What a logistic choice knows of each response: mean score, mean standardised score, share of picks
    without and with each of the weights -> (n, features)."""
    columns = [rule(samples) or [0.0] * n for rule in (PLAIN["sum (Eq 14)"], PLAIN["sum, standardised"])]
    columns = [np.array(c) / len(samples) for c in columns]
    for rule in (RULES["plurality"], *weights):
        votes = np.array(rule(samples) or [0.0] * n)
        columns.append(votes / max(np.abs(votes).sum(), 1e-9))               # log-odds may be negative
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.float64)


def combination(items, groups, k, weights):
    """A rule: the logistic choice among the responses, fitted on these items with k samples each."""
    known = []                                     # items with as many responses together
    for n in sorted({item.n for item in items}):
        some = [(features(g[:k], n, weights), item.best) for g, item in zip(groups, items) if item.n == n]
        known.append((torch.stack([x for x, _ in some]), torch.tensor([best for _, best in some])))
    loss = lambda w: sum(F.cross_entropy(x @ w, best, reduction="sum") for x, best in known) / len(items)
    w = fit(loss, known[0][0].size(2))
    return lambda samples: (features(samples, len(samples[0].order), weights) @ w).tolist()

# ----------------------------------------------------------------------------------------
# One policy of one seed

class Voters:
    """Its judgements of test and validation items; its rules, with what was fitted on the latter."""

    def __init__(self, base, stage):
        self.base, self.stage, self.policy = base, stage, base.policy(stage)
        self.run = base.arm(f"votes {stage}")
        val = make_items(base.seed, "val", len(base.parts["test"]), least=2)
        self.items = {"test": base.parts["test"], "val": val}
        self.usual = base.cfg.temperature
        self.test, self.val = self.judgements("test", base.most), self.judgements("val", max(base.votes))
        self.counts = [k for k in COUNTS if k <= base.most]
        self.probe(len(val) // 2)
        self.items["val"], self.val = val[len(val) // 2:], self.val[len(val) // 2:]
        self.weights = {name: self.best_constant(*choice) for name, choice in WEIGHTS.items()}
        self.rules = {**PLAIN, **GUIDED, **self.weights}

    def judgements(self, split, k, temperature=None):
        """k judgements of each item, with the Meta RM's numbers if T is that of the votes."""
        part = copy.copy(self.base)
        part.parts = self.items
        return trajectories(part, self.run, self.policy, split, k, temperature=temperature or self.usual,
                            meta=None if temperature else self.base.guide(self.stage))[0]

    def greedy(self):
        """One judgement of each test item at T = 0."""
        run = self.base.arm(f"grm-{self.stage}")   # as in the study of baselines
        return trajectories(self.base, run, self.policy, "test", 1, greedy=True)[0]

    def probe(self, count):
        """Set `probe` on each judgement: linear in the policy's last state, fitted on the first `count`
        validation items. The arm's folder keeps the numbers."""
        path, others = self.run.path("probe.json"), sum(self.val[count:] + self.test, [])
        if not os.path.exists(path):
            learned = [(j, item) for g, item in zip(self.val[:count], self.items["val"]) for j in g]
            w = fit_probe(hidden_states(self.policy, [j for j, _ in learned]),
                          [float(correct(j.scores, item.gold)) for j, item in learned])
            write_json(path, (hidden_states(self.policy, others) @ w).tolist())
        for j, logit in zip(others, read_json(path), strict=True):
            j.probe = logit

    def hits(self, rule, k, split="test", groups=None, right=correct):
        """(items,): is the vote of the first k samples right?"""
        groups = groups or (self.test if split == "test" else self.val)
        return np.array([right(rule(g[:k]), i.gold) for g, i in zip(groups, self.items[split])], float)

    def best_constant(self, weight, constants):
        """The rule with the constant that is best on validation items, mean over the numbers of samples."""
        rules = [weighted(functools.partial(weight, c)) for c in constants]
        ks = [k for k in self.counts if 1 < k <= max(self.base.votes)]
        return max(rules, key=lambda rule: np.mean([self.hits(rule, k, "val").mean() for k in ks]))

    def combined(self, k, meta):
        """(items,): the logistic combination, with or without the Meta RM's numbers."""
        weights = [rule for name, rule in self.weights.items() if meta or "Meta RM" not in name]
        return self.hits(combination(self.items["val"], self.val, k, weights), k)

# ----------------------------------------------------------------------------------------
# How independent are samples, and what is left to win?

def correlation(voters):
    """-> rho of two samples of one item being right: (E over pairs - p^2) / (p - p^2), 0 if all are alike."""
    right = np.array([[correct(j.scores, item.gold) for j in g]
                      for g, item in zip(voters.test, voters.items["test"])], float)         # (items, K)
    s, K, p = right.sum(axis=1), right.shape[1], right.mean()
    return ((s * (s - 1)).mean() / (K * (K - 1)) - p ** 2) / (p - p ** 2) if 0 < p < 1 else 0.0


def repaired(j, item, verdicts=False, weights=False):
    """The judgement with scores added up anew from its checks: with true verdicts, with the raters' weights.
    A mere impression stays as it is."""
    if j.scores is None or any(name == "overall" for name, _ in j.principles):
        return j
    scores = []
    for critique, truth in zip(j.critiques, item.truth):
        good = {name: verdict for name, _, verdict in critique["checks"]}
        if verdicts:
            good |= {name: met for name, (met, _) in truth.items()}
        mine = item.weights if weights else dict(map(tuple, j.principles))
        scores.append(max(1, sum(w for name, w in mine.items() if good.get(name))))
    return replace(j, scores=scores)


BOUNDS = {"added up anew": {}, "true verdicts": dict(verdicts=True), "raters' weights": dict(weights=True)}


def bounds(voters, k):
    """-> {what is repaired: (items,)} of a plurality of k, last: weighted by each sample's true checks."""
    items, found = voters.items["test"], {}
    for name, repairs in BOUNDS.items():
        groups = [[repaired(j, item, **repairs) for j in g] for g, item in zip(voters.test, items)]
        found[name] = voters.hits(RULES["plurality"], k, groups=groups)
    weight = lambda j, item: max(0.001, faithfulness(j, item)[1]) if j.scores else 0   # a vote of one counts
    true = [plurality([j.scores for j in g[:k]], [weight(j, item) for j in g[:k]])
            for g, item in zip(voters.test, items)]
    found["weighted by true checks"] = np.array([correct(v, i.gold) for v, i in zip(true, items)], float)
    return found

# ----------------------------------------------------------------------------------------
# Scores read as expectations (reading.py)

def tied(scores, gold):
    """Is there a vote that names no response? A measure, as correct and coin_flip are."""
    return scores is not None and pick(scores) is None


def read_anew(seeds, judged):
    """judged: for each of the Voters its groups of judgements -> the same with expected scores."""
    return [expected(v.policy, v.base.tok, groups) for v, groups in zip(seeds, judged)]


def expected_table(bases, found):
    """Accuracies with scores as they are written, with lots for ties, and with expected scores."""
    most = bases[0].votes[0]
    votes = [(f"{name}, k = {k}", name, k) for k in sorted({2, 4, most}) if k <= most
             for name in ("sum", "weighted")]
    rows = [["stage", "judgements", "ties", "as written", "lots for ties", "expected",
             "expected, less written", "expected, less lots"]]
    for stage, seeds in found.items():
        drawn = [v.judgements("test", max(bases[0].votes), PAPERS[0]) for v in seeds]
        for written, ways in [([v.greedy() for v in seeds], [("greedy", "sum", 1)]),
                              ([[g[:most] for g in groups] for groups in drawn], votes)]:
            anew = read_anew(seeds, written)
            for label, name, k in ways:
                ties, hits, lots, more = (
                    [v.hits(RULES[name], k, groups=g, right=measure) for v, g in zip(seeds, judged)]
                    for judged, measure in [(written, tied), (written, correct), (written, report.coin_flip),
                                            (anew, correct)])
                rows.append([stage, label, f"{mean(ties):.3f}", *map(accuracy, (hits, lots, more)),
                             difference(more, hits), difference(more, lots)])
    return rows


def others_table(bases, seeds):
    """The RL policy's greedy judgements, read in both ways, against other judges: means over subsets."""
    rows, greedy = [["greedy after RL, less", "as written", "expected"]], [v.greedy() for v in seeds]
    answers = lambda groups: {"test": {"greedy": {"scores": [g[0].scores for g in groups]}}}
    ways = [overall(bases, list(map(answers, way)), "greedy") for way in (greedy, read_anew(seeds, greedy))]
    eight = f"probability@{bases[0].votes[0]}"
    for name, system, mode in [("scalar RM", scalar_rm, "greedy"), ("LLM-as-a-Judge", llm_judge, "greedy"),
                               (f"LLM-as-a-Judge, {eight}", llm_judge, eight)]:
        theirs = overall(bases, [system(base) for base in bases], mode)
        rows.append([name, *(difference(way, theirs) for way in ways)])
    return rows

# ----------------------------------------------------------------------------------------
# Stop early

def stop_early(samples, lead, most):
    """Draw until one response is `lead` picks ahead, at most `most` samples -> samples drawn, plurality."""
    for k in range(1, most + 1):
        votes = plurality([j.scores for j in samples[:k]])
        if votes and (np.diff(sorted(votes)[-2:])[0] > lead - 0.01 or k == most):
            return k, votes
    return most, None


def stopped(voters, lead, split, most):
    """-> samples drawn (items,), right (items,)."""
    groups = voters.test if split == "test" else voters.val
    drawn, votes = zip(*(stop_early(g, lead, most) for g in groups))
    right = [correct(v, item.gold) for v, item in zip(votes, voters.items[split])]
    return np.array(drawn, float), np.array(right, float)


def stop_table(bases, found):
    """found: {stage: [Voters of each seed]}"""
    most = max(bases[0].votes)
    rows = [["stage", "lead", "samples, mean", "accuracy", f"against all {most}", "validation, against all"]]
    for stage, seeds in found.items():
        full = {split: [v.hits(RULES["plurality"], most, split) for v in seeds] for split in ("test", "val")}
        for lead in (1, 2, 3, 4, 6, 8):
            drawn, right = zip(*(stopped(v, lead, "test", most) for v in seeds))
            on_val = mean([stopped(v, lead, "val", most)[1] for v in seeds]) - mean(full["val"])
            rows.append([stage, str(lead), f"{mean(drawn):.1f}", accuracy(right),
                         difference(right, full["test"]), f"{on_val:+.3f}"])
    return rows

# ----------------------------------------------------------------------------------------
# Tables and figure

def rule_table(found):
    rows = [["stage", "rule", *(f"k = {k}" for k in found["rl"][0].counts)]]
    for stage, seeds in found.items():
        for name in seeds[0].rules:
            rows.append([stage, name, *(accuracy([v.hits(v.rules[name], k) for v in seeds])
                                        for k in seeds[0].counts)])
    return rows


def worth_table(found):
    """What the Meta RM adds to what comes for free."""
    rows = [["stage", "k", "plurality", "free numbers combined", "and the Meta RM's", "what it adds",
             "against the plurality"]]
    for stage, seeds in found.items():
        for k in [k for k in seeds[0].counts if 1 < k <= max(seeds[0].base.votes)]:
            free, all_ = ([v.combined(k, meta) for v in seeds] for meta in (False, True))
            plain = [v.hits(RULES["plurality"], k) for v in seeds]
            rows.append([stage, str(k), *map(accuracy, (plain, free, all_)), difference(all_, free),
                         difference(all_, plain)])
    return rows


def temperature_tables(bases, found):
    """-> rows of accuracies, rows of differences from the paper's vote, {rule and k: [accuracy at each T]} of
    the RL policy."""
    ks = (4, 8, max(bases[0].votes)) if not bases[0].quick else bases[0].votes
    rules = {name: RULES[name] for name in ("sum", "plurality", "weighted")}
    names = [f"{name}, k = {k}" for name in rules for k in ks]
    rows, against, curves = [["stage", "T", "one sample", *names]], [["stage", "T", *names]], {}
    for stage, seeds in found.items():
        cells = {}                                 # T: {(rule, k): hits of each seed}
        for T in TEMPERATURES:
            groups = [v.test if T == v.usual else v.judgements("test", max(ks), T) for v in seeds]
            one = [np.array([np.mean([correct(j.scores, i.gold) for j in g[:max(ks)]])
                             for g, i in zip(gs, v.items["test"])]) for gs, v in zip(groups, seeds)]
            cells[T] = {(name, k): [v.hits(rule, k, groups=g) for v, g in zip(seeds, groups)]
                        for name, rule in rules.items() for k in ks}
            rows.append([stage, str(T), accuracy(one), *map(accuracy, cells[T].values())])
        for T, by_rule in cells.items():
            against.append([stage, str(T), *("" if (T, name) == PAPERS else
                                             difference(hits, cells[PAPERS[0]][PAPERS[1], k])
                                             for (name, k), hits in by_rule.items())])
        if stage == "rl":
            curves = {f"{name}, k = {k}": [mean(cells[T][name, k]) for T in TEMPERATURES]
                      for name in rules for k in ks}
    return rows, against, curves


def bound_table(bases, found):
    ks = (1, *bases[0].votes)
    names = [*BOUNDS, "weighted by true checks"]
    rows = [["stage", "rho", f"samples that {ks[-1]} are worth",
             *(f"k = {k}, {name}" for k in ks for name in names)]]
    for stage, seeds in found.items():
        rho = [correlation(v) for v in seeds]
        limits = [[bounds(v, k) for v in seeds] for k in ks]
        rows.append([stage, number(rho, ".2f"), number([ks[-1] / (1 + (ks[-1] - 1) * r) for r in rho], ".1f"),
                     *(accuracy([b[name] for b in each]) for each in limits for name in names)])
    return rows


def run(bases):
    found = {stage: [Voters(base, stage) for base in bases] for stage in STAGES}
    by_temperature, against, curves = temperature_tables(bases, found)
    seeds, shown = found["rl"], ["sum (Eq 14)", "plurality", *GUIDED, *WEIGHTS]
    ks = seeds[0].counts
    by_k = {name: [mean([v.hits(v.rules[name], k) for v in seeds]) for k in ks] for name in shown}

    def figure(path):
        with report.canvas(path, 1, 2, width=11, height=5) as (left, beside):
            for name, values in by_k.items():
                left.plot(ks, values, "o-", ms=3, label=name)
            left.set(xscale="log", xticks=ks, xticklabels=ks, xlabel="samples k",
                     ylabel="strict accuracy, after RL")
            for name, values in curves.items():
                beside.plot(TEMPERATURES, values, "o-", ms=3, label=name)
            beside.set(xlabel="temperature of the samples")

    tables = {"Rules": rule_table(found), "What a Meta RM is worth": worth_table(found),
              "Temperature": by_temperature,
              f"Against the paper's vote, a {PAPERS[1]} of as many at T = {PAPERS[0]}": against,
              f"Scores read as expectations, votes at T = {PAPERS[0]}": expected_table(bases, found),
              "The same against other judges": others_table(bases, found["rl"]),
              "What is left to win": bound_table(bases, found), "Stop early": stop_table(bases, found)}
    return tables, {"k": ks, "by_k": by_k, "T": TEMPERATURES, "by_T": curves}, figure


FINDINGS = """
What was seen in three runs (their training, float32, on an Intel Xeon, the samples on an AMD EPYC in
processes of one thread):

- **At T = 1 a sum loses to a plurality**, from four samples on, after RFT and after RL. The size of scores
  explains a part of it: from eight samples on (after RL from four) a sum of standardised scores and Borda
  lie between the two. Two samples often tie; a weight decides them.
- **T = 1 is too hot for sums, and for few votes.** After RL a sum of 4 is at .845 at T = 1, at .906 at the
  paper's T = 0.5, a weighted plurality at .901 and .919: at T = 1 it is no better than the paper's own 4, a
  sum at T = 0.5 (-.005, noise). At T = 0.5 a plurality is: +.011 with 4 samples, +.010 with 8, weighted
  +.013 and +.009; after RFT, weighted, +.097, +.094 and, with 32, +.045. From 0.3 to 0.7 all is about level
  after RL, but for a sum of 4, best at 0.3; after RFT a sum of 4 or 8 is, too. After RL neither rule nor T
  matters with 32, but for a sum at T = 1. This was seen here first, and then asked of validation items of
  seeds 1 and 2, which said the same of 2, 4 and 8 weighted votes (T = 1: .856, .907, .920; 0.5: .909, .931,
  .928): so the default draws votes at the paper's T.
- **Weights matter before RL and with few samples**: they make a plurality of 8 better by .07 to .09 after
  RFT, by about .01 after RL. Which weight hardly matters: from four samples on the Meta RM's probability or
  log-odds, the policy's log-probability, a linear probe on its own state, even the length are within .02 of
  each other.
- **A Meta RM adds nothing to what comes for free**: votes, log-probability, length and the probe, combined
  with and without it, are level at every number of samples, after RFT and after RL. Nor is the paper's
  filter a good use of it: from four samples on a weight by its probability is ahead of the filter by .05 to
  .07 after RFT.
- **Scores read as expectations break ties, no better than lots**: greedy judgements, of which .065 tie after
  RL, gain .031 there and .029 after RFT; lots gain as much (.003 less and .004 more, noise). Sums gain after
  RFT (of 8 .025, .017 more than by lots), weighted votes of 8 lose .011. So read, the greedy judge is level
  with LLM-as-a-Judge (+.009, and -.002 against its eight probabilities, both noise), to which it loses by
  .023 and .034 as written; with lots it is level, too (the chapter before).
- **Samples repeat each other**: two of one item are right together more often than by chance (rho .23 after
  RL, .07 after RFT), so that 32 of them are worth four independent ones (ten).
- **What is left to win are checks**: with true verdicts 32 samples would be right in .98, with the raters'
  weights and the checks as they are in .94, as now. After RFT it is both (.87, .85; with totals added up
  anew .79).
- **Stop early**: after RL drawing until one response is three picks ahead takes 5.4 samples in the mean, in
  place of 32, at -.007 (noise), six picks ahead 10.8 at -.002. After RFT 16 are needed for as much.
"""


if __name__ == "__main__":
    command(lambda argv: study.main(sys.modules[__name__], argv))
