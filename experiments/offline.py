"""
Can a judge rank policies? Offline evaluation of ten writers, each frozen.

Nine writers are those of rlhf.py: the first one, two from the course of RL, and the last one of each reward. The
tenth has seen a tenth of the texts. Each answers each query once. A judge reads the ten answers in random order,
four, four and two of them together, and a writer's score is its mean over queries. The true ranking is that by the
gold rewards of answers to other random queries. Spearman's rank correlation says how near a judge's ranking
is, and how many queries it takes to reach 0.9. The gold reward as a judge shows what the choice of queries alone
changes.

A judge may be fooled by a writer whose reward it was. So there is also a correlation without such writers.

Run rlhf.py before, which trains the writers.
"""

import os

import numpy as np
from matplotlib.figure import Figure

from data import UserError, run_command
from data.world import seed_of
from experiments import study
from experiments.rlhf import FULL, QUICK, REWARDS, snapshots
from experiments.writer import first_writer, gold_of, queries_of, texts_of, write


def spearman(a, b):
    """The rank correlation of two arrays (m,). Equal values share a rank.

    >>> spearman(np.array([1.0, 2.0, 4.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks = lambda v: (v[:, None] > v).sum(axis=1) + (v[:, None] == v).sum(axis=1) / 2
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return round(float(np.corrcoef(ranks(a), ranks(b))[0, 1]), 4)


def agreement(rewards, gold, count):
    """The mean rank correlation over 200 draws of `count` queries, with replacement.

    rewards (queries, writers): by a judge; gold (writers,): the mean gold reward of each writer
    """
    rng = np.random.default_rng(0)
    chosen = [rng.choice(len(rewards), count) for _ in range(200)]
    return np.mean([spearman(rewards[c].mean(axis=0), gold) for c in chosen])


def stable(rewards, gold):
    """How many queries are enough for a mean rank correlation of 0.9? None if all of them are not."""
    return next((n for n in range(1, len(rewards) + 1) if agreement(rewards, gold, n) >= 0.9), None)


def answers(run, writers, queries, others):
    """-> {judge: (queries, writers) rewards}, and "true": the gold rewards of other queries' answers"""
    cfg, tok = run.config(), run.tok
    fresh = [[gold_of(group[0], q) for q, group in zip(others, texts_of(tok, write(
        model, tok, others, 1, seed_of(cfg.seed, "others", i))))] for i, model in enumerate(writers)]
    found = {"true": np.array(fresh, float).T}                               # (others, writers)
    texts = [[group[0] for group in texts_of(tok, write(model, tok, queries, 1, seed_of(cfg.seed, "offline", i)))]
             for i, model in enumerate(writers)]
    orders = [np.random.default_rng(seed_of(cfg.seed, "offline", q.id)).permutation(len(writers)) for q in queries]
    mixed = [[texts[i][number] for i in order] for number, order in enumerate(orders)]
    for name, make in REWARDS.items():
        rewards = make(run)(queries, mixed, seed_of(cfg.seed, "judge", "offline"))           # (queries, writers)
        found[name] = np.array([row[np.argsort(order)] for row, order in zip(rewards, orders)])
    return found


def writers_of(sizes):
    """Names of their models"""
    first, middle, last = snapshots(sizes)
    return ["writer, beginner", "writer", f"writer, gold, {first}", f"writer, scalar RM, {middle}",
            *(f"writer, {name}, {last}" for name in REWARDS)]


def of_others(judge_name, writers):
    """The indices of writers whose reward was another one. (All GRMs are one model.)"""
    family = judge_name.split(",")[0]
    return [i for i, writer in enumerate(writers) if f", {family}," not in writer]


def study_run(run, sizes):
    seed, (beginner, *names) = run.config().seed, writers_of(sizes)
    run.model(beginner, lambda: first_writer(run, sizes.tokens // 10))
    for name in names:
        if not os.path.exists(run.path(name + ".pt")):
            raise UserError(f"{run.folder} has no {name}. Run `python -m experiments.rlhf` with the same folders.")
    writers = [run.model(name) for name in writers_of(sizes)]
    queries = queries_of(seed, "test", 2 * sizes.queries)
    return run.numbers(f"offline, {sizes.queries}", lambda: answers(
        run, writers, queries[:sizes.queries], queries[sizes.queries:]))


def draw(found, counts):
    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    for name in REWARDS:
        ax.plot(counts, [np.mean([agreement(f[name], f["true"].mean(axis=0), count) for f in found])
                         for count in counts], "o-", label=name)
    ax.set(xscale="log", xlabel="queries that each of ten writers answers", ylabel="rank correlation with gold")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = QUICK if quick else FULL
    found = [study_run(run, sizes) for run in runs]
    result = {"rank correlation": {}, "without its own writers": {}, "queries": {},
              "gold": [f["true"].mean(axis=0).round(3).tolist() for f in found]}
    rows = [["judge", "rank correlation, each run", "without its own writers", "queries for 0.9, each run"]]
    for name in REWARDS:
        both, some = [(f[name], f["true"].mean(axis=0)) for f in found], of_others(name, writers_of(sizes))
        every = result["rank correlation"][name] = [spearman(r.mean(axis=0), gold) for r, gold in both]
        others = result["without its own writers"][name] = [
            spearman(r.mean(axis=0)[some], gold[some]) for r, gold in both]
        result["queries"][name] = [stable(*of) for of in both]
        rows.append([name, ", ".join(f"{x:.2f}" for x in every),
                     "" if name == "gold" else ", ".join(f"{x:.2f}" for x in others),
                     ", ".join("more" if n is None else str(n) for n in result["queries"][name])])
    counts = [n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= sizes.queries]
    study.save("offline", runs, result, rows, draw(found, counts))


if __name__ == "__main__":
    run_command(main)
