"""
From judgements to numbers: measures, intervals, the result table, figures.

    python report.py runs/cpu-seed0 runs/cpu-seed1 runs/cpu-seed2     # means and paired differences over runs

Primary measure: strict accuracy, where the best response's score must be strictly the largest, so a tie
or a judgement that does not parse is wrong. Beside it the coin flip: a tie is broken at random, and what
does not parse guesses. Intervals: 95%, bootstrap over items.
"""

import json
import os
import sys

import numpy as np

import metarm
from data.world import CRITERIA, DOMAINS, VERIFIABLE, seed_of
from sample import CHECK, correct, vote

# ----------------------------------------------------------------------------------------
# Measures of one judgement

def tied(scores):
    return len(scores) > 1 and scores.count(max(scores)) > 1


def coin_flip(scores, gold):
    """Chance of being right when ties are broken at random: 1/m if the best is among m maxima, a guess if no parse."""
    if scores is None:
        return 1 / len(gold)
    best = max(range(len(gold)), key=lambda i: gold[i])
    return (scores[best] == max(scores)) / scores.count(max(scores))


def faithfulness(j, item):
    """Is a judgement right for the right reasons? -> (principles, checks, totals), three shares.

    principles: those that the raters use for this query. checks: of all (response, principle) cells,
    those that hold a check whose verdict is true; a mere impression is no check. totals: sub-totals that
    are the sum of the weights that were found good (at least 1).
    """
    weights = dict(map(tuple, j.principles))
    fit = np.mean([name in item.weights for name in weights])
    true, adds_up = [], []
    for slot, critique in enumerate(j.critiques):
        found = {name: verdict == "good" for name, _, verdict in CHECK.findall(critique["checks"])}
        truth = item.truth[j.order[slot]]
        true += [name in found and name in truth and found[name] == truth[name][0] for name in weights]
        adds_up.append(set(found) == set(weights) and
                       critique["total"] == max(1, sum(w for name, w in weights.items() if found[name])))
    return fit, np.mean(true), np.mean(adds_up)


def judgement_stats(groups, items):
    """Means over judgements (lists per item): parse and tie rate, length in tokens, truncated share, faithfulness."""
    flat = [(j, item) for group, item in zip(groups, items) for j in group]
    parsed = [(j, item) for j, item in flat if j.scores is not None]
    several = [j for j, item in parsed if item.n > 1]
    faithful = np.mean([faithfulness(j, item) for j, item in parsed] or [[0.0] * 3], axis=0)
    return {"right": float(np.mean([correct(j.scores, item.gold) for j, item in flat])),
            "parse": len(parsed) / len(flat), "tie": float(np.mean([tied(j.scores) for j in several] or [0.0])),
            "length": float(np.mean([len(j.ids) for j, _ in flat])),
            "truncated": float(np.mean([j.status == "no end" for j, _ in flat])),
            "principles": float(faithful[0]), "checks": float(faithful[1]), "totals": float(faithful[2])}

# ----------------------------------------------------------------------------------------
# One number per item, so that differences can be paired

def votes_up_to(k):
    return [2 ** i for i in range(1, 10) if 2 ** i <= k]


