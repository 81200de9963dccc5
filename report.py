"""
From judgements to numbers: measures, intervals, the result table, figures.

    python report.py runs/cpu-seed0 runs/cpu-seed1 runs/cpu-seed2     # means and paired differences over runs

Primary measure: strict accuracy, where the best response's score must be strictly the largest, so a tie
or a judgement that does not parse is wrong. Beside it the coin flip: a tie is broken at random, and what
does not parse guesses. Intervals: 95%, bootstrap over items. They hold for the queries and the models at
hand: some queries of the toy world come up in many items, and another seed trains another model.
"""

import json
import os
import zipfile

import numpy as np

import metarm
from data import UserError, command
from data.world import DOMAINS, VERIFIABLE, seed_of
from run import read_json
from sample import CHECK, bootstrap, correct, interval, vote

# ----------------------------------------------------------------------------------------
# Measures of one judgement

def tied(scores):
    return len(scores) > 1 and scores.count(max(scores)) > 1


def coin_flip(scores, gold):
    """Chance of being right when ties are broken at random: 1/m if the best is among m maxima; a guess if
    nothing parses."""
    if scores is None:
        return 1 / len(gold)
    best = gold.index(max(gold))
    return (scores[best] == max(scores)) / scores.count(max(scores))


FAITHFUL = ("principles", "checks", "totals")


def faithfulness(j, item):
    """Is a judgement right for the right reasons? -> (principles, checks, totals), three shares.

    principles: those of the judgement's that the raters use for this query (a precision). checks: of all
    (response, principle) cells, those that hold a check whose verdict is true; a mere impression is no check.
    totals: sub-totals that are the sum of the weights that were found good (at least 1), and the final score.
    """
    weights = dict(map(tuple, j.principles))
    fit = np.mean([name in item.weights for name in weights])
    true, adds_up = [], []
    for slot, critique in enumerate(j.critiques):
        found = {name: verdict == "good" for name, _, verdict in CHECK.findall(critique["checks"])}
        truth = item.truth[j.order[slot]]
        true += [name in found and name in truth and found[name] == truth[name][0] for name in weights]
        earned = max(1, sum(w for name, w in weights.items() if found.get(name)))
        score = j.scores[j.order[slot]]
        adds_up.append(set(found) == set(weights) and critique["total"] == earned == score)
    return fit, np.mean(true), np.mean(adds_up)


def mean_faithfulness(groups, items):
    """(items, 3): the mean over each item's judgements that parse, 0 if none does."""
    parsed = [[j for j in group if j.scores is not None] for group in groups]
    return np.array([np.mean([faithfulness(j, item) for j in group] or [[0.0] * 3], axis=0)
                     for group, item in zip(parsed, items)])


def judgement_stats(groups, items):
    """Means over judgements (lists per item): accuracy, parse and tie rate, length in tokens, share that was
    cut off by the end of the context, faithfulness."""
    flat = [(j, item) for group, item in zip(groups, items) for j in group]
    parsed = [(j, item) for j, item in flat if j.scores is not None]
    several = [j for j, item in parsed if item.n > 1]
    return {"right": float(np.mean([correct(j.scores, item.gold) for j, item in flat])),
            "parse": len(parsed) / len(flat),
            "tie": float(np.mean([tied(j.scores) for j in several] or [0.0])),
            "length": float(np.mean([len(j.ids) for j, _ in flat])),
            "truncated": float(np.mean([j.status == "no end" for j, _ in flat])),
            **dict(zip(FAITHFUL, mean_faithfulness(groups, items).mean(axis=0).tolist()))}

# ----------------------------------------------------------------------------------------
# One number per item, so that differences can be paired

def votes_up_to(k):
    return [2 ** i for i in range(1, 10) if 2 ** i <= k]


