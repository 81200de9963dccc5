"""
From judgements to numbers: measures, intervals, the result table, figures.

    python report.py runs/cpu-seed0 runs/cpu-seed1 runs/cpu-seed2     # means and paired differences over runs

Primary measure: strict accuracy, where the best response's score must be strictly the largest, so a tie
or a judgement that does not parse is wrong. Beside it the coin flip: a tie is broken at random, and what
does not parse guesses. Intervals: 95%, bootstrap over items.
"""

import functools
import json
import os

import numpy as np

import metarm
from data.preferences import UserError, command
from data.world import DOMAINS, VERIFIABLE, seed_of
from run import read_json
from sample import CHECK, correct, interval, vote

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


# ----------------------------------------------------------------------------------------
# Figures

def figures(folder, r):
    """votes.png, subsets.png and rl.png in the run folder, from results.json's contents and metrics.jsonl."""
    import matplotlib
    matplotlib.use("Agg")                          # no screen is needed
    import matplotlib.pyplot as plt
    colors = {"base": "tab:gray", "rft": "tab:blue", "rl": "tab:red"}

    def save(fig, name):
        fig.tight_layout()
        fig.savefig(os.path.join(folder, name), dpi=110)
        plt.close(fig)

    # Accuracy against the number of votes
    fig, axes = plt.subplots(figsize=(8, 5.5))
    for name, s in r["stages"].items():
        ks = sorted(s["vote"], key=int)
        x = [1, *map(int, ks)]
        band = np.array([s["sample_ci"], *[s["vote_ci"][k] for k in ks]])
        axes.plot(x, [s["sample"], *[s["vote"][k] for k in ks]], "o-", color=colors[name], label=f"{name}: votes")
        axes.fill_between(x, band[:, 0], band[:, 1], color=colors[name], alpha=0.12)
        axes.axhline(s["greedy"], color=colors[name], ls=":", lw=1, label=f"{name}: greedy")
        if name in r["meta"]:
            m = r["meta"][name]
            axes.plot(x[1:], [m["vote"][k] for k in ks], "^--", color=colors[name], label=f"{name}: guided votes, k_meta {m['k_meta']}/{ks[-1]}")
            axes.plot(x[1:], [m["random"][k] for k in ks], "x", color=colors[name], alpha=0.6, label=f"{name}: random subset of that size")
    axes.set(xscale="log", xticks=x, xticklabels=x, xlabel="samples k", ylabel="strict accuracy, test split")
    axes.legend(fontsize=7, ncol=2)
    axes.grid(alpha=0.3)
    save(fig, "votes.png")

    # Accuracy by subset: one sample, and what the votes add
    fig, axes = plt.subplots(figsize=(8, 4))
    subsets = list(r["stages"]["rl"]["subsets"])
    for i, (name, s) in enumerate(r["stages"].items()):
        x = np.arange(len(subsets)) + (i - 1) * 0.27
        votes = [s["subsets"][d]["vote"][ks[-1]] for d in subsets]
        axes.bar(x, votes, 0.25, color=colors[name], alpha=0.35)
        axes.bar(x, [s["subsets"][d]["sample"] for d in subsets], 0.25, color=colors[name], label=f"{name} (pale: vote@{ks[-1]})")
    axes.set(xticks=range(len(subsets)), xticklabels=subsets, ylabel="strict accuracy", ylim=(0, 1))
    axes.legend(fontsize=8)
    save(fig, "subsets.png")

    # How RL went
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        steps = [row for row in map(json.loads, f) if row["unit"] == "rl"]
    panels = [["reward"], ["kl"], ["entropy"], ["length"], ["silent_groups", "tie", "parse"], ["principles", "checks", "totals"]]
    fig, grid = plt.subplots(2, 3, figsize=(11, 5.5))
    for axes, names in zip(grid.flat, panels):
        for name in names:
            axes.plot([row["step"] for row in steps], [row[name] for row in steps], label=name)
        axes.set(xlabel="RL step")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    save(fig, "rl.png")

# ----------------------------------------------------------------------------------------
# Several runs: means over seeds, and paired differences

