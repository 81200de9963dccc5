"""
What does each part of the method bring? (The paper's Table 4.)

Each variant starts from the same base model:

- RFT: without hinted samples; with hinted samples alone; without general text. These have fewer documents, and so
  fewer steps, than the default. Without rejection: as many of the samples that parse as the default keeps, but
  picked at random. RL then starts from that RFT model.
- RL: without RFT before it; without a KL penalty (beta 0), and with one that is four times as large.
- Other random numbers in RL. This is no ablation: it shows how much the results change for no reason at all.
- Without principles: the critique comes first (see judges.py).
- Votes: all samples read the item's own order. By default each reads a fresh one.
- The filter of the Meta RM keeps 1, 8 or 16 (the default) of 32 samples.

In the paper, variants of RFT are measured after RFT alone. Here they are measured after RL, too.
"""

import random

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.judgement import correct, vote_plurality, vote_sum
from data.world import DOMAINS, seed_of
from experiments import study
from experiments.judges import NO_PRINCIPLES, grm_without_principles, judge_as
from metarm import keep_best
from report import tie_broken
from sample import judge
from spct import is_correct, keep, keep_hinted

# The paper's overall accuracy in percent (27B), greedy: after RFT, and after RL
PAPER = {"default": ("68.8", "69.9"), "RFT without hinted samples": ("68.0", ""),
         "RFT on hinted samples alone": ("67.4", ""), "RFT without general text": ("63.3", ""),
         "RL without RFT": ("", "68.7"), "without principles": ("", "67.5"), "filter keeps 1 of 32": ("", "71.5"),
         "filter keeps 8 of 32": ("", "72.7"), "filter keeps 16 of 32": ("", "72.8")}

# ----------------------------------------------------------------------------------------
# Training


def rft_data(run):
    """The judgements that RFT learns from: {variant: judgements}."""
    item_of = {item.id: item for item in run.training_items()}
    samples, hinted = run.own("rft"), run.own("hinted")
    plain = [j for group in samples for j in keep(group, item_of[group[0].item])]
    with_hint = [j for group in hinted for j in keep_hinted(group, item_of[group[0].item])]
    parsed = [j for group in samples + hinted for j in group if j.scores is not None]
    parsed = random.Random(seed_of(run.config().seed, "ablations")).sample(parsed, len(plain + with_hint))
    return {"RFT without hinted samples": plain, "RFT on hinted samples alone": with_hint,
            "RFT without general text": plain + with_hint, "RFT without rejection": parsed}


def policies(run):
    """-> {variant: {"rft": name of the model, "rl": name of the model}}, trained if they are not there yet."""
    found = {"default": {"base": "base", "rft": "rft", "rl": "rl"}}
    data, hard = rft_data(run), run.hard_items()

    def train_rl(name, start, **changes):
        return run.model(name, lambda: spct.reinforce(run.config(**changes), run.tok, run.model(start), hard))

    for variant, kept in data.items():
        names = found[variant] = {stage: f"ablations, {variant}, {stage}" for stage in ("rft", "rl")}
        cfg = run.config(rft_general=0.0) if "general" in variant else run.config()
        run.model(names["rft"], lambda: spct.finetune(cfg, run.tok, run.model("base"), kept))
        train_rl(names["rl"], names["rft"])
    for variant, start, changes in (
            ("RL without RFT", "base", {}), ("beta 0", "rft", {"beta": 0.0}), ("beta 0.6", "rft", {"beta": 0.6}),
            ("other random numbers in RL", "rft", {"seed": run.config().seed + 1000})):
        found[variant] = {"rl": f"ablations, {variant}"}
        train_rl(found[variant]["rl"], start, **changes)
    return found

# ----------------------------------------------------------------------------------------
# Measures


def accuracy(items, groups, rule=None):
    """A number for each item: is the vote correct? Without a rule: is the first judgement correct?"""
    scores = [rule([j.scores for j in group]) if rule else group[0].scores for group in groups]
    return np.array([float(correct(s, item.gold)) for s, item in zip(scores, items)])


def votes_and_greedy(run, items, k, rollout):
    """-> {measure: a number for each item}. rollout(k, temperature, shuffle) -> judgements."""
    groups = rollout(k, run.config().temperature, True)
    greedy = rollout(1, 0, False)
    return {"greedy": accuracy(items, greedy), "one sample": np.array([
                np.mean([is_correct(j, item) for j in group]) for group, item in zip(groups, items)]),
            "greedy, ties at random": np.array([tie_broken(g[0].scores, i.gold) for g, i in zip(greedy, items)]),
            "parses": np.array([np.mean([j.scores is not None for j in group]) for group in groups]),
            "sum": accuracy(items, groups, vote_sum), "plurality": accuracy(items, groups, vote_plurality)}


