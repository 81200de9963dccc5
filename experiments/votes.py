"""
Which vote is best, and how many samples does it take?

The paper sums scores (Eq 14), or sums those of the half that the Meta RM rates best. These are two of many rules:

- without weights: the sum; a plurality; a Borda count (for each response, how many others are scored lower);
  the sum of scores that are standardised within a sample;
- a sum and a plurality of the half of the samples that the Meta RM rates best;
- a plurality with weights: the probability that the Meta RM gives; the policy's own log-probability of the
  judgement, for each token, at the temperature of the samples; its length (longer ones count more); a linear
  probe, which is a logistic regression on the policy's last hidden state;
- all in one: a logistic regression on the votes of all rules chooses the response. It is compared with the single
  rule that is best on validation items.

The probe is fitted on one half of the validation items. The constants of the weights and the regression that
combines all rules are fitted on the other half. All results are of test items.

Beside the rules: how much the samples of an item are alike (rho), stopping early, and the temperature.
"""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from data import run_command
from experiments import study
from model import pad_left

POLICIES = ("rft", "rl")
COUNTS = (1, 2, 4, 8, 16, 32)
TEMPERATURES = (0.3, 0.5, 0.7, 1.0)
CONSTANTS = {"Meta RM": (0.5, 1, 2), "log-probability": (2, 5, 10, 20), "length": (1, 2, 4), "probe": (0.5, 1, 2)}

# ----------------------------------------------------------------------------------------
# One item's samples as arrays

class Samples:
    """k judgements of an item with n responses; those that do not parse have weight 0."""

    def __init__(self, group, item):
        self.gold = int(np.argmax(item.gold))
        self.parses = np.array([j.scores is not None for j in group])                        # (k,)
        self.scores = np.array([j.scores if j.scores else [0] * item.n for j in group], float)       # (k, n)
        best = (self.scores == self.scores.max(axis=1, keepdims=True)) * self.parses[:, None]
        self.picks = best / np.maximum(best.sum(axis=1, keepdims=True), 1)                   # (k, n)
        # What a weight may depend on. (What does not parse has no logit: 0.0 here, and no vote anyway.)
        self.facts = {"log-probability": np.array([j.logp / len(j.ids) for j in group]),
                      "length": np.log([len(j.ids) for j in group]),
                      "Meta RM": np.array([0.0 if j.meta is None else j.meta for j in group])}
        self.n, self.any = item.n, bool(self.parses.any())

    def right(self, votes):
        """Is the response with the most votes the best one? A tie is incorrect."""
        return float(self.any and votes[self.gold] > np.delete(votes, self.gold).max())


def standardised(scores):
    """(k, n) -> (k, n): each sample's scores with mean 0 and standard deviation 1."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    return centred / np.maximum(scores.std(axis=1, keepdims=True), 1e-9)


def borda(scores):
    """(k, n) -> (k, n): how many other responses are scored lower; a tie counts half."""
    lower = (scores[:, :, None] > scores[:, None, :]) + 0.5 * (scores[:, :, None] == scores[:, None, :])
    return lower.sum(axis=2) - 0.5                 # it ties with itself


def weight_of(fact, constant, x):
    """The weight of a vote. Probabilities for the Meta RM and the probe (logits), powers for the others (logs)."""
    return 1 / (1 + np.exp(-constant * x)) if fact in ("Meta RM", "probe") else np.exp(constant * (x - x.max()))


def votes_by(rule, s, k, constants):
    """(n,) votes of the first k samples."""
    parses, scores, picks = s.parses[:k, None], s.scores[:k], s.picks[:k]
    if rule.startswith("filtered"):                # keep the half that the Meta RM rates best, and go on with it
        best_first = np.argsort(np.where(s.parses[:k], -s.facts["Meta RM"][:k], np.inf), kind="stable")
        kept = best_first[:max(1, k // 2)]
        parses, scores, picks, rule = parses[kept], scores[kept], picks[kept], rule.removeprefix("filtered ")
    if rule == "sum":
        return (scores * parses).sum(axis=0)
    if rule == "plurality":                        # the sum only breaks ties
        return np.round(picks.sum(axis=0), 6) + 1e-7 * (scores * parses).sum(axis=0)
    if rule == "Borda":
        return (borda(scores) * parses).sum(axis=0)
    if rule == "standardised sum":
        return (standardised(scores) * parses).sum(axis=0)
    return (weight_of(rule, constants[rule], s.facts[rule][:k])[:, None] * picks).sum(axis=0)


RULES = ["sum", "plurality", "Borda", "standardised sum", "filtered sum", "filtered plurality", *CONSTANTS]

# ----------------------------------------------------------------------------------------
# Fitting

def fit(loss, size):
    """-> w (size,) that minimises loss(w), a convex function, plus 0.001 times the square of its length."""
    w = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(w) + 1e-3 * w.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return w.detach()


@torch.no_grad()
def hidden_states(policy, judgements):
    """The policy's hidden state at the last token of each judgement -> (N, C)."""
    order = sorted(range(len(judgements)), key=lambda i: len(judgements[i].prompt + judgements[i].ids))
    found = torch.empty(len(judgements), policy.cfg.n_embd, dtype=torch.float64)
    for start in range(0, len(order), 128):
        chosen = order[start:start + 128]
        ids, padding = pad_left([judgements[i].prompt + judgements[i].ids for i in chosen])  # (B, T), (B,)
        found[chosen] = policy(ids, padding)[:, -1].double()                                 # (B, C)
    return found