DIFFERENCES = [  # (what, better column, worse column) in per_item.npz
    ("RFT - base, one sample", "rft/sample", "base/sample"),
    ("RFT - base, greedy", "rft/greedy", "base/greedy"),
    ("RL - RFT, one sample", "rl/sample", "rft/sample"),
    ("RL - RFT, greedy", "rl/greedy", "rft/greedy"),
    ("vote@32 - greedy, RL", "rl/vote@32", "rl/greedy"),
    ("vote@8 - one sample, base", "base/vote@8", "base/sample"),
    ("vote@8 - one sample, RFT", "rft/vote@8", "rft/sample"),
    ("vote@8 - one sample, RL", "rl/vote@8", "rl/sample"),
    ("meta@32 - vote@32, RFT", "rft/meta@32", "rft/vote@32"),
    ("meta@32 - its random control, RFT", "rft/meta@32", "rft/meta_random@32"),
    ("meta@8 - vote@8, RL", "rl/meta@8", "rl/vote@8"),
    ("meta@8 - its random control, RL", "rl/meta@8", "rl/meta_random@8"),
    ("meta@32 - vote@32, RL", "rl/meta@32", "rl/vote@32"),
    ("meta@32 - its random control, RL", "rl/meta@32", "rl/meta_random@32"),
]


def pooled_interval(differences, seed=0, draws=1000):
    """95% interval of the mean over runs of each run's mean difference, bootstrap over the items of each run."""
    rng = np.random.default_rng(seed)
    means = [np.mean([d[rng.integers(0, len(d), len(d))].mean() for d in differences]) for _ in range(draws)]
    return np.quantile(means, [0.025, 0.975])


def main(folders):
    """Print markdown: the main measures of each run and their mean, then the paired differences."""
    missing = [f for f in folders if not os.path.exists(os.path.join(f, "per_item.npz"))]
    if missing or not folders:
        raise UserError(f"no results in {missing[0]}: run `python spct.py --out {missing[0]}` first" if missing
                        else "name one or more run folders")
    runs = [read_json(os.path.join(f, "results.json")) for f in folders]
    arrays = [np.load(os.path.join(f, "per_item.npz")) for f in folders]
    columns = ["greedy", "sample", "vote@2", "vote@8", "vote@32", "half@8", "half@32", "meta@8", "meta@32", "meta_random@32", "pass@32"]
    print("| stage | parse | tie | " + " | ".join(columns) + " | n = 1 | ood greedy | tokens | principles | checks | totals |")
    print("|---" * (len(columns) + 9) + "|")
    mean = lambda pick: np.mean([pick(r) for r in runs])
    for name in runs[0]["stages"]:
        cells = [f"{np.mean([a[f'{name}/{c}'].mean() for a in arrays]):.3f}" if f"{name}/{c}" in arrays[0] else "" for c in columns]
        stage = lambda *path: mean(lambda r: functools.reduce(lambda d, key: d[key], path, r["stages"][name]))
        print(f"| {name} | {stage('parse'):.3f} | {stage('tie'):.3f} | " + " | ".join(cells) + f" | {stage('single'):.3f} | "
              f"{stage('ood', 'greedy'):.3f} | {stage('tokens'):.0f} | " + " | ".join(f"{stage('faithful', f):.3f}" for f in ("principles", "checks", "totals")) + " |")
    print("\n| difference | mean | 95% interval | each run |\n|---|---|---|---|")
    for what, better, worse in DIFFERENCES:
        if any(better not in a or worse not in a for a in arrays):
            continue                               # a short run has fewer votes
        d = [a[better] - a[worse] for a in arrays]
        low, high = pooled_interval(d)
        print(f"| {what} | {np.mean([x.mean() for x in d]):+.3f} | {low:+.3f} to {high:+.3f} | {', '.join(f'{x.mean():+.3f}' for x in d)} |")
    for column in ("greedy", "vote@8"):
        inside = [np.isin(a["subset"], VERIFIABLE) for a in arrays]
        gap = [a[f"rl/{column}"][~v].mean() - a[f"rl/{column}"][v].mean() for a, v in zip(arrays, inside)]
        print(f"\nRL, {column}: the other subsets are {np.mean(gap):+.3f} above the verifiable ones ({', '.join(f'{g:+.3f}' for g in gap)})")


if __name__ == "__main__":
    command(main)
