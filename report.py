"""
From judgements to numbers: measures, intervals, the table and the figures of one run.

    python report.py runs/cpu-seed0                # the table again, and the figures
    python report.py --html runs/cpu-seed0         # and report.html: the run, and judgements beside the truth

Primary measure: strict accuracy, where the best response's score must be strictly the largest, so a tie
or a judgement that does not parse is wrong. Beside it the coin flip: a tie is broken at random, and what
does not parse guesses. Intervals: 95%, bootstrap over items. They hold for the queries and the models at
hand: some queries of the toy world come up in many items, and another seed trains another model.

How to read rl.png, the curves of RL:

- reward is the mean of +1 and -1: accuracy is (reward + 1) / 2. It must rise; it is noisy, 512 samples a
  step by default.
- kl (to the RFT model, per token) rises and then levels off where the penalty balances the gain. If it
  shoots up, lower --rl_lr or raise --beta; if it stays at zero, nothing is learned.
- entropy falls as the policy makes up its mind. Near zero all samples agree: votes then cannot help.
- length grows where evidence pays: from a glance ("looks fine") to quoted, checked critiques.
- silent_groups: all samples of a point are right, or all wrong. The reward gives them no gradient.
- principles, checks, totals: are the reasons true (see faithfulness)? Reward that rises without them would be
  a judge that is right for the wrong reasons.
"""

import contextlib
import glob
import json
import os

import numpy as np

import metarm
from data import Parser, UserError, command
from data.judgement import correct, pick
from data.world import DOMAINS, seed_of
from metarm import PLAIN, RULES
from parallel import new_file
from run import machine, read_json, write_json

# ----------------------------------------------------------------------------------------
# Measures of one judgement

def coin_flip(scores, gold):
    """Chance of being right when ties are broken at random: 1/m if the best is among m maxima; a guess among
    all if nothing parses (scores None).

    >>> coin_flip([9, 9, 1], [4, 7, 2]), coin_flip([9, 8], [4, 7]), coin_flip(None, [4, 7])
    (0.5, 0.0, 0.5)
    """
    if scores is None:
        return 1 / len(gold)
    best = gold.index(max(gold))
    return (scores[best] == max(scores)) / scores.count(max(scores))


FAITHFUL = ("principles", "checks", "totals")


def holds(check, truth):
    """Is a check's verdict true? check: (name, evidence, good); truth of the response: see Item."""
    name, _, good = check
    return name in truth and good == truth[name][0]


def adds_up(critique, weights, score):
    """Is a sub-total the sum of the weights that were found good (at least 1), with each principle checked
    and nothing else, and does it stand as the score?"""
    found = {name: good for name, _, good in critique["checks"]}
    earned = max(1, sum(w for name, w in weights.items() if found.get(name)))
    return set(found) == set(weights) and critique["total"] == earned == score


def faithfulness(j, item):
    """Is a judgement right for the right reasons? -> (principles, checks, totals), three shares.

    principles: the share of the judgement's principles that the raters use, too. checks: of all
    (response, principle) cells, those that hold a check whose verdict is true, whatever evidence stands
    before it; a mere impression is no check.
    totals: sub-totals that add up.
    """
    weights = dict(map(tuple, j.principles))
    fit = np.mean([name in item.weights for name in weights])
    true, totals = [], []
    for critique, truth, score in zip(j.critiques, item.truth, j.scores):
        by_name = {check[0]: holds(check, truth) for check in critique["checks"]}
        true += [by_name.get(name, False) for name in weights]
        totals.append(adds_up(critique, weights, score))
    return fit, np.mean(true), np.mean(totals)


def mean_faithfulness(groups, items):
    """(items, 3): the mean over each item's judgements that parse, 0 if none does."""
    parsed = [[j for j in group if j.scores is not None] for group in groups]
    return np.array([np.mean([faithfulness(j, item) for j in group] or [[0.0] * 3], axis=0)
                     for group, item in zip(parsed, items)])


def judgement_stats(groups, items):
    """Judgements (lists per item) -> means over all of them: accuracy, parse rate, length in tokens, share
    that was cut off by the end of the context; over those of several responses that parse: tie rate; over
    items: faithfulness."""
    flat = [(j, item) for group, item in zip(groups, items) for j in group]
    parsed = [(j, item) for j, item in flat if j.scores is not None]
    several = [j.scores for j, item in parsed if item.n > 1]
    return {"right": float(np.mean([correct(j.scores, item.gold) for j, item in flat])),
            "parse": len(parsed) / len(flat),
            "tie": float(np.mean([pick(scores) is None for scores in several] or [0.0])),
            "length": float(np.mean([len(j.ids) for j, _ in flat])),
            "truncated": float(np.mean([j.status == "no end" for j, _ in flat])),
            **dict(zip(FAITHFUL, mean_faithfulness(groups, items).mean(axis=0).tolist()))}