def item_columns(items, greedy, samples, seed, k_meta=None):
    """-> {column: array (items,)}, entries in 0..1: how often each way to judge an item is right.

    greedy, samples: judgements per item, 1 and K of them. k_meta: {k: how many of k samples guided votes
    keep} (chosen on validation), None without a Meta RM.
    """
    K, columns = len(samples[0]), {}
    scores = lambda k: [[j.scores for j in s[:k]] for s in samples]          # of the first k samples
    metas = lambda k: [[j.meta for j in s[:k]] for s in samples]
    measure = lambda answers, rule=correct: \
        np.array([rule(answer, item.gold) for answer, item in zip(answers, items)], float)   # (items,)

    for suffix, rule in [("", correct), ("_coin", coin_flip)]:
        columns["greedy" + suffix] = measure([s[0].scores for s in greedy], rule)
        single = np.stack([measure([s[i].scores for s in samples], rule) for i in range(K)])  # (K, items)
        columns["sample" + suffix] = single.mean(axis=0)
        for k in votes_up_to(K):
            columns[f"vote{suffix}@{k}"] = measure(map(vote, scores(k)), rule)
            if rule is correct:                    # pass@k: is any of the first k right?
                columns[f"pass@{k}"] = single[:k].max(axis=0)
    columns["parse"] = np.array([np.mean([j.scores is not None for j in s]) for s in samples])
    for name, values in zip(FAITHFUL, mean_faithfulness(samples, items).T):
        columns[name] = values
    if k_meta is None:
        return columns
    for k in votes_up_to(K):                       # "half" is the paper's default, k_meta = k/2
        for name, keep in [("meta", k_meta[k]), ("half", k // 2)]:
            columns[f"{name}@{k}"] = measure(
                metarm.guided_vote(s, m, keep) for s, m in zip(scores(k), metas(k)))
            subsets = [measure(vote(metarm.keep_random(s, keep, seed_of(seed, "control", item.id, k, draw)))
                               for s, item in zip(scores(k), items)) for draw in range(8)]
            columns[f"{name}_random@{k}"] = np.mean(subsets, axis=0)         # 8 draws: less noise
    for keep in [1] + votes_up_to(K):
        columns[f"sweep@{keep}"] = measure(
            metarm.guided_vote(s, m, keep) for s, m in zip(scores(K), metas(K)))
    return columns


def choose_k_meta(items, samples, k):
    """How many of k samples to keep: the best k_meta < k on validation items, the larger one on ties."""
    accuracy = {}
    for keep in [1] + votes_up_to(k)[:-1]:
        votes = [metarm.guided_vote([j.scores for j in s[:k]], [j.meta for j in s[:k]], keep)
                 for s in samples]
        accuracy[keep] = np.mean([correct(v, item.gold) for v, item in zip(votes, items)])
    return max(accuracy, key=lambda keep: (accuracy[keep], keep))

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
    """One row of the table: one policy. parts: {part: (items, judgements)}."""
    items, samples = parts["votes"]
    stats = judgement_stats(samples, items)
    row = {}
    put_ci(row, "parse", columns["parse"])
    row["tie"] = round(stats["tie"], 4)
    for name in ("greedy", "sample"):
        put_ci(row, name, columns[name])
        put_ci(row, name + "_coin", columns[name + "_coin"])
    for name in ("vote", "vote_coin", "pass"):
        put_votes(row, name, columns, name)
    row["faithful"] = {}
    for name in FAITHFUL:
        put_ci(row["faithful"], name, columns[name])
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


def meta_results(parts, columns, k_meta):
    """One Meta RM, on the items of the vote. k_meta: {k: how many of k samples are kept}."""
    items, samples = parts["votes"]
    groups = []                                    # per item: (right, logit) of the judgements that parse
    for item, s in zip(items, samples):
        parsed = [j for j in s if j.scores is not None]
        groups.append(([correct(j.scores, item.gold) for j in parsed], [j.meta for j in parsed]))
    row = {"auc_pooled": metarm.auc(*(sum(part, []) for part in zip(*groups))),
           "auc_within": metarm.auc_within(groups), "k_meta": k_meta[max(k_meta)],
           "k_meta_at": {str(k): keep for k, keep in k_meta.items()}}
    # "vote" is the guided vote here, "random" its control
    for name, prefix in [("vote", "meta"), ("random", "meta_random"), ("half", "half"),
                         ("half_random", "half_random"), ("sweep", "sweep")]:
        put_votes(row, name, columns, prefix)
    return row


def results(run, evaluated):
    """evaluated: {stage: parts} -> the contents of results.json. Also saves per_item.npz, numbers per item
    from which differences can be paired."""
    cfg, stages, meta, arrays = run.cfg, {}, {}, {}
    for name, parts in evaluated.items():
        k_meta = None
        if "val" in parts:                         # for each k: fewer samples leave less to choose from
            k_meta = {k: choose_k_meta(*parts["val"], k) for k in votes_up_to(cfg.k)}
        items, samples = parts["votes"]             # the same items for each stage
        columns = item_columns(items, parts["greedy"][1], samples, cfg.seed, k_meta)
        stages[name] = stage_results(parts, columns)
        if k_meta is not None:
            meta[name] = meta_results(parts, columns, k_meta)
        arrays |= {f"{name}/{column}": values.astype(np.float32) for column, values in columns.items()}
    np.savez_compressed(run.path("per_item.npz"), subset=np.array([item.subset for item in items]), **arrays)
    return {"seed": cfg.seed, "preset": cfg.preset, "config": vars(cfg), "seconds": run.seconds(),
            "items": cfg.eval_items, "stages": stages, "meta": meta}

# ----------------------------------------------------------------------------------------
# The table

def with_interval(where, name, k=None):
    """'0.712±0.021' from where[name] and where[name_ci], or from their entries k."""
    value, ci = where[name], where[name + "_ci"]
    value, (low, high) = (value, ci) if k is None else (value[k], ci[k])
    return f"{value:.3f}±{(high - low) / 2:.3f}"


def table(r):
    """results.json -> text."""
    ks = sorted(r["stages"]["base"]["vote"], key=int)
    last = ks[-1]
    rows = [["stage", "parse", "tie", "greedy", "one sample", *(f"vote@{k}" for k in ks),
             f"pass@{last}", "n = 1", "ood greedy", "tokens"]]
    for name, s in r["stages"].items():
        rows.append([name, f"{s['parse']:.3f}", f"{s['tie']:.3f}", with_interval(s, "greedy"),
                     with_interval(s, "sample"), *(with_interval(s, "vote", k) for k in ks),
                     with_interval(s, "pass", last),
                     with_interval(s, "single"), with_interval(s["ood"], "greedy"), f"{s['tokens']:.0f}"])
        rows.append(["  coin flip", "", "", with_interval(s, "greedy_coin"), with_interval(s, "sample_coin"),
                     *(with_interval(s, "vote_coin", k) for k in ks), "", "", "", ""])
        if name not in r["meta"]:
            continue
        m = r["meta"][name]
        rows.append(["  k_meta", "", "", "", "", *(str(m["k_meta_at"][k]) for k in ks), "", "", "", ""])
        for label, key in [("  guided, best k_meta", "vote"), ("    random", "random"),
                           ("  guided, half", "half"), ("    random", "half_random")]:
            rows.append([label, "", "", "", "", *(with_interval(m, key, k) for k in ks), "", "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.append("")
    for name, m in r["meta"].items():
        sweep = ", ".join(f"{k} {v:.3f}" for k, v in m["sweep"].items())
        auc = ["none" if m[key] is None else f"{m[key]:.3f}" for key in ("auc_pooled", "auc_within")]
        lines.append(f"Meta RM of {name}: AUC {auc[0]} pooled, {auc[1]} within item; "
                     f"guided votes of {last} by k_meta: {sweep}")
    for name, s in r["stages"].items():
        subsets = ", ".join(f"{domain} {x['vote'][last]:.2f}" for domain, x in s["subsets"].items())
        lines.append(f"{name}: faithful " + ", ".join(f"{k} {s['faithful'][k]:.3f}" for k in FAITHFUL)
                     + f"; vote@{last} by subset: {subsets}")
    lines.append(f"{r['items']} items of the {r['config']['eval_split']} split")
    lines.append("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in r["seconds"].items()))
    return "\n".join(lines)

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
        votes = [s["sample"], *[s["vote"][k] for k in ks]]
        axes.plot(x, votes, "o-", color=colors[name], label=f"{name}: votes")
        axes.fill_between(x, band[:, 0], band[:, 1], color=colors[name], alpha=0.12)
        axes.axhline(s["greedy"], color=colors[name], ls=":", lw=1, label=f"{name}: greedy")
        if name in r["meta"]:
            m = r["meta"][name]
            axes.plot(x[1:], [m["vote"][k] for k in ks], "^--", color=colors[name],
                      label=f"{name}: guided votes, the best k_meta of k")
            axes.plot(x[1:], [m["random"][k] for k in ks], "x", color=colors[name], alpha=0.6,
                      label=f"{name}: random subset of that size")
    axes.set(xscale="log", xticks=x, xticklabels=x, xlabel="samples k",
             ylabel=f"strict accuracy, {r['config']['eval_split']} split")
    axes.legend(fontsize=7, ncol=2)
    axes.grid(alpha=0.3)
    save(fig, "votes.png")

    # Accuracy by subset: one sample, and what the votes add
    fig, axes = plt.subplots(figsize=(8, 4))
    subsets, last = list(r["stages"]["rl"]["subsets"]), ks[-1]
    for i, (name, s) in enumerate(r["stages"].items()):
        x = np.arange(len(subsets)) + (i - 1) * 0.27
        votes = [s["subsets"][d]["vote"][last] for d in subsets]
        axes.bar(x, votes, 0.25, color=colors[name], alpha=0.35)
        axes.bar(x, [s["subsets"][d]["sample"] for d in subsets], 0.25, color=colors[name],
                 label=f"{name} (pale: vote@{last})")
    axes.set(xticks=range(len(subsets)), xticklabels=subsets, ylabel="strict accuracy", ylim=(0, 1))
    axes.legend(fontsize=8)
    save(fig, "subsets.png")

    # How RL went
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        steps = [row for row in map(json.loads, f) if row["unit"] == "rl"]
    panels = [["reward"], ["kl"], ["entropy"], ["length"], ["silent_groups", "tie", "parse"],
              ["principles", "checks", "totals"]]
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
    ("guided@32 - vote@32, RFT", "rft/meta@32", "rft/vote@32"),
    ("guided@32 - random subset@32, RFT", "rft/meta@32", "rft/meta_random@32"),
    ("guided@8 - vote@8, RL", "rl/meta@8", "rl/vote@8"),
    ("guided@8 - random subset@8, RL", "rl/meta@8", "rl/meta_random@8"),
    ("guided@32 - vote@32, RL", "rl/meta@32", "rl/vote@32"),
    ("guided@32 - random subset@32, RL", "rl/meta@32", "rl/meta_random@32"),
]
DIFFERENCES += [(f"{b} - {a}, faithful {name}", f"{b.lower()}/{name}", f"{a.lower()}/{name}")
                for a, b in [("base", "RFT"), ("RFT", "RL")] for name in FAITHFUL]

COLUMNS = {"parse": "parses", "greedy": "greedy", "sample": "one sample", "vote@2": "vote@2",
           "vote@8": "vote@8", "vote@32": "vote@32", "half@8": "guided@8, half", "half@32": "guided@32, half",
           "meta@8": "guided@8, best k_meta", "meta_random@8": "random subset@8",
           "meta@32": "guided@32, best k_meta", "meta_random@32": "random subset@32", "pass@32": "pass@32",
           **{name: f"faithful {name}" for name in FAITHFUL}}


def in_words(values, draws, sign=""):
    """'0.712 ±0.021': the mean over runs, and half the 95% interval."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.mean([v.mean() for v in values]):{sign}.3f} ±{(high - low) / 2:.3f}"


def markdown(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def mean_of(arrays, column):
    """The mean of a column over the runs as text; empty if there is no such column."""
    values = [a[column] for a in arrays if column in a]
    return in_words(values, bootstrap(values)) if values else ""


def main_rows(runs, arrays):
    """One row a measure, one column a stage: means over the runs."""
    stages = list(runs[0]["stages"])
    rows = [["", *stages]]
    for column, label in COLUMNS.items():
        cells = [mean_of(arrays, f"{name}/{column}") for name in stages]
        rows += [[label, *cells]] if any(cells) else []                      # a short run has fewer votes
    of = lambda pick: [[pick(r["stages"][name]) for r in runs] for name in stages]
    # items of their own: the runs' intervals, combined as those of a mean of independent numbers
    half = lambda cis: np.sqrt(sum((high - low) ** 2 / 4 for low, high in cis)) / len(cis)
    combined = lambda values, cis: [f"{np.mean(v):.3f} ±{half(ci):.3f}" for v, ci in zip(values, cis)]
    rows.append(["n = 1, exact score", *combined(of(lambda s: s["single"]), of(lambda s: s["single_ci"]))])
    for name in ("greedy", "sample"):
        rows.append([f"out of distribution, {name}", *combined(of(lambda s: s["ood"][name]),
                                                               of(lambda s: s["ood"][name + "_ci"]))])
    rows.append(["ties", *(f"{np.mean(v):.3f}" for v in of(lambda s: s["tie"]))])
    rows.append(["tokens a judgement", *(f"{np.mean(v):.0f}" for v in of(lambda s: s["tokens"]))])
    return rows


def difference_rows(arrays):
    """One row a difference: mean over the runs, interval, each run's own."""
    rows = [["difference", "mean", "95% interval", "each run"]]
    for what, better, worse in DIFFERENCES:
        if better in arrays[0] and worse in arrays[0]:
            d = [a[better] - a[worse] for a in arrays]
            low, high = np.quantile(bootstrap(d), [0.025, 0.975])
            rows.append([what, f"{np.mean([x.mean() for x in d]):+.3f}", f"{low:+.3f} to {high:+.3f}",
                         ", ".join(f"{x.mean():+.3f}" for x in d)])
    return rows


def subset_rows(arrays):
    """One row a subset, RL policy: means over the runs. Last, how far the verifiable ones are behind."""
    columns = [c for c in ("greedy", "sample", "vote@8", "vote@32") if f"rl/{c}" in arrays[0]]
    rows = [["subset", *columns]]
    cut = lambda c, domains: [a[f"rl/{c}"][np.isin(a["subset"], domains)] for a in arrays]
    others = [d for d in DOMAINS if d not in VERIFIABLE]
    for name, domains in [*((d, [d]) for d in DOMAINS), ("verifiable", VERIFIABLE), ("others", others)]:
        if not all(np.isin(a["subset"], domains).any() for a in arrays):
            continue                               # a short run may have no item of a subset
        rows.append([name, *(in_words(cut(c, domains), bootstrap(cut(c, domains))) for c in columns)])
    if not {"verifiable", "others"} <= {row[0] for row in rows}:
        return rows
    row = ["others - verifiable"]
    for c in columns:                              # different items: two bootstraps, not a paired one
        behind = [a.mean() - b.mean() for a, b in zip(cut(c, others), cut(c, VERIFIABLE))]
        draws = bootstrap(cut(c, others), seed=0) - bootstrap(cut(c, VERIFIABLE), seed=1)
        row.append(in_words(np.array(behind), draws, "+"))
    return rows + [row]


def read_arrays(path):
    try:
        return dict(np.load(path))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): repeat --resume --stage eval") from None


def main(folders):
    """Print markdown tables: the runs' means, paired differences, subsets."""
    if not folders or folders[0].startswith("-"):
        raise UserError("name one or more run folders: python report.py runs/a runs/b")
    for folder in folders:
        if not all(os.path.exists(os.path.join(folder, name)) for name in ("results.json", "per_item.npz")):
            raise UserError(f"no results in {folder}: name a run folder whose run has finished")
    runs = [read_json(os.path.join(folder, "results.json")) for folder in folders]
    for folder, r in zip(folders, runs):
        if not {"config", "seed", "items", "stages"} <= set(r):
            raise UserError(f"{folder} holds results of another program: name run folders of this one")
    free = ("seed", "out", "device", "dtype", "threads")
    for name in {name for r in runs for name in r["config"]}.difference(free):
        if len({r["config"].get(name) for r in runs}) > 1:
            raise UserError(f"the runs differ in --{name}: only runs that differ in their seed have a mean")
    if len({r["seed"] for r in runs}) < len(runs):
        raise UserError("two of the runs have the same seed")
    arrays = [read_arrays(os.path.join(folder, "per_item.npz")) for folder in folders]
    print(f"{len(runs)} runs, {runs[0]['items']} items of the {runs[0]['config']['eval_split']} split each\n")
    for rows in (main_rows(runs, arrays), difference_rows(arrays), subset_rows(arrays)):
        print(markdown(rows) + "\n")


if __name__ == "__main__":
    command(main)