def add_probe(policy, sets):
    """Set the fact "probe" of all samples. sets: {name: (Samples of each item, groups)}; fitted on "half"."""
    states = {name: hidden_states(policy, [j for group in groups for j in group])
              for name, (_, groups) in sets.items()}
    hits = torch.tensor([s.picks[i, s.gold] == 1 for s in sets["half"][0] for i in range(len(s.picks))])
    w = fit(lambda w: F.binary_cross_entropy_with_logits(states["half"] @ w, hits.double()), policy.cfg.n_embd)
    for name, (samples, groups) in sets.items():
        logits = iter((states[name] @ w).tolist())
        for s, group in zip(samples, groups):
            s.facts["probe"] = np.array([next(logits) for _ in group])


def accuracy(samples, rule, k, constants):
    return np.array([s.right(votes_by(rule, s, k, constants)) for s in samples])


def best_constants(samples, k):
    return {rule: max(choices, key=lambda c: accuracy(samples, rule, k, {rule: c}).mean())
            for rule, choices in CONSTANTS.items()}


def features(s, k, constants):
    """(n, rules): each rule's votes as shares, for the regression that combines them."""
    columns = []
    for rule in RULES:
        votes = votes_by(rule, s, k, constants)
        columns.append((votes - votes.mean()) / (np.abs(votes).sum() + 1e-9) * s.n)
    return torch.tensor(np.array(columns).T)


def fit_combination(samples, k, constants):
    """Logistic regression: softmax over an item's responses of features @ w."""
    items = [(features(s, k, constants), s.gold) for s in samples if s.any]
    return fit(lambda w: -torch.stack([(x @ w).log_softmax(0)[gold] for x, gold in items]).mean(), len(RULES))

# ----------------------------------------------------------------------------------------
# One policy of one run

def correlation(samples):
    """How much are the samples of an item alike? rho: the correlation of being correct, between two of them."""
    hits = np.array([s.picks[:, s.gold] == 1 for s in samples], float)                       # (items, k)
    k, m = hits.shape[1], hits.mean()
    both = (hits.sum(axis=1) * (hits.sum(axis=1) - 1)).mean() / (k * (k - 1))
    return (both - m * m) / (m - m * m)


def stop_early(samples, lead):
    """Sample until the leader is `lead` votes ahead -> is each item's vote correct, samples that it took."""
    right, taken = [], []
    for s in samples:
        total = s.picks.cumsum(axis=0)                                                       # (k, n)
        two = np.sort(total, axis=1)[:, -2:]
        ahead = np.flatnonzero(two[:, 1] - two[:, 0] >= lead - 1e-9)
        k = int(ahead[0]) + 1 if len(ahead) else len(total)
        right.append(s.right(votes_by("plurality", s, k, {})))
        taken.append(k)
    return np.array(right), np.array(taken, float)