def study_run(run, sizes):
    """-> {"variant, stage": {measure: a number for each item}}"""
    test_items, k = sizes
    items, found, seed = run.items("test", test_items), {}, seed_of(run.config().seed, "study", "ablations")
    for variant, names in policies(run).items():
        for stage, name in names.items():
            rollout = lambda *how: judge(run.model(name), run.tok, items, how[0], seed, *how[1:])
            found[f"{variant}, {stage}"] = run.numbers(
                f"ablations, {variant}, {stage}, {test_items}", lambda: votes_and_greedy(run, items, k, rollout))
    policy = grm_without_principles(run)["rl"]
    rollout = lambda *how: judge_as(NO_PRINCIPLES, policy, run.tok, items, how[0], seed, *how[1:])
    found["without principles, rl"] = run.numbers(
        f"ablations, without principles, {test_items}", lambda: votes_and_greedy(run, items, k, rollout))
    rollout = lambda k, temperature, shuffle: judge(run.model("rl"), run.tok, items, k, seed, temperature, False)
    found["votes in one order, rl"] = run.numbers(
        f"ablations, one order, {test_items}", lambda: votes_and_greedy(run, items, k, rollout))

    # The filter: the votes of the run's own evaluation, which its Meta RM has rated
    _, groups = run.judged("rl", "test", test_items, 4 * k, run.config().temperature)
    for count in (1, k, 2 * k):
        kept = [keep_best(group, [j.meta for j in group], count) for group in groups]
        found[f"filter keeps {count} of {4 * k}, rl"] = {"filter": accuracy(items, kept, vote_sum)}
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    """What each variant loses against the default, in the plurality after RL."""
    gains = {name: d["plurality"] for name, d in result["less the default"].items() if "plurality" in d
             and name.endswith(", rl") and not name.startswith("default")}
    figure = Figure(figsize=(8, 4))
    ax = figure.subplots()
    for y, (name, d) in enumerate(gains.items()):
        low, high = min(d[1], d[3]), max(d[2], d[4])
        ax.plot([low, high], [y, y], "k-")
        ax.plot([d[0]], [y], "ko")
    ax.set_yticks(range(len(gains)), [name.removesuffix(", rl") for name in gains])
    ax.axvline(0, color="k", lw=0.8)
    ax.set(xlabel="plurality after RL, less the default")
    ax.grid(alpha=0.3)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    test_items, k = sizes = (8, 1) if quick else (600, 8)
    items = [run.items("test", test_items) for run in runs]
    queries = [[item.query for item in mine] for mine in items]
    found = [study_run(run, sizes) for run in runs]
    result = {"numbers": {}, "less the default": {}}
    for name in found[0]:
        stage = name.split(", ")[-1]
        columns = {m: [f[name][m] for f in found] for m in found[0][name]}
        result["numbers"][name] = {m: study.number(v) for m, v in columns.items()}
        default = f"filter keeps {2 * k} of {4 * k}, rl" if "filter" in name else f"default, {stage}"
        result["less the default"][name] = {
            m: study.difference(v, [f[default][m] for f in found], queries) for m, v in columns.items()}
    # Does a domain collapse without a KL penalty? (Items of other domains are nan, and so left out.)
    result["beta 0 less the default, plurality, by domain"] = by_domain = {}
    for domain in DOMAINS:
        alone = lambda name: [np.where([item.domain == domain for item in mine], f[name]["plurality"], np.nan)
                              for f, mine in zip(found, items)]
        by_domain[domain] = study.difference(alone("beta 0, rl"), alone("default, rl"), queries)
    result["judgements that RFT learns from"] = {
        variant: [len(rft_data(run)[variant]) for run in runs] for variant in rft_data(runs[0])}
    rows = [["variant", "paper, %: RFT, RL", "RFT, greedy", "RFT, greedy: less the default", "RL, greedy",
             f"RL, plurality of {k}", f"RL, plurality of {k}: less the default"]]
    for variant in dict.fromkeys(name.rsplit(", ", 1)[0] for name in found[0]):
        shown = [result[what].get(f"{variant}, {stage}", {}).get(m) for stage, m, what in (
            ("rft", "greedy", "numbers"), ("rft", "greedy", "less the default"), ("rl", "greedy", "numbers"),
            ("rl", "plurality", "numbers"), ("rl", "plurality", "less the default"))]
        if variant == "default":
            shown[1] = shown[4] = None
        if "filter" not in variant:                # these are in the JSON
            rows.append([variant, ", ".join(filter(None, PAPER.get(variant, ()))), *map(study.in_words, shown)])
    study.save("ablations", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
