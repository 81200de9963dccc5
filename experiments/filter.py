"""
Why does the Meta RM's filter help after RFT, and not after RL?

In the paper the filter helps after RL: votes of the better half of 32 samples are better than votes of all. Here
it helps after RFT, and no longer at the end of RL. What may be the reason? Each part of this study tests one
answer.

1. The policy is too good. RL is run again, and stopped after 3, 6 and 12 of its 24 steps. Each of these policies
   gets a Meta RM, which is trained on 8,000 of its own judgements, at temperature 1. The paper's policy is
   correct in 70% of cases.
2. The Meta RM has too little data, or the wrong data: 8,000 or 16,000 judgements; only those of items that the
   policy does not always judge correctly; the rollouts of RL, which cost nothing.
3. The samples are too much alike: temperature 1 in place of 0.5.
4. Nothing can be gained by any filter. An oracle is told of a share of the samples, picked at random, whether
   they are correct. It keeps correct ones first, then those that it knows nothing of, and incorrect ones last.
   A second oracle has the mean AUC of the Meta RM on every item, and errs at random.
5. Few items are contested. If nearly all samples of an item agree, no choice among them changes the vote. So we
   ask what the filter would gain after RFT, if the samples agreed as often as they do after RL, and the reverse.

"AUC" is always within items: the probability that the Meta RM prefers a correct to an incorrect sample of the
same item; 0.5 is chance. An item is contested if between a quarter and three quarters of its samples are correct.
"""

import os
from statistics import NormalDist

import numpy as np
import torch
from matplotlib.figure import Figure

import metarm
from data import pick_dtype, run_command
from data.judgement import correct, vote_plurality, vote_sum
from data.world import make_item, seed_of
from experiments import study
from model import Optimizer, learning_rate, pad_left, save_model
from report import auc
from sample import judge
from spct import autocast, is_correct, too_easy

SHARES = (0, 0.1, 0.2, 0.5, 1)               # of the samples of which the oracle knows the truth

# ----------------------------------------------------------------------------------------
# Policies and Meta RMs

def save_checkpoints(run, steps):
    """RL again, up to the last of these steps, with the rollouts that the run has kept. The policies after them
    are filter-rl3.pt, filter-rl6.pt, ..."""
    cfg, kept = run.config(), iter(run.own("rl"))
    rollout = lambda policy, batch, seed: [next(kept) for _ in batch]
    policies = study.reinforce(cfg, run.model("rft"), run.hard_items(), rollout)
    for step, policy in zip(range(1, max(steps) + 1), policies):
        if step in steps:
            save_model(run.path(f"filter-rl{step}.pt"), policy)


def train_meta_rm(cfg, policy, groups, item_of):
    """The training of spct.train_meta_rm, but on all groups that are given, also those that are all correct."""
    judgements = sorted((j for group in groups for j in group), key=lambda j: len(j.prompt) + len(j.ids))
    batches = [judgements[i:i + cfg.meta_batch] for i in range(0, len(judgements), cfg.meta_batch)]
    order = np.random.default_rng(seed_of(cfg.seed, "meta")).permutation(len(batches))
    batches = [batches[i] for i in order]
    model = metarm.from_policy(policy)
    optimizer = Optimizer(model, getattr(torch, cfg.dtype))
    for step, batch in enumerate(batches):
        ids, padding = pad_left([j.prompt + j.ids for j in batch])           # (B, T), (B,)
        label = torch.tensor([float(is_correct(j, item_of[j.item])) for j in batch])     # (B,)
        with autocast(cfg):
            logits = model(ids, padding)                                     # (B,)
        loss = metarm.meta_loss(logits, label)
        loss.backward()
        optimizer.step(learning_rate(cfg.meta_lr, step, len(batches)))
    return model