def item_columns(items, greedy, samples, seed, share=None):
    """-> {column: array (items,)}, each entry in 0..1: accuracy of each way to judge an item.

    share: the part of the samples that guided votes keep, chosen on validation; None without a Meta RM.
    """
    columns = {}
    def put(name, values):
        columns[name] = np.array(values, float)

    K = len(samples[0])
    put("greedy", [correct(g[0].scores, i.gold) for g, i in zip(greedy, items)])
    put("greedy_coin", [coin_flip(g[0].scores, i.gold) for g, i in zip(greedy, items)])
    put("sample", [np.mean([correct(j.scores, i.gold) for j in s]) for s, i in zip(samples, items)])
    put("sample_coin", [np.mean([coin_flip(j.scores, i.gold) for j in s]) for s, i in zip(samples, items)])
    for k in votes_up_to(K):
        scores = [[j.scores for j in s[:k]] for s in samples]
        metas = [[j.meta for j in s[:k]] for s in samples]
        put(f"vote@{k}", [correct(vote(s), i.gold) for s, i in zip(scores, items)])
        put(f"vote_coin@{k}", [coin_flip(vote(s), i.gold) for s, i in zip(scores, items)])
        put(f"pass@{k}", [any(correct(x, i.gold) for x in s) for s, i in zip(scores, items)])
        if share is None:
            continue
        for name, keep in [("meta", max(1, round(share * k))), ("half", k // 2)]:
            put(f"{name}@{k}", [correct(metarm.guided_vote(s, m, keep), i.gold) for s, m, i in zip(scores, metas, items)])
            put(f"{name}_random@{k}", [correct(vote(metarm.keep_random(s, keep, seed_of(seed, "control", i.id, k))), i.gold)
                                       for s, i in zip(scores, items)])
    if share is not None:
        for keep in [1] + votes_up_to(K):
            put(f"sweep@{keep}", [correct(metarm.guided_vote([j.scores for j in s], [j.meta for j in s], keep), i.gold)
                                  for s, i in zip(samples, items)])
    return columns


def choose_share(items, samples):
    """The share of samples to keep, chosen on validation items: the best k_meta of all k; larger on ties."""
    K = len(samples[0])
    accuracy = {keep: np.mean([correct(metarm.guided_vote([j.scores for j in s], [j.meta for j in s], keep), i.gold)
                               for s, i in zip(samples, items)]) for keep in [1] + votes_up_to(K)[:-1]}
    return max(accuracy, key=lambda keep: (accuracy[keep], keep)) / K


def interval(values, seed=0, draws=1000):
    """95% bootstrap interval of the mean over items: [low, high]."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return [round(float(q), 4) for q in np.quantile(means, [0.025, 0.975])]

# ----------------------------------------------------------------------------------------
# results.json

def put_ci(where, name, values):
    where[name] = round(float(np.mean(values)), 4)
    where[name + "_ci"] = interval(np.asarray(values, float))


def put_votes(where, name, columns, prefix):
    """where[name] = {k: accuracy} and where[name_ci] = {k: interval} of the columns prefix@k."""
    where[name], where[name + "_ci"] = {}, {}
    for column, values in columns.items():
        if column.startswith(prefix + "@"):
            k = column.split("@")[1]
            where[name][k], where[name + "_ci"][k] = round(float(values.mean()), 4), interval(values)


def stage_results(parts, columns):
    """One row of the table: a policy on the test split. parts: {part: (items, judgements)}."""
    items, samples = parts["test"]
    parsed = [[j.scores is not None for j in s] for s in samples]
    stats = judgement_stats(samples, items)
    row = {}
    put_ci(row, "parse", np.mean(parsed, axis=1))
    row["tie"] = round(stats["tie"], 4)
    for name in ("greedy", "sample"):
        put_ci(row, name, columns[name])
        put_ci(row, name + "_coin", columns[name + "_coin"])
    for name in ("vote", "vote_coin", "pass"):
        put_votes(row, name, columns, name)
    row["faithful"] = {name: round(stats[name], 4) for name in ("principles", "checks", "totals")}
    row["tokens"] = round(stats["length"], 1)
    row["subsets"] = {}
    for domain in DOMAINS:
        mine = np.array([i.subset == domain for i in items])
        if mine.any():
            row["subsets"][domain] = subset = {"items": int(mine.sum())}
            cut = {name: values[mine] for name, values in columns.items()}
            put_ci(subset, "greedy", cut["greedy"])
            put_ci(subset, "sample", cut["sample"])
            put_votes(subset, "vote", cut, "vote")
    right = lambda part: [np.mean([correct(j.scores, i.gold) for j in s]) for i, s in zip(*parts[part])]
    put_ci(row, "single", right("single"))
    row["ood"] = {}
    put_ci(row["ood"], "greedy", right("ood-greedy"))
    put_ci(row["ood"], "sample", right("ood"))
    return row


def meta_results(parts, columns, share):
    """One Meta RM on the test split."""
    items, samples = parts["test"]
    groups = [([correct(j.scores, i.gold) for j in s if j.meta is not None], [j.meta for j in s if j.meta is not None])
              for s, i in zip(samples, items)]
    pooled = metarm.auc(np.concatenate([g[0] for g in groups]), np.concatenate([g[1] for g in groups]))
    row = {"auc_pooled": pooled, "auc_within": metarm.auc_within(groups),
           "k_meta": round(share * len(samples[0]))}
    for name, prefix in [("vote", "meta"), ("random", "meta_random"), ("half", "half"), ("half_random", "half_random"), ("sweep", "sweep")]:
        put_votes(row, name, columns, prefix)
    return row


def results(run, evaluated):
    """evaluated: {stage: parts} -> the contents of results.json; also saves per_item.npz, one number per item and column."""
    cfg, stages, meta, arrays = run.cfg, {}, {}, {}
    for name, parts in evaluated.items():
        guided = "val" in parts
        share = choose_share(*parts["val"]) if guided else None
        items, samples = parts["test"]
        columns = item_columns(items, parts["greedy"][1], samples, cfg.seed, share)
        stages[name] = stage_results(parts, columns)
        if guided:
            meta[name] = meta_results(parts, columns, share)
        arrays |= {f"{name}/{column}": values.astype(np.float32) for column, values in columns.items()}
    arrays["subset"] = np.array([i.subset for i in evaluated["base"]["test"][0]])
    np.savez_compressed(run.path("per_item.npz"), **arrays)
    return {"seed": cfg.seed, "preset": cfg.preset, "config": vars(cfg), "seconds": run.seconds(),
            "items": cfg.eval_items, "stages": stages, "meta": meta}

# ----------------------------------------------------------------------------------------
# The table

def table(r):
    """results.json -> text."""
    ks = sorted(r["stages"]["base"]["vote"], key=int)
    head = ["stage", "parse", "tie", "greedy", "one sample"] + [f"vote@{k}" for k in ks] + [f"pass@{ks[-1]}", "n = 1", "ood greedy", "tokens"]
    half = lambda ci: (ci[1] - ci[0]) / 2
    show = lambda where, name: f"{where[name]:.3f}±{half(where[name + '_ci']):.3f}"
    rows = []
    for name, s in r["stages"].items():
        rows.append([name, f"{s['parse']:.3f}", f"{s['tie']:.3f}", show(s, "greedy"), show(s, "sample"),
                     *[f"{s['vote'][k]:.3f}±{half(s['vote_ci'][k]):.3f}" for k in ks], f"{s['pass'][ks[-1]]:.3f}",
                     show(s, "single"), show(s["ood"], "greedy"), f"{s['tokens']:.0f}"])
        if name in r["meta"]:
            m = r["meta"][name]
            for label, key in [(f"+ meta ({m['k_meta']}/{ks[-1]})", "vote"), ("  random control", "random"),
                               ("+ meta (k/2)", "half"), ("  random control", "half_random")]:
                rows.append([label, "", "", "", ""] + [f"{m[key][k]:.3f}±{half(m[key + '_ci'][k]):.3f}" for k in ks] + [""] * 4)
    widths = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]
    line = lambda row: "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
    text = [line(head), *map(line, rows), ""]
    for name, m in r["meta"].items():
        text.append(f"Meta RM ({name}): AUC {m['auc_pooled'] or 0:.3f} pooled, {m['auc_within'] or 0:.3f} within item; "
                    f"k_meta of {ks[-1]}: " + ", ".join(f"{k} {v:.3f}" for k, v in m["sweep"].items()))
    for name, s in r["stages"].items():
        f = s["faithful"]
        text.append(f"faithful ({name}): principles {f['principles']:.3f}, checks {f['checks']:.3f}, totals {f['totals']:.3f};  "
                    + ", ".join(f"{d} {x['greedy']:.2f}" for d, x in s["subsets"].items()))
    text.append("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in r["seconds"].items()))
    return "\n".join(text)


def figures(folder, r):
    pass
