"""
Several runs that differ only in their seed: means, and differences paired by item.

    python -m experiments.runs runs/cpu-seed1 runs/cpu-seed2 ...      # three tables
    python -m experiments.runs --ship runs/cpu-seed1                  # bundle its judge, in data/judge

How to read the tables:
- greedy is at temperature 0. "one sample" is the mean over single judgements at the votes' temperature.
- random@k is the control of guided@k: a sum over a random half of what parses. Guided votes must beat it.
- pass@k: is any of k samples correct? With two responses a coin does that.
- faithful: the shares of principles that the raters use, of true checks, and of totals that add up.
- Intervals are 95% bootstraps over items. Many items share a query, so "queries resampled" has intervals
  for other queries. Seeds differ by more than either interval says: see the column "each run".
"""

import argparse
import os
import shutil
from collections import Counter

import numpy as np

from data import UserError, run_command
from data.judgement import write_judgements
from data.tokenizer import load_tokenizer
from data.world import DOMAINS, VERIFIABLE, make_item, make_items
from model import load_model, save_model
from report import read_results
from sample import BUNDLED, judge

DIFFERENCES = [                                    # columns of per_item.npz: better and worse
    *((f"{better}/{measure}", f"{worse}/{measure}") for better, worse in (("rft", "base"), ("rl", "rft"))
      for measure in ("greedy", "one sample", "faithful checks")),
    *((f"rl/plurality@{k}", other) for k in (4, 8, 32) for other in ("rl/greedy", f"rl/sum@{k}")),
    *((f"{policy}/guided@{k}", f"{policy}/{other}@{k}") for policy in ("rft", "rl") for k in (8, 32)
      for other in ("sum", "random"))]
BY_DOMAIN = ["greedy", "one sample", "sum@8", "plurality@8", "sum@32", "plurality@32"]

# ----------------------------------------------------------------------------------------
# Bootstraps

def by_item(values):
    """Resample the items of each run, 1,000 times: (1000,) means over runs of the mean over items.
    values: an array (items,) for each run."""
    rng = np.random.default_rng(0)
    resampled = lambda v: v[rng.integers(0, len(v), len(v))].mean()
    return np.array([np.mean([resampled(v) for v in values]) for _ in range(1000)])


def by_query(values, queries):
    """Resample queries, each with all its items in all runs: (1000,) means over runs.
    values: an array (items,) for each run; queries: a list of its items' queries for each run."""
    index = {query: i for i, query in enumerate(sorted(set().union(*queries)))}
    where = [[index[query] for query in mine] for mine in queries]
    sums = np.array([np.bincount(w, v, len(index)) for w, v in zip(where, values)])      # (runs, queries)
    counts = np.array([np.bincount(w, minlength=len(index)) for w in where])             # (runs, queries)
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), 1000)       # (1000, queries)
    return ((times @ sums.T) / np.maximum(times @ counts.T, 1)).mean(axis=1)


def in_words(values, draws):
    """'0.712 ±0.021': the mean over runs, and half the 95% interval."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.mean([v.mean() for v in values]):.3f} ±{(high - low) / 2:.3f}"


def combined(values):
    """The same of [mean, low, high] of each run: independent numbers. Of plain numbers, their mean."""
    if not isinstance(values[0], list):
        return f"{np.mean(values):.4g}"
    half = np.sqrt(sum((high - low) ** 2 / 4 for _, low, high in values)) / len(values)
    return f"{np.mean([mean for mean, _, _ in values]):.3f} ±{half:.3f}"

# ----------------------------------------------------------------------------------------
# Tables

def mean_rows(runs, arrays, queries):
    """A row for each measure, a column for each policy. The last column: rl, with queries resampled."""
    stages, rows = runs[0]["stages"], [["mean over runs", *runs[0]["stages"], "rl, queries resampled"]]
    for measure in [m for m in stages["rl"] if m != "by domain"]:
        row = [measure]
        for name in stages:
            values = [a[f"{name}/{measure}"] for a in arrays if f"{name}/{measure}" in a]
            if values:
                row.append(in_words(values, by_item(values)))
            else:                                  # of items of their own, or base has not as many votes
                numbers = [r["stages"][name][measure] for r in runs if measure in stages[name]]
                row.append(combined(numbers) if numbers else "")
        rows.append([*row, in_words(values, by_query(values, queries)) if values else ""])
    return rows


def difference_rows(arrays, queries):
    """A row for each difference: its mean over the runs, the intervals of that, and each run's own."""
    rows = [["difference", "mean", "95% interval", "queries resampled", "each run"]]
    in_numbers = lambda draws: "{:+.3f} to {:+.3f}".format(*np.quantile(draws, [0.025, 0.975]))
    for better, worse in DIFFERENCES:
        if better in arrays[0] and worse in arrays[0]:
            d = [a[better] - a[worse] for a in arrays]
            each = [x.mean() for x in d]
            rows.append([f"{better} - {worse}", f"{np.mean(each):+.3f}", in_numbers(by_item(d)),
                         in_numbers(by_query(d, queries)), ", ".join(f"{x:+.3f}" for x in each)])
    return rows