def training_groups(run, policy, count):
    """4 judgements of each of `count` / 4 training items that no stage has seen."""
    return run.groups(f"filter-{policy}-{count}", lambda: judge(
        run.model(policy), run.tok, new_items(run, count // 4), 4, seed_of(run.config().seed, "study", "filter")))


def new_items(run, count):
    cfg = run.config()
    return [make_item(cfg.seed, "train", cfg.items + i) for i in range(count)]

# ----------------------------------------------------------------------------------------
# Filters

def truth_of(samples, item):
    """(k,): 1 for a correct sample, -1 for an incorrect one."""
    return np.array([1.0 if correct(j.scores, item.gold) else -1.0 for j in samples])


def informed(samples, item, share, rng):
    """The logits of an oracle that knows the truth for a share of the samples: 1, -1, or 0 if it does not."""
    return truth_of(samples, item) * (rng.random(len(samples)) < share)


def noisy(samples, item, area, rng):
    """The logits of an oracle with a given AUC: the truth and normal noise. If correct and incorrect samples have
    logits whose means differ by d standard deviations, their AUC is the normal distribution's at d / sqrt(2)."""
    d = 2 ** 0.5 * NormalDist().inv_cdf(float(np.clip(area, 0.01, 0.99)))
    return truth_of(samples, item) * d / 2 + rng.normal(size=len(samples))


def filtered(samples, logits, item, vote):
    kept = metarm.keep_best(samples, logits, metarm.half(samples))
    return float(correct(vote([j.scores for j in kept]), item.gold))


def by_oracle(oracle, samples, item, value):
    """How often is the sum of the half that an oracle keeps correct? A mean over 2 draws."""
    found = []
    for draw in range(2):
        logits = oracle(samples, item, value, np.random.default_rng(seed_of("oracle", item.id, draw)))
        logits = [None if j.scores is None else float(x) for j, x in zip(samples, logits)]
        found.append(filtered(samples, logits, item, vote_sum))
    return np.mean(found)


def measure(items, groups, counts):
    """-> {measure: a number for each item}, of groups that a Meta RM has rated."""
    found = {"one sample": [np.mean([correct(j.scores, item.gold) for j in group])
                            for item, group in zip(items, groups)]}
    parsed = [[j for j in group if j.scores is not None] for group in groups]
    aucs = [auc([correct(j.scores, item.gold) for j in group], [j.meta for j in group])
            for item, group in zip(items, parsed)]
    # An AUC needs both kinds. Other items have none (nan), and are left out of its mean.
    found["AUC"] = np.array([np.nan if a is None else a for a in aucs])
    share = np.array(found["one sample"])
    found["AUC, contested"] = np.where((share >= 0.25) & (share <= 0.75), found["AUC"], np.nan)
    found["pass"] = [float(s > 0) for s in share]
    area = np.nanmean(found["AUC"]) if np.isfinite(found["AUC"]).any() else 0.5
    for k in counts:
        for name, vote in (("sum", vote_sum), ("plurality", vote_plurality)):
            found[f"{name}@{k}"] = [float(correct(vote([j.scores for j in group[:k]]), item.gold))
                                    for item, group in zip(items, groups)]
            found[f"filter, {name}@{k}"] = [filtered(group[:k], [j.meta for j in group[:k]], item, vote)
                                            for item, group in zip(items, groups)]
        several = list(zip([group[:k] for group in groups], items))
        found[f"same AUC@{k}"] = [by_oracle(noisy, group, item, area) for group, item in several]
        for known in SHARES:
            found[f"share {known}@{k}"] = [by_oracle(informed, group, item, known) for group, item in several]
    return {name: np.array(values, float) for name, values in found.items()}

# ----------------------------------------------------------------------------------------
# One run

def study_run(run, sizes):
    """-> {name of a policy, or of a variant of its Meta RM: {measure: a number for each item}}"""
    test_items, counts, steps, (some, many) = sizes
    # Meta RMs are trained, and read, in bfloat16 where that is faster.
    cfg, found, last = run.config(dtype=pick_dtype("cpu")), {}, steps[-1]
    item_of = {item.id: item for item in [*run.training_items(), *new_items(run, many // 4)]}

    def measured(name, policy, meta, temperature=cfg.temperature):
        """Measure a policy's votes with a Meta RM. meta() -> the Meta RM. Its ratings are kept."""
        items, groups = run.judged(policy, "test", test_items, counts[-1], temperature)

        def make():
            model = meta()                         # not inside: autocast would keep copies of weights that change
            with autocast(cfg):
                metarm.rate(model, groups)
            return {"logits": [[np.nan if j.scores is None else j.meta for j in group] for group in groups]}
        for group, logits in zip(groups, run.numbers(f"filter, {name}", make)["logits"]):
            for j, logit in zip(group, logits):
                j.meta = None if np.isnan(logit) else float(logit)
        found[name] = measure(items, groups, counts)

    # 1. Policies: RFT, three checkpoints of RL, and RL. Each has a Meta RM of its own.
    between = steps[1:-1]
    if not os.path.exists(run.path(f"filter-rl{between[-1]}.pt")):
        save_checkpoints(run, between)
    policies = {0: "rft", **{step: f"filter-rl{step}" for step in between}, last: "rl"}
    pool = training_groups(run, "rl", many)
    for step, policy in policies.items():
        groups = lambda: pool[:some // 4] if step == last else training_groups(run, policy, some)
        meta = lambda: run.model(f"filter-meta{step}", lambda: train_meta_rm(
            cfg, run.model(policy), groups(), item_of))
        measured(f"{step} steps of RL", policy, meta)
        if step == last:                           # 3. Samples that are less alike
            measured(f"{step} steps of RL, T = 1", policy, meta, 1.0)

    # The Meta RM of each policy filters the other's samples.
    measured(f"0 steps of RL, Meta RM of {last}", "rft", lambda: run.model(f"filter-meta{last}"))
    measured(f"{last} steps of RL, Meta RM of 0", "rl", lambda: run.model("filter-meta0"))

    # 2. Data for the Meta RM of RL
    not_easy = lambda groups: [group for group in groups if not too_easy(group, item_of[group[0].item])]
    variants = {f"{many} judgements": lambda: pool, f"{some}, no easy items": lambda: not_easy(pool)[:some // 4],
                "the rollouts of RL": lambda: not_easy(run.own("rl"))}
    measured("the default run's Meta RM", "rl", lambda: run.model("meta"))
    for name, groups in variants.items():
        measured(name, "rl", lambda: train_meta_rm(cfg, run.model("rl"), groups(), item_of))
    return found

# ----------------------------------------------------------------------------------------
# 5. How many items are contested? Items are sorted into nine bins, by the share of their samples that are correct:
# 0 to 1/8, ..., 7/8 to 1, and all.

def bin_of(share):
    """The number of an item's bin, 0 to 8."""
    return np.floor(8 * share).astype(int)


def carried_over(gain, share, target, weights):
    """The mean gain of a policy, if its items were in the bins as often as another policy's are. Each bin keeps
    its mean gain, and counts by the number of the other's items. A bin without items of the policy has no gain.

    gain, share (items,): of the policy; target (items,): the shares of the other; weights (items,): of items
    """
    here, there = bin_of(share), bin_of(target)
    gains = np.bincount(here, weights * gain, 9) / np.maximum(np.bincount(here, weights, 9), 1e-9)       # (9,)
    return (gains * np.bincount(there, weights, 9)).sum() / weights.sum()


def with_intervals(values, queries):
    """values(run, weights) -> a number. Its mean over runs, and intervals, as study.difference gives them: [mean,
    low, high, low, high]. queries: those of each run's items."""
    rng, runs, index = np.random.default_rng(0), range(len(queries)), {}
    where = [np.array([index.setdefault(query, len(index)) for query in mine]) for mine in queries]
    equal = lambda n: rng.multinomial(n, np.full(n, 1 / n))
    draws = [], []                                 # items are resampled, and queries
    for _ in range(1000):
        draws[0].append(np.mean([values(run, equal(len(queries[run]))) for run in runs]))
        times = equal(len(index))
        draws[1].append(np.mean([values(run, times[where[run]]) for run in runs]))
    mean = np.mean([values(run, np.ones(len(queries[run]))) for run in runs])
    return [round(float(x), 4) for x in (mean, *(q for d in draws for q in np.quantile(d, [0.025, 0.975])))]


def contested(found, queries, names, most):
    """Two policies, by name. What would the filter gain, if one of them had the other's bins?"""
    share = lambda run, name: found[run][name]["one sample"]
    gain = lambda run, name: found[run][name][f"filter, sum@{most}"] - found[run][name][f"sum@{most}"]
    result = {}
    for a in names:
        for b in names:
            result[f"gain of {a}, bins of {b}"] = with_intervals(lambda run, weights: carried_over(
                gain(run, a), share(run, a), share(run, b), weights), queries)
        runs, bins = range(len(found)), [bin_of(share(run, a)) for run in range(len(found))]
        result[f"bins of {a}"] = [float(np.mean([(bins[run] == b).mean() for run in runs])) for b in range(9)]
        result[f"gain in bins of {a}"] = [
            float(np.concatenate([gain(run, a)[bins[run] == b] for run in runs]).mean())
            if any((bins[run] == b).any() for run in runs) else 0.0 for b in range(9)]
    return result

# ----------------------------------------------------------------------------------------
# Table and figure

def draw(result, steps, most):
    figure = Figure(figsize=(14, 4.2))
    left, middle, right = figure.subplots(1, 3)
    gains, accuracy = result["differences"], result["numbers"]
    names = [f"{step} steps of RL" for step in steps]
    for gain, style in (("filter - sum", "o-"), ("filter - plurality", "s-"), ("same AUC - sum", "x--")):
        left.plot([accuracy[name]["one sample"][0] for name in names],
                  [gains[name][f"{gain}@{most}"][0] for name in names], style, label=gain)
    left.set(xlabel="accuracy of one sample: RFT, RL after 3, 6, 12, 24 steps", ylabel=f"gain, {most} samples")
    for name, label, color in ((names[0], "RFT", "tab:blue"), (names[-1], "RL", "tab:red")):
        bins = np.arange(9) / 8
        middle.bar(bins + (0.02 if label == "RL" else -0.02), result["contested"][f"bins of {name}"], 0.04,
                   color=color, alpha=0.3, label=f"share of items, {label}")
        middle.plot(bins, result["contested"][f"gain in bins of {name}"], "o-", color=color,
                    label=f"gain, {label}")
        plain = accuracy[name][f"sum@{most}"][0]
        right.plot(SHARES, [accuracy[name][f"share {s}@{most}"][0] - plain for s in SHARES], "o-", color=color,
                   label=f"oracle, {label}")
        right.axhline(gains[name][f"filter - sum@{most}"][0], ls="--", color=color, label=f"Meta RM, {label}")
    middle.set(xlabel="share of an item's samples that are correct, at least")
    right.set(xlabel="share of samples of which the oracle knows the truth")
    for ax in (left, middle, right):
        ax.axhline(0, color="k", lw=0.8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure


# "filter" alone is a filtered sum. "share 0" knows nothing: it keeps the first half.
GAINS = {"filter - sum": ("filter, sum", "sum"), "filter - plurality": ("filter, sum", "plurality"),
         "filtered plurality - plurality": ("filter, plurality", "plurality"),
         "filter - random half": ("filter, sum", "share 0"), "same AUC - sum": ("same AUC", "sum")}


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (8, (2, 4), (0, 1, 2), (16, 32)) if quick else \
            (500, (8, 16), (0, 3, 6, 12, 24), (8000, 16000))
    items, counts, steps, _ = sizes
    queries = [[item.query for item in run.items("test", items)] for run in runs]
    found = [study_run(run, sizes) for run in runs]
    first, last, most = f"{steps[0]} steps of RL", f"{steps[-1]} steps of RL", counts[-1]
    columns = {name: {m: [f[name][m] for f in found] for m in found[0][name]} for name in found[0]}
    result = {"numbers": {name: {m: study.number(v) for m, v in of.items()} for name, of in columns.items()},
              "differences": {name: {f"{title}@{k}": study.difference(of[f"{a}@{k}"], of[f"{b}@{k}"], queries)
                                     for k in counts for title, (a, b) in GAINS.items()}
                              for name, of in columns.items()},
              "contested": contested(found, queries, (first, last), most)}
    gain = lambda name, k: [a - b for a, b in zip(columns[name][f"filter, sum@{k}"], columns[name][f"sum@{k}"])]
    result["gain after RFT less gain after RL"] = {
        f"@{k}": study.difference(gain(first, k), gain(last, k), queries) for k in counts}
    result["last policy: filter of another Meta RM, less that of its own"] = {
        f"{name}@{k}": study.difference(of[f"filter, sum@{k}"], columns[last][f"filter, sum@{k}"], queries)
        for k in counts for name, of in columns.items() if "steps" not in name}
    rows = [["policy, or Meta RM of the last policy", "one sample", "AUC", "AUC, contested", f"sum of {most}",
             "filter less sum", "filtered plurality less plurality", "oracle of the same AUC, less sum"]]
    for name, numbers in result["numbers"].items():
        gains = result["differences"][name]
        measures = ("one sample", "AUC", "AUC, contested", f"sum@{most}")
        titles = ("filter - sum", "filtered plurality - plurality", "same AUC - sum")
        rows.append([name, *(study.in_words(numbers[m]) for m in measures),
                     *(study.in_words(gains[f"{title}@{most}"]) for title in titles)])
    study.save("filter", runs, result, rows, draw(result, steps, most))


if __name__ == "__main__":
    run_command(main)
