"""
From judgements to numbers: the measures of a run, their intervals, a table and two figures.

    python report.py runs/cpu-seed0           # print the table of a run again, and draw its figures

The main measure is accuracy: the share of items whose judgement is correct (Eq 10). A tie is wrong, and so is
a judgement that does not parse. Intervals are 95%: the mean and 1.96 standard errors over items. They cover
the choice of test items, not the choice of the training seed, which matters more.

How to read rl.png, the curves of RL:
- reward: the mean of +1 and -1. It rises, with noise.
- kl: the divergence from the RFT model. It rises, then levels off where the penalty balances the gain.
- entropy: it falls as the policy becomes sure. Near zero all samples agree, and votes cannot help.
- length of a judgement in tokens: it grows where evidence pays.
- zero_variance: the share of groups that are all correct or all incorrect. They teach nothing.
- checks: the share of checks that are true. If only the reward rose, the judge would be correct for the wrong
  reasons.
"""

import argparse
import json
import os
import sys

import numpy as np

if "ipykernel" not in sys.modules:                 # the backend of a notebook may not be installed outside of it
    os.environ["MPLBACKEND"] = "agg"
from matplotlib.figure import Figure

from data import UserError, new_file, run_command
from data.judgement import correct, pick
from data.world import DOMAINS, seed_of
from metarm import RULES, vote_random

# ----------------------------------------------------------------------------------------
# Measures

def tie_broken(scores, gold):
    """The probability of being correct if ties are broken at random, as in the paper's evaluation: 1/m if the
    best response is one of m with the largest score. Without scores (None) it is a guess.

    >>> tie_broken([9, 9, 1], [4, 7, 2]), tie_broken([9, 8], [4, 7]), tie_broken(None, [4, 7])
    (0.5, 0.0, 0.5)
    """
    if scores is None:
        return 1 / len(gold)
    best = gold.index(max(gold))
    return (scores[best] == max(scores)) / scores.count(max(scores))


def faithfulness(j, item):
    """Is a judgement correct for the right reasons? -> three shares (principles, checks, totals).

    principles: of its principles, those that the raters use for this query. checks: of all pairs of response
    and principle, those whose verdict is given and true. totals: of its totals, those that are the sum of the
    weights found good (at least 1) and equal to the score, where all principles and nothing else were checked.
    """
    weights = dict(j.principles)
    checks, totals = [], []
    for critique, truth, score in zip(j.critiques, item.truth, j.scores):
        verdicts = {name: good for name, _, good in critique["checks"]}
        checks += [name in verdicts and name in truth and verdicts[name] == truth[name][0] for name in weights]
        earned = max(1, sum(weight for name, weight in weights.items() if verdicts.get(name)))
        totals.append(set(verdicts) == set(weights) and critique["total"] == earned == score)
    return np.mean([name in item.weights for name in weights]), np.mean(checks), np.mean(totals)


def auc(labels, logits):
    """The probability that a correct judgement has a larger logit than an incorrect one; ties count half.
    labels: booleans, logits: as many numbers -> a number, or None if there are not both kinds.

    >>> auc([True, False, False], [2.0, 1.0, 2.0])
    0.75
    """
    above = [x for good, x in zip(labels, logits) if good]
    below = [x for good, x in zip(labels, logits) if not good]
    wins = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    return sum(wins) / len(wins) if wins else None


def describe(groups, items):
    """Statistics of judgements (a list for each item), for metrics files: the shares that are correct, that
    parse and that tie, the mean length in tokens, and the share of true checks."""
    pairs = [(j, item) for group, item in zip(groups, items) for j in group]
    parsed = [(j, item) for j, item in pairs if j.scores is not None]
    mean = lambda values: float(np.mean(values)) if values else 0.0
    return {"correct": mean([correct(j.scores, item.gold) for j, item in pairs]),
            "parses": len(parsed) / len(pairs),
            "ties": mean([pick(j.scores) is None for j, item in parsed if item.n > 1]),
            "length": mean([len(j.ids) for j, _ in pairs]),
            "checks": mean([faithfulness(j, item)[1] for j, item in parsed])}

# ----------------------------------------------------------------------------------------
# One policy