# ----------------------------------------------------------------------------------------
# Intervals

def bootstrap(runs):
    """Draw the items of each run anew: (1000,) means over runs of the mean over items.

    runs: one array (items,) a run. They speak for these runs alone, not for other seeds.
    """
    rng = np.random.default_rng(0)
    resampled = lambda values: values[rng.integers(0, len(values), len(values))].mean()
    return np.array([np.mean([resampled(values) for values in runs]) for _ in range(1000)])


def interval(values):
    """95% interval of a mean over items: [low, high]."""
    draws = bootstrap([np.asarray(values, float)])
    return [round(float(q), 4) for q in np.quantile(draws, [0.025, 0.975])]


def with_interval(values):
    """[mean, low, high] of a measure, one number an item."""
    return [round(float(np.mean(values)), 4), *interval(values)]

# ----------------------------------------------------------------------------------------
# Ways to judge

def answers(cfg, sets, guided):
    """What each way to judge says of the items of the vote, from one policy's judgements (as of
    spct.judge_sets) -> {way: for each item a list of answers, each n scores or None}. guided: there is a
    Meta RM.

    An item's accuracy is the mean over its answers: most ways give one, "one sample" k, a random subset 8.
    """
    (items, greedy), (_, samples) = sets["greedy"], sets["votes"]
    ways = {"greedy": [[s[0].scores] for s in greedy], "one sample": [[j.scores for j in s] for s in samples]}
    for k in [2 ** i for i in range(1, cfg.k.bit_length())]:
        first = [s[:k] for s in samples]
        for rule in PLAIN:
            ways[f"{rule}@{k}"] = [[RULES[rule](s)] for s in first]
        if guided:
            ways[f"guided@{k}"] = [[RULES["guided"](s)] for s in first]
            seed = lambda item, draw: seed_of(cfg.seed, "control", item.id, k, draw)
            ways[f"random@{k}"] = [
                [metarm.random_vote(s, metarm.half(s), seed(item, draw)) for draw in range(8)]
                for s, item in zip(first, items)]
    return ways

# ----------------------------------------------------------------------------------------
# One number per item, so that differences can be paired

def item_columns(sets, ways):
    """-> {column: array (items,)}, entries in 0..1: how often each way to judge an item is right.

    sets: a policy's judgements, as of spct.judge_sets. ways: as of answers.
    """
    (items, samples), columns = sets["votes"], {}
    for way, found in ways.items():
        measure = lambda grade: np.array([np.mean([grade(answer, item.gold) for answer in each])
                                          for each, item in zip(found, items)])
        columns[way] = measure(correct)
        if way in ("greedy", "one sample") or way.startswith("sum@"):
            columns["coin flip, " + way] = measure(coin_flip)
        if way.startswith("sum@"):                 # pass@k: is any of the first k right?
            k = int(way.removeprefix("sum@"))
            columns[f"pass@{k}"] = np.array([max(correct(j.scores, item.gold) for j in s[:k])
                                             for s, item in zip(samples, items)], float)
    columns["parses"] = np.array([np.mean([j.scores is not None for j in s]) for s in samples])
    for name, values in zip(FAITHFUL, mean_faithfulness(samples, items).T):
        columns[f"faithful {name}"] = values
    return columns


def other_columns(sets):
    """The same on items of their own."""
    right = lambda name: np.array([np.mean([correct(j.scores, item.gold) for j in s])
                                   for item, s in zip(*sets[name])])
    columns = {"one response, exact score": right("single"),
               "out of distribution, greedy": right("ood-greedy"),
               "out of distribution, one sample": right("ood")}
    items, samples = sets["ood"]
    for rule in PLAIN:
        votes = np.array([correct(RULES[rule](s), item.gold) for item, s in zip(items, samples)], float)
        columns[f"out of distribution, {rule}@{len(samples[0])}"] = votes
    return columns

# ----------------------------------------------------------------------------------------
# results.json