def domain_rows(arrays, domains):
    """A row for each domain, of the RL policy; then those that can be computed, and the others.
    domains: a list of its items' domains for each run."""
    measures = [m for m in BY_DOMAIN if f"rl/{m}" in arrays[0]]
    rows = [["rl, by domain", *measures]]
    others = [d for d in DOMAINS if d not in VERIFIABLE]
    for name, some in [*((d, [d]) for d in DOMAINS), ("verifiable", VERIFIABLE), ("others", others)]:
        masks = [np.isin(mine, some) for mine in domains]
        if all(mask.any() for mask in masks):      # a short run may have no item of a domain
            of = [[a[f"rl/{m}"][mask] for a, mask in zip(arrays, masks)] for m in measures]
            rows.append([name, *(in_words(values, by_item(values)) for values in of)])
    return rows


def markdown(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])

# ----------------------------------------------------------------------------------------
# The program

def read_runs(folders):
    """-> their results, and their numbers for each item. Refuses runs of which no mean can be taken."""
    runs, arrays = [read_results(folder) for folder in folders], []
    free = ("seed", "out", "device", "dtype", "threads")
    for name in {name for r in runs for name in r["config"]}.difference(free):
        if len({r["config"].get(name) for r in runs}) > 1:
            raise UserError(f"The runs differ in --{name}. Only runs that differ in their seed have a mean.")
    if len({r["config"]["seed"] for r in runs}) < len(runs):
        raise UserError("Two of the runs have the same seed.")
    for path in [os.path.join(folder, "per_item.npz") for folder in folders]:
        try:
            arrays.append(dict(np.load(path)))
        except Exception as error:                 # a damaged file raises nearly anything
            raise UserError(f"{path} cannot be read ({error}). Repeat the run.") from None
    return runs, arrays


def tables(folders):
    """The three tables as text, and what they are of."""
    runs, arrays = read_runs(folders)
    cfg, count = runs[0]["config"], runs[0]["items"]
    items = [make_items(r["config"]["seed"], cfg["eval_split"], count, least=2) for r in runs]
    domains = [[item.domain for item in mine] for mine in items]
    queries = [[item.query for item in mine] for mine in items]
    for r, mine in zip(runs, domains):
        judged = {domain: of["items"] for domain, of in r["stages"]["rl"]["by domain"].items()}
        if judged != Counter(mine):
            raise UserError("The runs judged items of another world (data/world.py) than this one.")
    seeds = ", ".join(str(r["config"]["seed"]) for r in runs)
    made = f"{len(runs)} runs (seeds {seeds}), {count} items of the {cfg['eval_split']} split each."
    rows = mean_rows(runs, arrays, queries), difference_rows(arrays, queries), domain_rows(arrays, domains)
    return "\n\n".join([*map(markdown, rows), made])


def ship(folder):
    """Copy a run's models in half precision, and its tokenizer, to data/judge. Sample what TOUR.md reads."""
    os.makedirs(BUNDLED, exist_ok=True)
    for name in ("base", "rft", "rl", "meta"):
        model = load_model(os.path.join(folder, name + ".pt"))
        save_model(os.path.join(BUNDLED, name + ".pt"), model.half())
    shutil.copy(os.path.join(folder, "tokenizer.tiktoken"), BUNDLED)
    write_judgements(os.path.join(BUNDLED, "tour.jsonl"), [sample_tour()])


def sample_tour():
    """The bundled checkpoint's judgements of one item: 3 greedy ones (base, rft, rl), 3 as for RFT, 4 as in the
    first rollout of RL, and 8 votes after RFT."""
    tok = load_tokenizer(os.path.join(BUNDLED, "tokenizer.tiktoken"))
    base, rft, rl = (load_model(os.path.join(BUNDLED, f"{name}.pt")) for name in ("base", "rft", "rl"))
    item = make_item(0, "test", 103, least=2, most=2)
    ask = lambda model, k, temperature, shuffle: judge(model, tok, [item], k, 7, temperature, shuffle)[0]
    return [*ask(base, 1, 0, False), *ask(rft, 1, 0, False), *ask(rl, 1, 0, False),
            *ask(base, 3, 1.0, True), *ask(rft, 4, 1.0, False), *ask(rft, 8, 0.5, True)]


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m experiments.runs", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="run folders")
    parser.add_argument("--ship", metavar="FOLDER", help="put this run's judge into data/judge")
    args = parser.parse_args(argv)
    if bool(args.folders) == bool(args.ship):
        raise UserError("Give run folders, or --ship FOLDER.")
    ship(args.ship) if args.ship else print(tables(args.folders))


if __name__ == "__main__":
    run_command(main)
