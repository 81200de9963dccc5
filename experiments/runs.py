"""
Several default runs that differ only in their seed: means, and differences paired by item.

    python -m experiments.runs runs/cpu-seed1 runs/cpu-seed2 ...      # four tables
    python -m experiments.runs --ship runs/cpu-seed1      # its judge becomes the one in data/judge

How to read the tables:

- **Strict accuracy** throughout: the best response's score must be strictly the largest; a tie or a
  judgement that does not parse is wrong. A random pick is right for .38 of these items; the base model's
  greedy answer is below that since it often ties. The console table has the "coin flip" (ties broken at
  random) beside it.
- **greedy** is one judgement at T = 0, **one sample** the mean over single judgements at T = 0.5,
  the votes' temperature.
- Votes of k samples: **sum@k** of their scores (Eq 14), **plurality@k**: one vote a judgement for its largest
  score, **weighted@k**: by the policy's own confidence. **pass@32**: is any of 32 right? With two responses a
  coin does that, so it only says that the right judgement is within reach.
- **guided@k**: only the k/2 judgements that the Meta RM likes best vote (a sum). **random@k** is the control:
  as many, drawn at random from those that parse. Guided votes must beat the plain vote *and* this.
- **faithful**: the share of principles that the raters use for this query, of checks that are true, of
  sub-totals that add up and stand as the score. (Mere impressions, "looks fine", are no checks.)
- **ties**: the share of single samples in which several responses have the largest score.
- **one response**: a single response is right if its score is the gold reward exactly, one of ten. **out of
  distribution**: pairs of domain and cue, and lengths of lists, that no training data holds.
- **verifiable** subsets (sums, sort, reverse: a program could check them) are behind the others, as in the
  paper.
- Intervals are 95% bootstraps over the items of these runs: they hold for these models and these queries.
  Other seeds train other models and differ by more: see the column "each run". And many items share a query
  (all list items come from 7, facts from 12, harmless from 19, harmful from 38): "queries drawn anew" are
  intervals for other queries, far wider for accuracies, hardly for differences between votes.
"""

import os
import shutil
import zipfile

import numpy as np
import torch

from data import Parser, UserError, command
from data.world import DOMAINS, VERIFIABLE, make_items
from metarm import PLAIN
from parallel import new_file
from report import FAITHFUL, bootstrap
from run import load_tensors, read_json
from sample import SHIPPED

# Better and worse column of per_item.npz.
STAGES = [("rft", "base"), ("rl", "rft")]
DIFFERENCES = [(f"{better}/{way}", f"{worse}/{way}") for better, worse in STAGES
               for way in ("one sample", "greedy")]
DIFFERENCES += [(f"{stage}/{better}", f"{stage}/{worse}") for stage, better, worse in [
    *(("rl", f"weighted@{k}", "greedy") for k in (4, 8, 32)),
    *(("rl", f"weighted@{k}", f"sum@{k}") for k in (4, 8, 32)), ("rl", "plurality@8", "sum@8"),
    *((stage, "weighted@8", "plurality@8") for stage in ("rft", "rl")), ("rft", "weighted@32", "guided@32"),
    ("rl", "sum@32", "greedy"), *((stage, "sum@8", "one sample") for stage in ("base", "rft", "rl")),
    *((stage, f"guided@{k}", f"{other}@{k}") for stage, k in (("rft", 32), ("rl", 8), ("rl", 32))
      for other in ("sum", "random"))]]
DIFFERENCES += [(f"{better}/faithful {name}", f"{worse}/faithful {name}") for better, worse in STAGES
                for name in FAITHFUL]

COLUMNS = ["parses", "greedy", "one sample", *(f"{way}@{k}" for way in PLAIN for k in (2, 4, 8, 16, 32)),
           "guided@8", "random@8", "guided@32", "random@32", "pass@32",
           *(f"faithful {name}" for name in FAITHFUL)]
OTHERS = ["one response, exact score", *(f"out of distribution, {way}" for way in (
    "greedy", "one sample", *(f"{rule}@8" for rule in PLAIN)))]

# ----------------------------------------------------------------------------------------
# Cells and tables, for the studies too