def stage_results(sets, columns):
    """One policy: {measure: [mean, low, high]}, the same by subset, ties and tokens."""
    items, samples = sets["votes"]
    stats = judgement_stats(samples, items)
    found = {name: with_interval(values) for name, values in {**columns, **other_columns(sets)}.items()}
    found |= {"ties": round(stats["tie"], 4), "tokens": round(stats["length"], 1), "subsets": {}}
    for domain in DOMAINS:
        mine = np.array([item.subset == domain for item in items])
        if mine.any():
            found["subsets"][domain] = {"items": int(mine.sum()), **{
                name: with_interval(values[mine]) for name, values in columns.items()
                if name in ("greedy", "one sample") or name.startswith(("sum@", "weighted@"))}}
    return found


def meta_results(sets):
    """One Meta RM, on the judgements of the vote that parse: AUC over all pairs, over those of one item."""
    groups = []                                    # per item: (right, logit) of each judgement
    for item, s in zip(*sets["votes"]):
        parsed = [j for j in s if j.scores is not None]
        groups.append(([correct(j.scores, item.gold) for j in parsed], [j.meta for j in parsed]))
    all_right, all_logits = (sum(lists, []) for lists in zip(*groups))
    return {"AUC, all pairs": metarm.auc(all_right, all_logits),
            "AUC, pairs of one item": metarm.auc_within(groups)}


def results(run, judged):
    """judged: {name of the policy: sets} -> the contents of results.json, written with per_item.npz, the
    numbers per item from which differences can be paired."""
    cfg, found, arrays = run.cfg, {"stages": {}, "meta": {}}, {}
    for name, sets in judged.items():
        columns = item_columns(sets, answers(cfg, sets, guided=name != "base"))
        found["stages"][name] = stage_results(sets, columns)
        if name != "base":                         # it has no Meta RM
            found["meta"][name] = meta_results(sets)
        arrays |= {f"{name}/{column}": values.astype(np.float32) for column, values in columns.items()}
    subsets = [item.subset for item in judged["base"]["votes"][0]]           # the same items for each stage
    with new_file(run.path("per_item.npz"), "wb") as f:
        np.savez_compressed(f, subset=np.array(subsets), **arrays)
    found = {"seed": cfg.seed, "preset": cfg.preset, "config": vars(cfg), "machine": machine(),
             "seconds": run.seconds(), "items": cfg.eval_items, **found}
    write_json(run.path("results.json"), found)
    return found

# ----------------------------------------------------------------------------------------
# The table

def cell(value):
    """'0.712 ±0.021' of [mean, low, high]; any other number as it is."""
    return f"{value[0]:.3f} ±{(value[2] - value[1]) / 2:.3f}" if isinstance(value, list) else f"{value:g}"


