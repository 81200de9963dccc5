"""
What does each part of the method bring?

    python -m experiments.ablations           # three seeds; --quick: a minute, numbers without meaning

The paper's answers (its Table 4, overall accuracy, 27B) stand in the column "paper": without general text
RFT loses most, then without its rejective samples; guided votes hardly depend on k_meta unless it is 1.

Each arm differs in one thing from the default run, and starts from the same base model:

- the data of RFT: which samples are kept, and whether general text is mixed in. Then RL from it, as always.
  Fewer examples are fewer steps of RFT, too.
- RL: the KL coefficient beta; the group size G, with as many samples a step (larger groups of fewer
  points); no RFT before it. All arms have the steps of the default run, but where it says longer.
- votes: the order of responses, k_meta.
- the data of the Meta RM. All arms have equally many judgements, and start from the RL policy's weights.

What to look at: what is lost after RFT, and how much of that RL makes good. In the sweep of beta: the worst
subset (a collapse hides in a mean), and whether plain or guided votes end higher: has a Meta RM less to add
to a policy that has moved further? (Those of the sweep start from RFT's, and learn from a third of its
number of judgements: this may favour the policies that moved least. KL is the mean a token in the last step
of training.)

Accuracies are means over items, where those of the baselines are means over subsets.
"""

import copy
import functools
import json
import random
import sys

import numpy as np

import metarm
import report
import spct
from data import command
from data.judgement import correct, vote
from data.tokenizer import QUERY
from data.world import make_items, seed_of
from experiments import study
from experiments.baselines import grm, no_principles, rl_only
from experiments.study import accuracy, difference, judged, number, right, trajectories
from run import read_json, write_json
from sample import judge
from spct import keep_all, rft_examples

NAME = "ablations"

# ----------------------------------------------------------------------------------------
# The data of RFT

def examples(base, samples=True, hinted=True):
    """RFT's examples with and without the right judgements of its plain and of its hinted samples."""
    kept = keep_all(base.points, base.samples if samples else [], base.hinted if hinted else [])
    return rft_examples(base.cfg, base.tok, kept)


def only(base, judgements):
    """Of the default's examples the judgements alone (they begin with a query), or the general text."""
    return [(ids, mask) for ids, mask in examples(base) if (ids[0] == QUERY) == judgements]


def at_random(base):
    """As many judgements as the rules keep, but drawn at random from those that parse: the rules' control."""
    parsed = [j for s in base.samples + base.hinted for j in s if j.scores is not None]
    count = min(len(parsed), len(keep_all(base.points, base.samples, base.hinted)))
    chosen = random.Random(seed_of(base.seed, "at random")).sample(parsed, count)
    return rft_examples(base.cfg, base.tok, chosen)


RFT_DATA = {  # arm: (its examples, the paper's accuracy after RFT, after RL)
    "default": (examples, "68.8", "69.9"),
    "no hinted samples": (lambda base: examples(base, hinted=False), "68.0", ""),
    "hinted samples only": (lambda base: examples(base, samples=False), "67.4", ""),
    "neither": (lambda base: only(base, judgements=False), "66.1", "68.7"),
    "no general text": (lambda base: only(base, judgements=True), "63.3", ""),
    "random selection": (at_random, "", ""),
}


def rft_and_rl(base, name):
    """-> answers after RFT, answers after RL."""
    if name == "default":
        return grm(base, "rft"), grm(base, "rl")
    run, few = base.arm(name), base.votes[:1]
    tuned = spct.rft(run, base.policy("base"), RFT_DATA[name][0](base))
    policy = spct.rl(run, base.tok, tuned, base.points, base.samples)
    return (judged(base, base.arm(f"{name} rft"), tuned, ["test"], few),
            judged(base, run, policy, ["test"], few))