def in_words(values, draws):
    """'0.712 ±0.021': the mean over runs, and half the 95% interval."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.mean([v.mean() for v in values]):.3f} ±{(high - low) / 2:.3f}"


def combined(values):
    """The same of [mean, low, high] of each run, on items of its own: independent numbers."""
    half = np.sqrt(sum((high - low) ** 2 / 4 for _, low, high in values)) / len(values)
    return f"{np.mean([mean for mean, _, _ in values]):.3f} ±{half:.3f}"


def markdown(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def main_rows(runs, arrays):
    """One row a measure, one column a stage: means over the runs."""
    stages = list(runs[0]["stages"])
    rows = [["", *stages]]
    for column in COLUMNS:                         # base has no guided votes, a short run has fewer votes
        values = {name: [a[f"{name}/{column}"] for a in arrays if f"{name}/{column}" in a] for name in stages}
        if any(values.values()):
            rows.append([column, *(in_words(v, bootstrap(v)) if v else "" for v in values.values())])
    of = lambda name, column: [r["stages"][name][column] for r in runs]
    rows += [[column, *(combined(of(name, column)) for name in stages)] for column in OTHERS
             if column in runs[0]["stages"]["rl"]]
    rows.append(["ties", *(f"{np.mean(of(name, 'ties')):.3f}" for name in stages)])
    rows.append(["tokens a judgement", *(f"{np.mean(of(name, 'tokens')):.0f}" for name in stages)])
    return rows


def by_query(values, queries):
    """Bootstrap in which not items are drawn anew but queries, each with all its items in all runs: (1000,)
    means over runs. values: one array (items,) a run; queries: as many lists of the items' queries.

    Facts and lists have few queries, which come up in many items: drawn by item, intervals hold for these
    queries alone.
    """
    index = {query: i for i, query in enumerate(sorted(set().union(*queries)))}
    where = [[index[query] for query in mine] for mine in queries]
    sums = np.array([np.bincount(w, v, len(index)) for w, v in zip(where, values)])      # (runs, queries)
    counts = np.array([np.bincount(w, minlength=len(index)) for w in where])             # (runs, queries)
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), 1000)       # (1000, queries)
    return ((times @ sums.T) / np.maximum(times @ counts.T, 1)).mean(axis=1)


def query_rows(arrays, queries):
    """One row an accuracy: its interval if items, and if queries are drawn anew."""
    rows = [["", "items drawn anew", "queries drawn anew"]]
    for column in ("base/greedy", "rft/greedy", "rl/greedy", "rl/weighted@8", "rl/weighted@32"):
        values = [a[column] for a in arrays if column in a]
        if values:
            rows.append([column, in_words(values, bootstrap(values)),
                         in_words(values, by_query(values, queries))])
    return rows


def difference_rows(arrays, queries):
    """One row a difference: mean over the runs, its interval over items and over queries, each run's own."""
    rows = [["difference", "mean", "95% interval", "queries drawn anew", "each run"]]
    for better, worse in DIFFERENCES:
        if better in arrays[0] and worse in arrays[0]:
            d = [a[better] - a[worse] for a in arrays]
            bounds = (np.quantile(draws, [0.025, 0.975]) for draws in (bootstrap(d), by_query(d, queries)))
            mean, each = np.mean([x.mean() for x in d]), ", ".join(f"{x.mean():+.3f}" for x in d)
            rows.append([f"{better} - {worse}", f"{mean:+.3f}",
                         *(f"{low:+.3f} to {high:+.3f}" for low, high in bounds), each])
    return rows


def subset_rows(arrays):
    """One row a subset, RL policy: means over the runs. Last, those that can be computed, and the others."""
    shown = ("greedy", "one sample", "sum@32", "weighted@8", "weighted@32")
    columns = [c for c in shown if f"rl/{c}" in arrays[0]]
    rows = [["subset", *columns]]
    cut = lambda c, domains: [a[f"rl/{c}"][np.isin(a["subset"], domains)] for a in arrays]
    others = [d for d in DOMAINS if d not in VERIFIABLE]
    for name, domains in [*((d, [d]) for d in DOMAINS), ("verifiable", VERIFIABLE), ("others", others)]:
        if not all(np.isin(a["subset"], domains).any() for a in arrays):
            continue                               # a short run may have no item of a subset
        rows.append([name, *(in_words(cut(c, domains), bootstrap(cut(c, domains))) for c in columns)])
    return rows

