"""
Why does the Meta RM's filter help after RFT, and not after RL?

In the paper the filter helps after RL: votes of the better half of 32 samples are better than votes of all. Here
it helps after RFT only. What may be the reason? Each part of this study tests one answer.

1. The policy is too good. RL is run again, and stopped after 3, 6 and 12 of its 24 steps. A Meta RM is trained
   for each of these policies, on as many of its own judgements. The paper's policy is correct in 70% of cases.
2. The Meta RM has too little data, or the wrong data: 1,000, 8,000 or 32,000 judgements; only those of items
   that the policy does not always judge correctly; the rollouts of RL, which cost nothing; and a Meta RM that
   starts from the base model and not from the policy.
3. The samples are too much alike: temperature 1 in place of 0.5.
4. Nothing can be gained by any filter. An oracle knows for a share of the samples, picked at random, whether they
   are correct. It keeps those that are, and drops those that are not. Two bounds follow from it: what a filter
   can bring at best, and what one brings that separates correct from incorrect samples of an item exactly as well
   as the Meta RM does (the same AUC), but whose errors have nothing to do with the policy's.

"AUC" is always within items: the probability that the Meta RM prefers a correct to an incorrect sample of the
same item; 0.5 is chance.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import metarm
from data import run_command
from data.judgement import correct, vote_plurality, vote_sum
from data.world import make_item, seed_of
from experiments import study
from model import Optimizer, learning_rate, pad_left, save_model
from report import auc
from sample import judge
from spct import is_correct, too_easy

SHARES = (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)          # of the samples of which the oracle knows the truth

# ----------------------------------------------------------------------------------------
# Policies and Meta RMs

def save_checkpoints(run, steps):
    """RL again, up to the last of these steps: filter-rl3.pt, filter-rl6.pt, ... are the policies after them."""
    rollout = lambda policy, batch, seed: judge(policy, run.tok, batch, run.config().group, seed, shuffle=False)
    policies = study.reinforce(run.config(), run.model("rft"), run.hard_items(), rollout)
    for step, policy in zip(range(1, max(steps) + 1), policies):
        if step in steps:
            save_model(run.path(f"filter-rl{step}.pt"), policy)


def train_meta_rm(cfg, start, groups, item_of):
    """The training of spct.train_meta_rm, on all groups that are given. start: the model that it begins with."""
    judgements = sorted((j for group in groups for j in group), key=lambda j: len(j.prompt) + len(j.ids))
    batches = [judgements[i:i + cfg.meta_batch] for i in range(0, len(judgements), cfg.meta_batch)]
    np.random.default_rng(seed_of(cfg.seed, "meta")).shuffle(batches)
    model = metarm.from_policy(start)
    optimizer = Optimizer(model)
    for step, batch in enumerate(batches):
        ids, padding = pad_left([j.prompt + j.ids for j in batch])           # (B, T), (B,)
        label = torch.tensor([float(is_correct(j, item_of[j.item])) for j in batch])     # (B,)
        loss = F.binary_cross_entropy_with_logits(model(ids, padding), label)
        loss.backward()
        optimizer.step(learning_rate(cfg.meta_lr, step, len(batches)))
    return model


def training_groups(run, policy, count):
    """4 judgements of each of `count` / 4 training items that no stage has seen -> groups, {id: item}."""
    cfg = run.config()
    items = [make_item(cfg.seed, "train", cfg.items + i) for i in range(count // 4)]
    groups = run.groups(f"filter-{policy}-{count}", lambda: judge(
        run.model(policy), run.tok, items, 4, seed_of(cfg.seed, "study", "filter")))
    return groups, {item.id: item for item in items}

# ----------------------------------------------------------------------------------------
# Filters

def oracle(samples, item, share, draw):
    """The logits of the oracle: 1 or -1 where it knows the truth, which it does for a share of the samples, else
    0; None for what does not parse, as the Meta RM has it."""
    rng = np.random.default_rng(seed_of("oracle", item.id, draw))
    known = rng.random(len(samples)) < share
    truth = [1.0 if correct(j.scores, item.gold) else -1.0 for j in samples]
    return [None if j.scores is None else float(t * k) for j, t, k in zip(samples, truth, known)]


def share_with(value):
    """The share with which the oracle's AUC has this value. Of a correct and an incorrect sample, it prefers the
    correct one if it knows one of them, and neither if it knows none: AUC = 1 - (1 - share)^2 / 2.

    >>> share_with(0.5), share_with(1.0)
    (0.0, 1.0)
    """
    return float(1 - np.sqrt(np.clip(2 * (1 - value), 0, 1)))


def filtered(samples, logits, item, vote):
    kept = metarm.keep_best(samples, logits, metarm.half(samples))
    return float(correct(vote([j.scores for j in kept]), item.gold))


def by_oracle(samples, item, share):
    """How often is the sum of what the oracle keeps correct? A mean over 4 draws."""
    return np.mean([filtered(samples, oracle(samples, item, share, i), item, vote_sum) for i in range(4)])


def measure(items, groups, counts):
    """-> {measure: a number for each item}, of groups that a Meta RM has rated."""
    found = {"one sample": [np.mean([correct(j.scores, item.gold) for j in group])
                            for item, group in zip(items, groups)]}
    parsed = [[j for j in group if j.scores is not None] for group in groups]
    aucs = [auc([correct(j.scores, item.gold) for j in group], [j.meta for j in group])
            for item, group in zip(items, parsed)]
    # An AUC needs both kinds. Other items have none (nan), and are left out of its mean.
    found["AUC"] = np.array([np.nan if a is None else a for a in aucs])
    share = share_with(np.nanmean(found["AUC"]))
    for k in counts:
        for name, vote in (("sum", vote_sum), ("plurality", vote_plurality)):
            found[f"{name}@{k}"] = [float(correct(vote([j.scores for j in group[:k]]), item.gold))
                                    for item, group in zip(items, groups)]
            found[f"filter, {name}@{k}"] = [filtered(group[:k], [j.meta for j in group[:k]], item, vote)
                                            for item, group in zip(items, groups)]
        found[f"same AUC@{k}"] = [by_oracle(group[:k], item, share) for item, group in zip(items, groups)]
        for s in SHARES:
            found[f"share {s}@{k}"] = [by_oracle(group[:k], item, s) for item, group in zip(items, groups)]
    wrong = np.array(found[f"sum@{counts[-1]}"]) == 0
    found["AUC, vote incorrect"] = np.where(wrong, found["AUC"], np.nan)
    found["AUC, vote correct"] = np.where(wrong, np.nan, found["AUC"])
    return {name: np.array(values, float) for name, values in found.items()}

# ----------------------------------------------------------------------------------------
# One run

def study_run(run, sizes):
    """-> {name of a policy, or of a variant of the Meta RM: {measure: a number for each item}}"""
    test_items, counts, steps, (few, some, many) = sizes
    cfg, found = run.config(), {}

    def measured(name, policy, meta, temperature=cfg.temperature):
        """Measure a policy's votes with a Meta RM. meta() -> the Meta RM."""
        def make():
            items, groups = run.judged(policy, "test", test_items, counts[-1], temperature)
            metarm.rate(meta(), groups)
            return measure(items, groups, counts)
        found[name] = run.numbers(f"filter, {name}", make)

    # 1. Policies: RFT, three checkpoints of RL, and RL. Each has a Meta RM of its own.
    between = steps[1:-1]
    if not os.path.exists(run.path(f"filter-rl{between[-1]}.pt")):
        save_checkpoints(run, between)
    policies = {0: "rft", steps[-1]: "rl", **{step: f"filter-rl{step}" for step in between}}
    for step in steps:
        policy = policies[step]
        make = lambda: train_meta_rm(cfg, run.model(policy), *training_groups(run, policy, some))
        meta = lambda: run.model(f"filter-meta{step}", make)
        measured(f"{step} steps of RL", policy, meta)
        if step in (0, steps[-1]):                 # 3. Samples that are less alike
            measured(f"{step} steps of RL, T = 1", policy, meta, 1.0)

    # 2. Data for the Meta RM of RL
    groups, item_of = training_groups(run, "rl", many)
    item_of |= {item.id: item for item in run.training_items()}
    mixed = lambda groups: [group for group in groups if not too_easy(group, item_of[group[0].item])]
    variants = {f"{few} judgements": ("rl", groups[:few // 4]),
                f"{many} judgements": ("rl", groups),
                f"{some}, no easy items": ("rl", mixed(groups)[:some // 4]),
                "the rollouts of RL": ("rl", mixed(run.own("rl"))),
                f"{some}, from the base model": ("base", groups[:some // 4])}
    for name, (start, chosen) in variants.items():
        measured(name, "rl", lambda: train_meta_rm(cfg, run.model(start), chosen, item_of))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure

def draw(result, steps, most):
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2, sharey=True)
    gains, accuracy = result["differences"], result["numbers"]
    names = [f"{step} steps of RL" for step in steps]
    for gain, style in (("filter - sum", "o-"), ("filter - plurality", "s-"), ("same AUC - sum", "x--")):
        left.plot([accuracy[name]["one sample"][0] for name in names],
                  [gains[name][f"{gain}@{most}"][0] for name in names], style, label=gain)
    left.axvline(0.7, color="k", ls=":", label="the paper's policy")
    left.set(xlabel="accuracy of one sample", ylabel=f"gain in accuracy, {most} samples")
    for name, color in ((names[0], "tab:blue"), (names[-1], "tab:red")):
        label = "RFT" if name == names[0] else "RL"
        plain = accuracy[name][f"sum@{most}"][0]
        right.plot(SHARES, [accuracy[name][f"share {s}@{most}"][0] - plain for s in SHARES], "o-", color=color,
                   label=f"oracle, {label}")
        right.plot([result["share"][name]], [gains[name][f"filter - sum@{most}"][0]], "*", ms=14, color=color,
                   label=f"Meta RM, {label}")
    right.set(xlabel="share of samples of which the filter knows the truth")
    for ax in (left, right):
        ax.axhline(0, color="k", lw=0.8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (8, (2, 4), (0, 1, 2), (8, 16, 32)) if quick else \
            (600, (8, 32), (0, 3, 6, 12, 24), (1000, 8000, 32000))
    items, counts, steps, _ = sizes
    queries = [[item.query for item in run.items("test", items)] for run in runs]
    found = [study_run(run, sizes) for run in runs]
    result = {"numbers": {}, "differences": {}, "share": {}}
    for name in found[0]:
        columns = {measure: [f[name][measure] for f in found] for measure in found[0][name]}
        result["numbers"][name] = {measure: study.number(values) for measure, values in columns.items()}
        result["share"][name] = share_with(result["numbers"][name]["AUC"][0])
        result["differences"][name] = {
            f"{title} - {worse}@{k}": study.difference(columns[f"{better}@{k}"], columns[f"{worse}@{k}"], queries)
            for k in counts for title, better, worse in (
                ("filter", "filter, sum", "sum"), ("filter", "filter, sum", "plurality"),
                ("filtered plurality", "filter, plurality", "plurality"), ("same AUC", "same AUC", "sum"))}
    most = counts[-1]
    rows = [["policy, or data of the Meta RM", "one sample", "AUC", "AUC where the sum is incorrect",
             f"sum of {most}", "filter less sum", "filter less plurality", "same AUC, less sum"]]
    for name, numbers in result["numbers"].items():
        gains = result["differences"][name]
        rows.append([name, *(study.in_words(numbers[m]) for m in (
                         "one sample", "AUC", "AUC, vote incorrect", f"sum@{most}")),
                     *(study.in_words(gains[f"{m}@{most}"]) for m in (
                         "filter - sum", "filter - plurality", "same AUC - sum"))])
    study.save("filter", runs, quick, result, rows, draw(result, steps, most))


if __name__ == "__main__":
    run_command(main)