def rft_table(bases):
    m = f"vote@{bases[0].votes[0]}"
    rows = [["RFT's data", "examples", "paper, RFT", "RFT, greedy", "against default", f"RFT, {m}",
             "paper, RL", "RL, greedy", "against default", f"RL, {m}", "against default"]]
    usual = None
    for name, (make, paper_rft, paper_rl) in RFT_DATA.items():
        stages = zip(*(rft_and_rl(b, name) for b in bases))
        rft_greedy, rft_votes, rl_greedy, rl_votes = found = [
            right(bases, answers, mode) for answers in stages for mode in ("greedy", m)]
        usual = usual or found
        against = ["" if found is usual else difference(x, y) for x, y in zip(found, usual)]
        rows.append([name, number([len(make(b)) for b in bases], ".0f"),
                     paper_rft, accuracy(rft_greedy), against[0], accuracy(rft_votes),
                     paper_rl, accuracy(rl_greedy), against[2], accuracy(rl_votes), against[3]])
    return rows

# ----------------------------------------------------------------------------------------
# RL

BETAS = (0.0, 0.02, 0.15, 0.5)
GROUPS = (2, 4, 8, 16)


def rl_steps(run):
    with open(run.path("metrics-rl.jsonl")) as f:
        return [json.loads(line) for line in f]


def half_votes(base, run, policy, meta, most=None):
    """Answers; of guided votes, the better half of the judgements votes, as in the paper."""
    return judged(base, run, policy, ["test"], most=most, guide=meta)


def rl_arm(base, name, own_meta=False, votes=None, **changes):
    """RL from the default RFT model with other settings -> answers, the rows of metrics-rl.jsonl.

    own_meta: with a Meta RM of its own, for guided votes. votes: how many, by default those of the base.
    """
    if not changes:
        return grm(base, "rl"), rl_steps(base.run)
    run = base.arm(name, **changes)
    policy = spct.rl(run, base.tok, base.policy("rft"), base.points, base.samples)
    if not own_meta:
        return judged(base, run, policy, ["test"], votes), rl_steps(run)
    meta = spct.meta_rm(run, base.tok, "rl", policy, base.samples, base.points, start=base.guide("rft"))
    return half_votes(base, run, policy, meta), rl_steps(run)


def beta_table(bases, found):
    """found: {beta: [(answers, steps) of each seed]}"""
    modes = ["greedy", *(f"{how}@{k}" for k in bases[0].votes for how in ("vote", "meta"))]
    plain, guided = modes[-2:]
    rows = [["beta", "KL at the end", *modes, f"{guided} - {plain}", f"worst subset, {plain}"]]
    rft = lambda b: half_votes(b, b.arm("grm-rft"), b.policy("rft"), b.guide("rft"), b.most)
    arms = {"RFT only": [(rft(b), [{"kl": 0.0}]) for b in bases], **found}
    for beta, seeds in arms.items():
        answers, steps = zip(*seeds)
        rows.append([str(beta), number([s[-1]["kl"] for s in steps]),
                     *(accuracy(right(bases, answers, m)) for m in modes),
                     difference(right(bases, answers, guided), right(bases, answers, plain)),
                     study.worst_subset(bases, answers, plain)])
    return rows


def long_table(bases):
    """RL for three times as long: does a judge collapse without the KL penalty?"""
    modes, long = ["greedy", *(f"vote@{k}" for k in bases[0].votes)], dict(rl_steps=3 * bases[0].cfg.rl_steps)
    rows = [["beta", "RL steps", "KL at the end", *modes, f"worst subset, {modes[-1]}", "against row above"]]
    above = None
    for beta, changes in ((bases[0].cfg.beta, long), (0.0, {**long, "beta": 0.0})):
        answers, steps = zip(*(rl_arm(b, "rl_steps", **changes) for b in bases))
        found = [right(bases, answers, m) for m in modes]
        rows.append([str(beta), str(long["rl_steps"]), number([s[-1]["kl"] for s in steps]),
                     *map(accuracy, found), study.worst_subset(bases, answers, modes[-1]),
                     difference(found[-1], above) if above else ""])
        above = found[-1]
    return rows