def in_columns(rows):
    """Rows of cells -> text, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    line = lambda row: "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
    return "\n".join(map(line, rows))


def table(r):
    """results.json -> text: one row a measure, one column a stage; then the last policy by subset."""
    stages = r["stages"]
    measures = [m for m in max(stages.values(), key=len) if m != "subsets"]  # base has no guided votes
    kinds = list(dict.fromkeys(m.split("@")[0] for m in measures))           # all votes, all guided, ...
    measures.sort(key=lambda m: (m.startswith("coin flip"), kinds.index(m.split("@")[0])))
    rows = [["strict accuracy, and other measures", *stages]]
    rows += [[m, *(cell(s[m]) if m in s else "" for s in stages.values())] for m in measures]
    stood = np.cumsum([r["seconds"][stage] for stage in ("pretrain", "rft", "rl")]) / 60
    rows.append(["minutes until this policy stood", *(f"{minutes:.1f}" for minutes in stood)])
    k = max(int(m.removeprefix("sum@")) for m in measures if m.startswith("sum@"))
    shown = ["items", "greedy", "one sample", f"sum@{k}", f"weighted@{k}"]
    by_subset = [["rl, by subset", *shown]]
    for domain, s in stages["rl"]["subsets"].items():
        by_subset.append([domain, *(cell(s[m]) for m in shown)])
    lines = [in_columns(rows), "", in_columns(by_subset), ""]
    for name, m in r["meta"].items():
        of, within = ("none" if value is None else f"{value:.3f}" for value in m.values())
        lines.append(f"Meta RM of {name}: AUC {of} over all pairs, {within} over pairs of one item")
    lines.append(f"{r['items']} items of the {r['config']['eval_split']} split; ± half a 95% interval")
    seconds = ", ".join(f"{stage} {s:.0f}" for stage, s in r["seconds"].items())
    lines.append(f"seconds: {seconds}; {r['machine']}")
    return "\n".join(lines)

# ----------------------------------------------------------------------------------------
# Figures

def read_lines(path):
    """A metrics file -> a dict a step; a line that is being written is left out."""
    with open(path) as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


@contextlib.contextmanager
def canvas(path, rows=1, columns=1, width=8, height=5):
    """One or more axes to draw on, saved at the end, with grids and legends."""
    import matplotlib
    matplotlib.use("Agg")                          # no screen is needed
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(rows, columns, figsize=(width, height))
    yield axes
    for ax in fig.axes:
        ax.grid(alpha=0.3)
        lines = len(ax.get_legend_handles_labels()[0])
        if lines:
            ax.legend(fontsize=7, ncols=1 if lines < 10 else 2)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


COLORS = {"base": "tab:gray", "rft": "tab:blue", "rl": "tab:red"}


def draw_votes(path, r):
    """Accuracy against the number of votes."""
    with canvas(path, height=5.5) as axes:
        for name, s in r["stages"].items():
            ks = [int(m.removeprefix("sum@")) for m in s if m.startswith("sum@")]
            x, color = [1, *ks], COLORS[name]
            votes = np.array([s["one sample"], *(s[f"sum@{k}"] for k in ks)])              # (1 + ks, 3)
            axes.plot(x, votes[:, 0], "o-", color=color, label=f"{name}: sum of scores")
            axes.fill_between(x, votes[:, 1], votes[:, 2], color=color, alpha=0.12)
            axes.axhline(s["greedy"][0], color=color, ls=":", lw=1, label=f"{name}: greedy")
            for way, style, label in (("plurality", "s-.", "plurality"), ("weighted", "D-.", "weighted"),
                                      ("guided", "^--", "guided votes"), ("random", "x", "random subset")):
                if f"{way}@{ks[0]}" in s:          # base has no Meta RM
                    means = [s[f"{way}@{k}"][0] for k in ks]
                    axes.plot(ks, means, style, ms=4, lw=1, color=color, label=f"{name}: {label}")
        axes.set(xscale="log", xticks=x, xticklabels=x, xlabel="samples k",
                 ylabel=f"strict accuracy, {r['config']['eval_split']} split")
        axes.minorticks_off()


def draw_rl(path, steps):
    """How RL went: see the beginning of this file. steps: the lines of metrics-rl.jsonl."""
    panels = [["reward"], ["kl"], ["entropy"], ["length"], ["silent_groups", "tie", "parse"], FAITHFUL]
    with canvas(path, 2, 3, width=11, height=5.5) as grid:
        for axes, names in zip(grid.flat, panels):
            for name in names:
                axes.plot([row["step"] for row in steps], [row[name] for row in steps], label=name)
            axes.set(xlabel="RL step")


def figures(folder, r):
    """votes.png and rl.png in the run folder, from results.json and metrics-rl.jsonl."""
    draw_votes(os.path.join(folder, "votes.png"), r)
    draw_rl(os.path.join(folder, "rl.png"), read_lines(os.path.join(folder, "metrics-rl.jsonl")))


def show_unfinished(folder):
    """What there is of a run that has not finished: the units that are done, the last line of each metrics
    file, and rl.png as soon as RL has begun."""
    path = os.path.join(folder, "progress.json")
    done = read_json(path) if os.path.exists(path) else {}
    units = ", ".join(f"{unit} {s:.0f} s" for unit, s in done.items())
    print("not finished; done: " + (units or "nothing yet"))
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "metrics-*.jsonl")), key=os.path.getmtime):
        steps = read_lines(path)
        last = json.dumps(steps[-1] if steps else {})
        print(f"{os.path.basename(path)}, {len(steps)} lines, the last: {last}")
        if path.endswith("metrics-rl.jsonl") and steps:
            draw_rl(os.path.join(folder, "rl.png"), steps)


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("folder", help="a run folder, for instance runs/cpu-seed0")
    parser.add_argument("--html", action="store_true", help="write report.html, too")
    args = parser.parse_args(argv)
    path = lambda name: os.path.join(args.folder, name)
    if not os.path.exists(path("results.json")) and os.path.exists(path("config.json")):
        show_unfinished(args.folder)
        if args.html:
            print("report.html: not before it has finished")
        return
    if not all(os.path.exists(path(name)) for name in ("results.json", "metrics-rl.jsonl")):
        raise UserError(f"no run in {args.folder}: name a run folder, for instance runs/cpu-seed0")
    r = read_json(path("results.json"))
    if not {"config", "stages", "meta", "machine"} <= set(r):
        raise UserError(f"{args.folder} holds results of another program: name a run folder of this one")
    if args.html:
        import page  # which needs this file
        page.of_run(args.folder)
    print(table(r))
    figures(args.folder, r)
    if args.html:
        print(f"judgements beside the truth: {path('report.html')}")


if __name__ == "__main__":
    command(main)