FINDINGS = """
What stands out:

- **Each step of the staircase is there in each of the five seeds**: base, RFT, RL, votes, for greedy
  judgements and for single samples. After RL a single sample is almost as good as the greedy judgement, and
  votes are ahead of both (of greedy 4 by .045, 8 by .054, 32 by .064).
- **Votes are better counted than summed, most of all few of them**: at equal samples weighted votes are ahead
  of the paper's sum by .017 (4), .010 (8) and .004 (32). (In version 0.5.0, with votes at T = 1, it was
  .051, .042 and .016: a low temperature does most of what counting does.)
- **Which sample to trust matters before RL, not after**: weights by the policy's own confidence, which is
  free, make a plurality of 8 better by .025 after RFT, by .002 after RL. The Meta RM's filter is worth .050
  to a sum of 32 after RFT, level with the free weights; after RL it costs .008, and keeps no better half than
  chance does (AUC within items .57 to .66): samples share what is left of mistakes.
- **Reasons become true although no reward looks at them**: checks .16, .70, .96. Published RL with outcome
  rewards has made reasons worse (RationaleRM: .25 to .21). Here evidence stands before its verdict, and a
  score is the sum of verdicts, so that what is false costs rewards.
- **Sums are the hardest** (greedy .64, with 32 votes .75), then lists, where greedy judgements often tie
  (.66, .80): votes bring most where there is most to win.
- **Out of distribution**, judges are behind by .15 when greedy, by .12 with 8 votes.
- **A seed decides more than an interval says**: greedy after RL from .800 to .913, for the same code. So do
  queries: for others greedy has ±.029, not ±.006. Differences hold for other queries as well, but for that of
  the filter from a random half of 32, which is small in either case.
"""

# ----------------------------------------------------------------------------------------
# The program

def read_runs(folders):
    """-> their results, their numbers per item; refuses runs of which no mean can be taken."""
    for folder in folders:
        if not all(os.path.exists(os.path.join(folder, name)) for name in ("results.json", "per_item.npz")):
            raise UserError(f"{folder} lacks results.json or per_item.npz: name a run folder whose run has "
                            f"finished")
    runs, arrays = [read_json(os.path.join(folder, "results.json")) for folder in folders], []
    if not all({"config", "stages", "meta", "machine"} <= set(r) for r in runs):
        raise UserError("one of the folders holds results of another version: name run folders of this one")
    free = ("seed", "out", "device", "dtype", "threads")
    for name in {name for r in runs for name in r["config"]}.difference(free):
        if len({r["config"].get(name) for r in runs}) > 1:
            raise UserError(f"the runs differ in --{name}: only runs that differ in their seed have a mean")
    if len({r["seed"] for r in runs}) < len(runs):
        raise UserError("two of the runs have the same seed")
    for folder in folders:
        path = os.path.join(folder, "per_item.npz")
        try:
            arrays.append(dict(np.load(path)))
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): repeat --resume --stage eval") from None
    return runs, arrays


def tables(folders):
    """The four tables as text, and what they are of."""
    runs, arrays = read_runs(folders)
    seeds, cfg = ", ".join(str(r["seed"]) for r in runs), runs[0]["config"]
    items = [make_items(r["seed"], cfg["eval_split"], r["items"], least=2) for r in runs]
    if any([item.subset for item in mine] != a["subset"].tolist() for mine, a in zip(items, arrays)):
        raise UserError("the runs judged items of another world (data/world.py) than this one")
    queries = [[item.query for item in mine] for mine in items]
    made = (f"{len(runs)} runs (seeds {seeds}), {runs[0]['items']} items of the {cfg['eval_split']} split "
            f"each, trained in {cfg['dtype']}; {runs[0]['machine']}.")
    rows = (main_rows(runs, arrays), query_rows(arrays, queries), difference_rows(arrays, queries),
            subset_rows(arrays))
    return "\n\n".join([*map(markdown, rows), made])


def ship(folder):
    """Copy the base and the RL policy, RL's Meta RM and the tokenizer to data/judge, in half precision."""
    os.makedirs(SHIPPED, exist_ok=True)
    for name in ("base", "rl", "meta-rl"):
        saved = load_tensors(os.path.join(folder, name + ".pt"), "cpu")
        saved["weights"] = {key: value.half() for key, value in saved["weights"].items()}
        with new_file(os.path.join(SHIPPED, name + ".pt"), "wb") as f:
            torch.save(saved, f)
    shutil.copy(os.path.join(folder, "tokenizer.tiktoken"), SHIPPED)


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", help="run folders")
    parser.add_argument("--ship", action="store_true", help="put the first one's judge into data/judge")
    args = parser.parse_args(argv)
    if args.ship:
        ship(args.folders[0])
        return
    print(tables(args.folders))


if __name__ == "__main__":
    command(main)