def group_table(bases):
    m, samples = f"vote@{bases[0].votes[0]}", bases[0].cfg.rl_points * bases[0].cfg.group
    rows = [["G", "points a step", "silent groups", "greedy", m, "against default, greedy", f"the same, {m}"]]
    usual = [grm(b, "rl") for b in bases]
    for G in GROUPS:
        changes = {} if G == bases[0].cfg.group else dict(group=G, rl_points=samples // G)
        answers, steps = zip(*(rl_arm(b, "group", votes=b.votes[:1], **changes) for b in bases))
        silent = number([np.mean([row["silent_groups"] for row in s]) for s in steps])
        mine = [right(bases, answers, mode) for mode in ("greedy", m)]
        against = [difference(x, right(bases, usual, mode)) if changes else ""
                   for x, mode in zip(mine, ("greedy", m))]
        rows.append([str(G), str(samples // G), silent, *map(accuracy, mine), *against])
    return rows


def other_table(bases):
    """No RFT, no principles: a part of the method is missing."""
    few, many = (f"vote@{k}" for k in (bases[0].votes[0], bases[0].votes[-1]))
    columns = {"greedy": ("greedy", "test"), few: (few, "test"),
               f"{many}, out of distribution": (many, "ood")}
    rows = [["arm", "paper, greedy", *(cell for name in columns for cell in (name, "against default"))]]
    usual = [grm(b, "rl") for b in bases]
    arms = {"default": ("69.9", usual), "RL without RFT": ("", [rl_only(b) for b in bases]),
            "no principles": ("67.5", [no_principles(b) for b in bases])}
    for name, (paper, answers) in arms.items():
        cells = []
        for mode, part in columns.values():
            mine, others = (right(bases, a, mode, part=part) for a in (answers, usual))
            cells += [accuracy(mine), "" if name == "default" else difference(mine, others)]
        rows.append([name, paper, *cells])
    return rows

# ----------------------------------------------------------------------------------------
# Votes

def in_item_order(*args, shuffle, **more):
    """sample.judge, but all samples read the responses in the item's order."""
    return judge(*args, shuffle=False, **more)


def vote_table(bases):
    """One order for all samples in place of a fresh one for each."""
    names = [f"vote@{k}" for k in bases[0].votes]
    rows = [["order of the responses", *names, f"against fresh orders, {names[-1]}"]]
    usual = [grm(b, "rl") for b in bases]
    one = [judged(b, b.arm("fixed-order rl"), b.policy("rl"), ["test"], judge=in_item_order) for b in bases]
    for what, answers in (("fresh for each sample", usual), ("that of the item", one)):
        mine, others = right(bases, answers, names[-1]), right(bases, usual, names[-1])
        rows.append([what, *(accuracy(right(bases, answers, m)) for m in names),
                     difference(mine, others) if answers is one else ""])
    return rows


@functools.cache
def stage_groups(base, name):
    """The judgements of the test items by a stage of the base run."""
    grm(base, name)                                # makes them
    return trajectories(base, base.arm(f"grm-{name}"), None, "test", base.most)[0]


def guided(base, groups, metas, k, k_meta):
    """(items,): is the guided vote of the first k samples right? metas: logits of each item's samples."""
    votes = [vote(metarm.keep_best([j.scores for j in g[:k]], m[:k], k_meta)) for g, m in zip(groups, metas)]
    return np.array([correct(v, item.gold) for v, item in zip(votes, base.parts["test"])], float)


def k_meta_table(bases):
    rows = [["policy", "k", *(f"k_meta = {name}" for name in ("1", "k/4", "k/2", "k"))],
            ["paper, 27B", "32", "71.5", "72.7", "72.8", "71.0"]]
    for name in ("rft", "rl"):
        stages = [stage_groups(b, name) for b in bases]
        seeds = [(b, groups, [[j.meta for j in g] for g in groups]) for b, groups in zip(bases, stages)]
        for k in bases[0].votes:
            rows.append([name, str(k), *(accuracy([guided(*seed, k, keep) for seed in seeds])
                                         for keep in (1, max(1, k // 4), k // 2, k))])
    return rows

# ----------------------------------------------------------------------------------------
# The data of the Meta RM

META_DATA = {  # name: equally many examples of RFT's samples and of the policy's -> what is learned from
    "RFT's samples": lambda old, new, rng: old,
    "the policy's": lambda old, new, rng: new,
    "half of each": lambda old, new, rng: old[::2] + new[::2],
    "half of each, labels shuffled": lambda old, new, rng: shuffle_labels(old[::2] + new[::2], rng),
}


def shuffle_labels(examples, rng):
    rows, labels = zip(*examples)
    return list(zip(rows, rng.sample(labels, len(labels))))


def meta_examples(base):
    """-> (ids, right) of RFT's samples, as many of the RL policy, both in random order."""
    fresh = copy.copy(base)
    count = base.cfg.points * base.cfg.n_rft // 4
    fresh.parts = {"meta": make_items(base.seed, "train", count, start=base.cfg.points)}
    new, *_ = trajectories(fresh, base.arm("meta-data"), base.policy("rl"), "meta", 4)
    rng = random.Random(seed_of(base.seed, "Meta RM's data"))
    labelled = [[(j.tokens, spct.right(j, p)) for s, p in zip(samples, points) for j in s]
                for samples, points in ((base.samples, base.points), (new, fresh.parts["meta"]))]
    size = min(map(len, labelled))
    return [rng.sample(examples, size) for examples in labelled]


def meta_arm(base, name):
    """A Meta RM for the RL policy -> its logits of each test item's judgements, None if they do not parse."""
    run, model = base.arm(f"meta {name}"), metarm.from_policy(base.policy("rl"))
    first = [g[:max(base.votes)] for g in stage_groups(base, "rl")]
    if not run.done("meta", model):
        rng = random.Random(seed_of(base.seed, "labels"))
        metarm.train(run, "meta", model, META_DATA[name](*meta_examples(base), rng))
    if not run.done("logits", file="logits.json"):
        rows = [j.tokens for g in first for j in g]
        write_json(run.path("logits.json"), metarm.logits(model, rows, run.autocast()))
        run.finish("logits")
    logits = iter(read_json(run.path("logits.json")))
    return [[logit if j.scores else None for j, logit in zip(g, logits)] for g in first]


def auc_within(base, groups, metas):
    """Of the judgements that parse: mean AUC of the logits inside items."""
    labelled = [[(correct(j.scores, item.gold), logit) for j, logit in zip(g, m) if logit is not None]
                for g, m, item in zip(groups, metas, base.parts["test"])]
    return metarm.auc_within([tuple(zip(*pairs)) for pairs in labelled if pairs])


def meta_table(bases):
    last = bases[0].votes[-1]
    rows = [["the Meta RM's data", "AUC within item", *(f"guided@{k}, k/2" for k in bases[0].votes),
             f"against vote@{last}"]]
    plain = right(bases, [grm(b, "rl") for b in bases], f"vote@{last}")
    for name in META_DATA:
        found = [(b, stage_groups(b, "rl"), meta_arm(b, name)) for b in bases]
        mine = {k: [guided(*seed, k, k // 2) for seed in found] for k in bases[0].votes}
        rows.append([name, number([auc_within(*seed) for seed in found]), *map(accuracy, mine.values()),
                     difference(mine[last], plain)])
    return rows

# ----------------------------------------------------------------------------------------

def run(bases):
    fewer = dict(meta_items=bases[0].cfg.meta_items // 3)
    betas = {beta: [rl_arm(b, "beta", own_meta=True, beta=beta, **fewer) for b in bases] for beta in BETAS}
    last = bases[0].votes[-1]
    curves = {m: [study.mean(right(bases, [answers for answers, _ in betas[beta]], m)) for beta in BETAS]
              for m in ("greedy", f"vote@{last}", f"meta@{last}")}

    def figure(path):
        with report.canvas(path, 1, 2, width=10, height=4) as (left, beside):
            for m, values in curves.items():
                left.plot(range(len(BETAS)), values, "o-", label=m)
            left.set(xticks=range(len(BETAS)), xticklabels=BETAS, xlabel="KL coefficient beta",
                     ylabel="strict accuracy")
            for beta in BETAS:
                rewards = np.mean([[row["reward"] for row in steps] for _, steps in betas[beta]], axis=0)
                beside.plot(rewards, label=f"beta {beta}")
            beside.set(xlabel="RL step", ylabel="reward")

    tables = {"Data of RFT": rft_table(bases), "A part of the method is missing": other_table(bases),
              "KL coefficient": beta_table(bases, betas), "Longer, with and without KL": long_table(bases),
              "Group size": group_table(bases),
              "Order of the responses": vote_table(bases), "How many judgements vote": k_meta_table(bases),
              "Data of the Meta RM": meta_table(bases)}
    return tables, {"beta": BETAS, "curves": curves}, figure


FINDINGS = """
What was seen in our three runs:

- **Hinted samples matter for the greedy judgement**: without them .317 after RFT, .550 with them. The right
  judgements that the base model finds by itself are mostly short impressions ("looks fine"), and so are the
  greedy judgements of a model that learns from these alone: short, and often ties. Hinted samples alone do as
  well as both together. In the paper either alone costs about one point.
- **The rules matter**: as many judgements at random lose .096 after RFT, and RL does not make good for it
  (.051 behind).
- **Against the paper: general text does not matter** for RFT (the paper: -5.5, its largest loss). There it
  keeps a pre-trained model from forgetting; here the same domains make up pre-training, and RFT is short.
  After RL it is .023 ahead, greedy only.
- **RL evens out**: what RFT lost without hinted samples is noise after 36 steps of RL, and with 8 votes all
  arms but the random one are within .02 of the default. With general text alone (neither) greedy is still
  .070 behind (the paper: -1.2), without RFT at all .105.
- **Against the paper: beta = 0 does not collapse** within 36 steps, nor beta = .02: no subset falls, accuracy
  is the same or a little higher. Nor in three times as many steps: 8 votes are ahead by .047 without the
  penalty, 32 votes by .019. A reward of right or wrong and a grammar leave little to exploit in a world this
  small. beta = .5 holds the judge back.
- **RL and guided votes are partial substitutes**: what the Meta RM adds to 32 votes falls from +.051 after
  RFT (half of the judgements vote) to +.030 (beta .5) and about +.01 (beta .15 and less). The sum of both is
  the best of all the same: .715 guided without RL (k/4), .766 by RL and plain votes, .778 with both, although
  the last step is noise on these items (it is not on the 2,000 items of the default runs).
- **Group size: 8 is enough.** At equal samples a step G = 2 is silent in 58% of its groups, and behind by
  .03; 8 and 16 are within noise of each other.
- **A fresh order for each vote** is not worth more than noise (.014) after RL, which has seen shuffled
  responses already; see truth.py for judges with a bias.
- **k_meta**: as in the paper, one judgement is too few after RL, k/4 and k/2 are much the same. After RFT,
  where fewer judgements are right, k/4 is the best.
- **The Meta RM's data**: labels shuffled, it is worse than no Meta RM, so that the gain is not an artefact of
  voting with fewer. RFT's samples alone are at least as good as the policy's own, although their AUC is
  lower; the three are within .03 of each other, and we would not choose by that.
"""


if __name__ == "__main__":
    command(lambda argv: study.main(sys.modules[__name__], argv))
