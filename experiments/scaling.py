"""
Is it better to take more samples, or a larger model?

    for seed in 1 2 3; do
        run="python spct.py --seed $seed --device cpu --dtype bfloat16 --threads 2 --eval_items 600"
        $run --out runs/study-seed$seed
        $run --n_layer 3 --n_head 3 --n_embd 96 --out runs/medium-seed$seed
        $run --n_layer 2 --n_embd 64 --out runs/small-seed$seed
    done
    python -m experiments.scaling runs/small-seed* runs/medium-seed* runs/study-seed*

In the paper a model of 27B parameters with 32 votes is level with a greedy one of 671B. (The larger one had RFT,
but no RL.) Here three sizes are pre-trained on the same corpus, with the same settings. Three comparisons follow:

1. At equal compute: a plurality of the smaller model with as many samples as one greedy judgement of the larger
   pays for.
2. As in the paper: a plurality of 32 of the smaller model after RL, and a greedy judgement of the larger after
   RFT.
3. The same, with RL for both.

Ties are broken at random, since a greedy judgement ties more often than a vote. Only the compute of judging is
equal: a larger model also costs more to train. (Settings were chosen for the default size. Others might do better
with other settings.) This study trains nothing: it reads finished runs.
"""

import json

import numpy as np
from matplotlib.figure import Figure

from data import UserError, run_command
from data.judgement import vote_plurality
from experiments import study
from experiments.baselines import flops
from report import tie_broken

# ----------------------------------------------------------------------------------------
# One run


def parameters(run):
    return sum(p.numel() for p in run.model("rl").parameters())


def study_run(run, count):
    """The run's own judgements -> {"policy, greedy" or "policy, votes of k": (a number for each item,
    MFLOPs for an item)}"""
    items, found = run.items("test", count), {}
    for policy in ("rft", "rl"):
        sets = {"greedy": run.own(f"{policy}-greedy")[:count]}
        _, groups = run.judged(policy, "test", count, run.config().k, run.config().temperature)
        for k in range(1, run.config().k + 1):
            sets[f"votes of {k}"] = [group[:k] for group in groups]
        for name, chosen in sets.items():
            assert [group[0].item for group in chosen] == [item.id for item in items]
            right = [tie_broken(vote_plurality([j.scores for j in group]), item.gold)
                     for group, item in zip(chosen, items)]
            found[f"{policy}, {name}"] = np.array(right), flops(run.model(policy), chosen) / count / 1e6
    return found


def by_size(runs):
    """{size, such as "0.78M": its runs}, from small to large. UserError if they differ in anything else."""
    sizes = {}
    for run in sorted(runs, key=parameters):
        sizes.setdefault(f"{parameters(run) / 1e6:.2f}M", []).append(run)
    seeds = {size: sorted(run.config().seed for run in mine) for size, mine in sizes.items()}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise UserError(f"Each size needs runs of the same seeds. Here are {json.dumps(seeds)}.")
    free = ("n_layer", "n_head", "n_embd", "seed", "out", "preset", "threads", "device")
    settings = {str({name: v for name, v in vars(run.config()).items() if name not in free}) for run in runs}
    if len(settings) > 1:
        raise UserError("The runs differ in more than their size and seed.")
    for mine in sizes.values():
        mine.sort(key=lambda run: run.config().seed)
    return sizes

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    figure = Figure(figsize=(8, 5))
    ax = figure.subplots()
    for i, (size, of) in enumerate(result["numbers"].items()):
        for policy, style in (("rft", ":"), ("rl", "-")):
            votes = [name for name in of if name.startswith(f"{policy}, votes")]
            ax.plot([result["MFLOPs"][size][name] for name in votes], [of[name][0] for name in votes], style,
                    color=f"C{i}", label=f"{size}, {policy}: votes")
            greedy = f"{policy}, greedy"
            ax.plot(result["MFLOPs"][size][greedy], of[greedy][0], "o" if policy == "rl" else "x", color=f"C{i}")
    ax.set_xscale("log")
    ax.set(xlabel="MFLOPs for an item (marks: greedy)", ylabel="accuracy, ties broken at random")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__, alike=False)
    sizes = {"small": runs, "large": runs} if quick else by_size(runs)
    count = runs[0].config().eval_items
    found = {size: [study_run(run, count) for run in mine] for size, mine in sizes.items()}
    queries = [[item.query for item in run.items("test", count)] for run in next(iter(sizes.values()))]
    right = lambda size, name: [f[name][0] for f in found[size]]
    names = list(next(iter(found.values()))[0])
    cost_of = lambda size, name: round(float(np.mean([f[name][1] for f in found[size]])), 2)
    result = {"numbers": {size: {name: study.number(right(size, name)) for name in names} for size in sizes},
              "MFLOPs": {size: {name: cost_of(size, name) for name in names} for size in sizes}, "comparisons": {}}
    most = max(int(name.split()[-1]) for name in names if "votes" in name)
    rows = [["larger", "MFLOPs", "accuracy", "smaller", "MFLOPs", "accuracy", "smaller less larger"]]
    for large in sizes:
        for small in list(sizes)[:list(sizes).index(large)]:
            cost = result["MFLOPs"]
            k = max([k for k in range(1, most + 1)
                     if cost[small][f"rl, votes of {k}"] <= cost[large]["rl, greedy"]], default=1)
            for a, b in (("rl, greedy", f"rl, votes of {k}"), ("rft, greedy", f"rl, votes of {most}"),
                         ("rl, greedy", f"rl, votes of {most}")):
                d = study.difference(right(small, b), right(large, a), queries)
                result["comparisons"][f"{small}, {b}, less {large}, {a}"] = d
                rows.append([f"{large}, {a}", f"{cost[large][a]:.0f}", study.in_words(result["numbers"][large][a]),
                             f"{small}, {b}", f"{cost[small][b]:.0f}",
                             study.in_words(result["numbers"][small][b]), study.in_words(d)])
    study.save("scaling", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