def per_item(items, greedy, samples, seed):
    """{measure: one number an item}: how often each way of judging is correct, and how often judgements parse, tie
    and are faithful. greedy: a list with one judgement for each item; samples: k judgements for each item."""
    found = {"greedy": [correct(s[0].scores, item.gold) for s, item in zip(greedy, items)],
             "greedy, ties broken at random": [tie_broken(s[0].scores, item.gold)
                                               for s, item in zip(greedy, items)],
             "one sample": [np.mean([correct(j.scores, item.gold) for j in s])
                            for s, item in zip(samples, items)]}
    sizes = [2 ** i for i in range(1, len(samples[0]).bit_length())]         # 2, 4, 8, ... k
    for rule in [*RULES, "random", "pass"]:
        for k in sizes:
            found[f"{rule}@{k}"] = [vote_is_correct(rule, s[:k], item, seed) for s, item in zip(samples, items)]
    parsed = [[j for j in s if j.scores is not None] for s in samples]
    found["parses"] = [len(p) / len(s) for p, s in zip(parsed, samples)]
    found["ties"] = [np.mean([pick(j.scores) is None for j in p]) if p else 0.0 for p in parsed]
    # Zeros if no sample parses.
    reasons = np.array([np.mean([faithfulness(j, item) for j in p] or [[0.0] * 3], axis=0)
                        for p, item in zip(parsed, items)])                  # (items, 3)
    for name, values in zip(("principles", "checks", "totals"), reasons.T):
        found[f"faithful {name}"] = values
    return {measure: np.array(values, float) for measure, values in found.items()}


def vote_is_correct(rule_name, samples, item, seed):
    """Is the vote correct? The random control is a mean over 8 random halves."""
    if rule_name == "pass":                             # is any of them correct? No vote can do better.
        return any(correct(j.scores, item.gold) for j in samples)
    if rule_name == "random":
        return np.mean([correct(vote_random(samples, seed_of(seed, "random", item.id, i)), item.gold)
                        for i in range(8)])
    return correct(RULES[rule_name](samples), item.gold)


def interval(values):
    """[mean, low, high]: the mean over items and its 95% interval, of 1.96 standard errors, rounded to 4 digits.
    The standard deviation is divided by the number of items.

    >>> interval([1, 0, 1, 1])
    [0.75, 0.3256, 1.1744]
    """
    mean, error = np.mean(values), np.std(values) / np.sqrt(len(values))
    return [round(float(x), 4) for x in (mean, mean - 1.96 * error, mean + 1.96 * error)]


def first(samples):
    """The rule of greedy judgements, of which each item has one."""
    return samples[0].scores


def accuracy(items, groups, rule):
    """[mean, low, high] of the accuracy of a rule."""
    return interval([correct(rule(samples), item.gold) for item, samples in zip(items, groups)])


def measure(sets, seed):
    """One policy's measures -> {measure: [mean, low, high], "by domain": {domain: the same}}, and the numbers of
    each item. sets: {name: (items, judgements)}, with the names "greedy", "votes" (k of each item), "ood-greedy"
    and "ood" (out of distribution), and "single" (greedy, of one response)."""
    (items, greedy), (_, samples) = sets["greedy"], sets["votes"]
    columns = per_item(items, greedy, samples, seed)
    found = {name: interval(values) for name, values in columns.items()}
    found["one response"] = accuracy(*sets["single"], first)
    found["out of distribution, greedy"] = accuracy(*sets["ood-greedy"], first)
    k = len(sets["ood"][1][0])
    for name in ("sum", "plurality"):
        found[f"out of distribution, {name}@{k}"] = accuracy(*sets["ood"], RULES[name])
    found["tokens"] = round(float(np.mean([len(j.ids) for s in samples for j in s])), 1)
    found["by domain"] = {}
    for domain in DOMAINS:
        mine = np.array([item.domain == domain for item in items])
        if mine.any():
            found["by domain"][domain] = {name: interval(values[mine]) for name, values in columns.items()}
            found["by domain"][domain]["items"] = int(mine.sum())
    found["Meta RM's AUC"] = meta_auc(items, samples)
    return found, columns


def meta_auc(items, samples):
    """How well does the Meta RM order the samples of an item? -> the mean of auc; 0.5: not at all."""
    parsed = [[j for j in s if j.scores is not None] for s in samples]       # the others have no logit
    within = [auc([correct(j.scores, item.gold) for j in s], [j.meta for j in s])
              for s, item in zip(parsed, items)]
    return round(float(np.mean([a for a in within if a is not None] or [0.5])), 4)