def study_policy(run, policy, sizes):
    """-> {measure: a number for each test item}, {name: a plain number}"""
    test_items, val_items, k = sizes
    items, groups = run.judged(policy, "test", test_items, k, run.config().temperature)
    test = [Samples(g, item) for g, item in zip(groups, items)]
    items, val_groups = run.judged(policy, "val", val_items, min(16, k), run.config().temperature)
    val = [Samples(g, item) for g, item in zip(val_groups, items)]
    middle = len(val) // 2
    add_probe(run.model(policy), {"half": (val[:middle], val_groups[:middle]),
                                  "rest": (val[middle:], val_groups[middle:]), "test": (test, groups)})
    few = min(8, k)
    constants = best_constants(val[middle:], few)
    columns, plain = {}, {"rho": correlation(test), **{f"constant, {r}": c for r, c in constants.items()}}
    for count in [c for c in COUNTS if c <= k]:
        for rule in RULES:
            columns[f"{rule}@{count}"] = accuracy(test, rule, count, constants)
        w = fit_combination(val[middle:], min(16, count), constants)
        combined = [(features(s, count, constants) @ w).numpy() for s in test]
        columns[f"all in one@{count}"] = np.array([s.right(votes) for s, votes in zip(test, combined)])
    best = max(RULES, key=lambda rule: accuracy(val[middle:], rule, few, constants).mean())
    columns["the best on validation items"] = columns[f"{best}@{few}"]
    for lead in (1, 2, 3, 5):
        columns[f"lead {lead}"], columns[f"lead {lead}, samples"] = stop_early(test, lead)
    for T in TEMPERATURES:
        items, groups = run.judged(policy, "test", test_items, few, T)
        at = [Samples(g, item) for g, item in zip(groups, items)]
        for rule in ("sum", "plurality"):
            for count in (1, few):
                columns[f"T {T}, {rule}@{count}"] = accuracy(at, rule, count, {})
    return columns, plain

# ----------------------------------------------------------------------------------------
# Table and figure

def draw(numbers, counts):
    figure = Figure(figsize=(11, 4.5))
    for ax, policy in zip(figure.subplots(1, 2), POLICIES):
        styles = ("k-", "r-", "m:", "c:", "k--", "r--", "b-", "g--", "y--", "g-", "k:")
        for rule, style in zip([*RULES, "all in one"], styles):
            ax.plot(counts, [numbers[policy][f"{rule}@{c}"][0] for c in counts], style, label=rule)
        ax.set_xscale("log", base=2)
        ax.set(title=f"after {policy.upper()}", xlabel="samples", ylabel="accuracy")
        ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (6, 6, 2) if quick else (600, 300, 32)
    counts = [c for c in COUNTS if c <= sizes[2]]
    few, most = min(8, sizes[2]), sizes[2]
    queries = [[item.query for item in run.items("test", sizes[0])] for run in runs]
    result = {"numbers": {}, "plain": {}, "less the sum": {}, "less the plurality": {}, "all in one, less": {}}
    for policy in POLICIES:
        found = [study_policy(run, policy, sizes) for run in runs]
        columns = {name: [c[name] for c, _ in found] for name in found[0][0]}
        result["numbers"][policy] = {name: study.number(values) for name, values in columns.items()}
        result["plain"][policy] = {name: [round(float(p[name]), 4) for _, p in found] for name in found[0][1]}
        for base in ("sum", "plurality"):
            result[f"less the {base}"][policy] = {
                f"{rule}@{k}": study.difference(columns[f"{rule}@{k}"], columns[f"{base}@{k}"], queries)
                for rule in [*RULES, "all in one"] if rule != base for k in (few, most)}
        result["all in one, less"][policy] = {"the best on validation items": study.difference(
            columns[f"all in one@{few}"], columns["the best on validation items"], queries)}
    rows = [["rule", *(f"{policy}, {c} samples" for policy in POLICIES for c in (few, most)),
             *(f"{policy}, {few}: less the plurality" for policy in POLICIES)]]
    for rule in [*RULES, "all in one"]:
        less = [result["less the plurality"][policy].get(f"{rule}@{few}") for policy in POLICIES]
        rows.append([rule, *(study.in_words(result["numbers"][policy][f"{rule}@{c}"])
                             for policy in POLICIES for c in (few, most)),
                     *map(study.in_words, less)])
    study.save("votes", runs, result, rows, draw(result["numbers"], counts))


if __name__ == "__main__":
    run_command(main)