# ----------------------------------------------------------------------------------------
# Table and figures

def cell(value):
    """'0.712 ±0.021' of [mean, low, high]; a number as it is."""
    return f"{value[0]:.3f} ±{(value[2] - value[1]) / 2:.3f}" if isinstance(value, list) else f"{value:g}"


def in_columns(rows):
    """Rows of texts, equally many in each -> one text, aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths)).rstrip() for row in rows)


def table(results):
    """results.json -> text: a row for each measure, a column for each policy; then the last policy by domain."""
    stages, last = results["stages"], results["stages"]["rl"]
    rows = [["accuracy, and other measures", *stages]]
    for name in last:
        if name != "by domain":
            rows.append([name, *(cell(stage[name]) if name in stage else "" for stage in stages.values())])
    k = max(int(name.split("@")[1]) for name in last if name.startswith("plurality@"))
    shown = ["items", "greedy", "one sample", f"sum@{k}", f"plurality@{k}"]
    domains = [["rl, by domain", *shown]]
    domains += [[name, *(cell(of[m]) for m in shown)] for name, of in last["by domain"].items()]
    seconds = ", ".join(f"{name} {s:.0f}" for name, s in results["seconds"].items())
    return (f"{in_columns(rows)}\n\n{in_columns(domains)}\n\n{results['items']} items of the "
            f"{results['config']['eval_split']} split, ± half a 95% interval\nseconds: {seconds}")


def draw_votes(path, results):
    """Accuracy against the number of votes."""
    fig = Figure(figsize=(8, 5))
    ax = fig.subplots()
    for (name, stage), color in zip(results["stages"].items(), ("tab:gray", "tab:blue", "tab:red")):
        ax.axhline(stage["greedy"][0], color=color, ls=":", label=f"{name}: greedy")
        for rule, style in (("sum", "o-"), ("plurality", "s-."), ("guided", "^--"), ("random", "x")):
            ks = [int(m.split("@")[1]) for m in stage if m.startswith(rule + "@")]
            if ks:
                means = [stage[f"{rule}@{k}"][0] for k in ks]
                ax.plot(ks, means, style, color=color, ms=4, label=f"{name}: {rule}")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="samples k", ylabel="accuracy")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, ncols=2)
    fig.savefig(path, dpi=110)


def draw_rl(path, steps):
    """The curves of RL: see the beginning of this file. steps: the lines of metrics-rl.jsonl."""
    fig = Figure(figsize=(11, 5.5))
    for ax, name in zip(fig.subplots(2, 3).flat, ("reward", "kl", "entropy", "length", "zero_variance", "checks")):
        ax.plot([step["step"] for step in steps], [step[name] for step in steps])
        ax.set(title=name, xlabel="RL step")
        ax.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def write_report(folder, results, columns):
    """results.json, per_item.npz (the numbers of each item, for paired differences) and the figures."""
    path = lambda name: os.path.join(folder, name)
    with new_file(path("per_item.npz"), "wb") as f:
        np.savez_compressed(f, **{name: values.astype(np.float32) for name, values in columns.items()})
    with new_file(path("results.json")) as f:
        json.dump(results, f, indent=1)
    draw_figures(folder, results)


def draw_figures(folder, results):
    draw_votes(os.path.join(folder, "votes.png"), results)
    with open(os.path.join(folder, "metrics-rl.jsonl"), encoding="utf-8") as f:
        draw_rl(os.path.join(folder, "rl.png"), [json.loads(line) for line in f])


def read_results(folder):
    """results.json of a finished run; UserError if there is none."""
    path = os.path.join(folder, "results.json")
    try:
        with open(path, encoding="utf-8") as f:
            results = json.load(f)
        if not {"stages", "items", "seconds", "config"} <= set(results):
            raise ValueError
        return results
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is not the result of a finished run. Pass a run folder, for instance "
                        f"runs/cpu-seed0.") from None


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a run folder, for instance runs/cpu-seed0")
    folder = parser.parse_args(argv).folder
    results = read_results(folder)
    print(table(results))
    draw_figures(folder, results)


if __name__ == "__main__":
    run_command(main)
