"""
What does each part of the method bring?

    python -m experiments.ablations           # three seeds; --quick: a minute, numbers without meaning

The paper's answers (its Table 4, overall accuracy, 27B) stand in the column "paper": without general text
RFT loses most, then without its rejective samples; guided votes hardly depend on k_meta unless it is 1.

Each arm differs in one thing from the default run, and starts from the same base model:

- the data of RFT: which samples are kept, and whether general text is mixed in ("neither": general text
  alone). Then RL from some of it, as always. Fewer examples are fewer steps of RFT, too.
- RL: the KL coefficient beta; the paper's group size of 4 (as many samples a step, of more points), and
  how many of a group are learned from (a group is silent if all its samples are right, or all wrong); no RFT
  before it; judges without principles. All arms have the steps of the default run, but where it says longer.
- votes: the order of responses; k_meta, how many of k the Meta RM lets vote. They are drawn at T = 1, where
  the paper and the default run vote at 0.5.

What to look at: what is lost after RFT, and how much of that RL makes good. In the sweep of beta: the worst
subset (a collapse hides in a mean). KL is the mean a token of the samples that the last step learned from.

Accuracies are means over items, where those of the baselines are means over subsets.
"""

import functools
import json
import random
import sys

import numpy as np

import metarm
import report
import spct
from data import command
from data.judgement import correct
from data.tokenizer import SCORES
from data.world import seed_of
from experiments import study
from experiments.baselines import grm, no_principles, rl_only
from experiments.study import accuracy, difference, judged, number, right, trajectories
from sample import judge
from spct import all_kept, rft_examples

NAME = "ablations"

# ----------------------------------------------------------------------------------------
# The data of RFT

def examples(base, samples=True, hinted=True):
    """RFT's examples with and without the right judgements of its plain and of its hinted samples."""
    kept = all_kept(base.points, base.samples if samples else [], base.hinted if hinted else [])
    return rft_examples(base.cfg, base.tok, kept)


def only(base, judgements):
    """Of the default's examples the judgements alone (they end with scores), or the general text."""
    return [(ids, mask) for ids, mask in examples(base) if (SCORES in ids) == judgements]


def at_random(base):
    """As many plain and as many hinted judgements as the rules keep, but drawn at random from those that
    parse: the rules' control."""
    chosen, rng = [], random.Random(seed_of(base.seed, "at random"))
    for kept, groups in ((all_kept(base.points, base.samples, []), base.samples),
                         (all_kept(base.points, [], base.hinted), base.hinted)):
        parsed = [j for group in groups for j in group if j.scores is not None]
        chosen += rng.sample(parsed, min(len(parsed), len(kept)))
    return rft_examples(base.cfg, base.tok, chosen)


RFT_DATA = {  # arm: (its examples, the paper's accuracy after RFT, after RL; is there RL from it?)
    "default": (examples, "68.8", "69.9", True),
    "no hinted samples": (lambda base: examples(base, hinted=False), "68.0", "", False),
    "neither": (lambda base: only(base, judgements=False), "66.1", "68.7", True),
    "no general text": (lambda base: only(base, judgements=True), "63.3", "", False),
    "random, as many of each kind": (at_random, "", "", True),
}


def rft_and_rl(base, name):
    """-> answers after RFT, and after RL if there is any."""
    if name == "default":
        return grm(base, "rft"), grm(base, "rl")
    make, *_, more = RFT_DATA[name]
    run, few = base.arm(name), base.votes[:1]
    tuned = spct.rft(run, base.policy("base"), make(base))
    found = [judged(base, base.arm(f"{name} rft"), tuned, ["test"], few)]
    if more:
        policy = spct.rl(run, base.tok, tuned, base.points, base.samples)
        found.append(judged(base, run, policy, ["test"], few))
    return found


def rft_table(bases):
    m = f"weighted@{bases[0].votes[0]}"
    columns = [(stage, mode) for stage in ("RFT", "RL") for mode in ("greedy", m)]
    rows = [["RFT's data", "examples", "paper, RFT", "paper, RL",
             *(cell for stage, mode in columns for cell in (f"{stage}, {mode}", "against default"))]]
    usual = None
    for name, (make, *paper, _) in RFT_DATA.items():
        stages = zip(*(rft_and_rl(b, name) for b in bases))
        found = [right(bases, answers, mode) for answers in stages for mode in ("greedy", m)]
        usual = usual or found
        cells = [cell for mine, default in zip(found, usual)
                 for cell in (accuracy(mine), "" if mine is default else difference(mine, default))]
        cells += [""] * (2 * len(columns) - len(cells))
        rows.append([name, number([len(make(b)) for b in bases], ".0f"), *paper, *cells])
    return rows

# ----------------------------------------------------------------------------------------
# RL

BETAS = (0.0, 0.15, 0.5)
# (G, learned from): settings; with 8 samples of each of 64 points a step, or as many of more points
GROUPS = {(4, 2): dict(group=4, rl_keep=2, rl_points=128), (8, 4): {}, (8, 8): dict(rl_keep=8)}


def rl_steps(run):
    with open(run.path("metrics-rl.jsonl")) as f:
        return [json.loads(line) for line in f]


def rl_arm(base, name, **changes):
    """RL from the default RFT model with other settings -> answers, the rows of metrics-rl.jsonl."""
    if all(getattr(base.cfg, field) == value for field, value in changes.items()):
        return grm(base, "rl"), rl_steps(base.run)
    run = base.arm(name, **changes)
    policy = spct.rl(run, base.tok, base.policy("rft"), base.points, base.samples)
    return judged(base, run, policy, ["test"]), rl_steps(run)


def beta_table(bases, found):
    """found: {(beta, RL steps): [(answers, steps) of each seed]}. Each row of another beta is compared with
    the one of as many steps and the default beta."""
    modes = ["greedy", *(f"{how}@{k}" for k in bases[0].votes for how in ("sum", "weighted"))]
    rows = [["beta", "RL steps", "KL at the end", *modes, f"worst subset, {modes[-1]}",
             f"against the default beta, {modes[-1]}"]]
    for (beta, count), seeds in found.items():
        answers, steps = zip(*seeds)
        usual, _ = zip(*found[bases[0].cfg.beta, count])
        mine, others = (right(bases, a, modes[-1]) for a in (answers, usual))
        rows.append([str(beta), str(count), number([s[-1]["kl"] for s in steps]),
                     *(accuracy(right(bases, answers, m)) for m in modes),
                     study.worst_subset(bases, answers, modes[-1]),
                     "" if beta == bases[0].cfg.beta else difference(mine, others)])
    return rows


def group_table(bases):
    m = f"weighted@{bases[0].votes[0]}"
    rows = [["G", "learned from", "points a step", "silent groups", "greedy", m, "against default, greedy",
             f"the same, {m}"]]
    usual = [grm(b, "rl") for b in bases]
    for (G, keep), changes in GROUPS.items():
        answers, steps = zip(*(rl_arm(b, "group", **({} if b.quick else changes)) for b in bases))
        silent = number([np.mean([row["silent_groups"] for row in s]) for s in steps])
        mine = [right(bases, answers, mode) for mode in ("greedy", m)]
        against = [difference(x, right(bases, usual, mode)) if changes else ""
                   for x, mode in zip(mine, ("greedy", m))]
        rows.append([str(G), str(keep), str(changes.get("rl_points", bases[0].cfg.rl_points)),
                     silent, *map(accuracy, mine), *against])
    return rows


def other_table(bases):
    """No RFT, no principles: a part of the method is missing."""
    few, many = (f"weighted@{k}" for k in (bases[0].votes[0], bases[0].votes[-1]))
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
    names = [f"{how}@{k}" for how in ("sum", "weighted") for k in bases[0].votes]
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


def guided(base, groups, k, k_meta):
    """(items,): is the guided vote of the first k samples right?"""
    return np.array([correct(metarm.guided_vote(g[:k], k_meta), item.gold)
                     for g, item in zip(groups, base.parts["test"])], float)


def k_meta_table(bases):
    rows = [["policy", "k", *(f"k_meta = {name}" for name in ("1", "k/4", "k/2", "k"))],
            ["paper, 27B", "32", "71.5", "72.7", "72.8", "71.0"]]
    for name in ("rft", "rl"):
        seeds = [(b, stage_groups(b, name)) for b in bases]
        for k in bases[0].votes:
            rows.append([name, str(k), *(accuracy([guided(*seed, k, keep) for seed in seeds])
                                         for keep in (1, max(1, k // 4), k // 2, k))])
    return rows

# ----------------------------------------------------------------------------------------

def run(bases):
    usual, long = bases[0].cfg.rl_steps, 3 * bases[0].cfg.rl_steps
    arms = [*((beta, usual) for beta in BETAS), (bases[0].cfg.beta, long), (0.0, long)]
    name = lambda beta: "rl_steps" if beta == bases[0].cfg.beta else "beta"    # scaling.py shares the former
    found = {(beta, steps): [rl_arm(b, name(beta), beta=beta, rl_steps=steps) for b in bases]
             for beta, steps in arms}
    last = bases[0].votes[-1]
    curves = {m: [study.mean(right(bases, [answers for answers, _ in found[beta, usual]], m))
                  for beta in BETAS] for m in ("greedy", f"sum@{last}", f"weighted@{last}")}

    def figure(path):
        with report.canvas(path, 1, 2, width=10, height=4) as (left, beside):
            for m, values in curves.items():
                left.plot(range(len(BETAS)), values, "o-", label=m)
            left.set(xticks=range(len(BETAS)), xticklabels=BETAS, xlabel="KL coefficient beta",
                     ylabel="strict accuracy")
            for beta in BETAS:
                rewards = [[row["reward"] for row in steps] for _, steps in found[beta, usual]]
                beside.plot(np.mean(rewards, axis=0), label=f"beta {beta}")
            beside.set(xlabel="RL step", ylabel="reward")

    tables = {"Data of RFT": rft_table(bases), "A part of the method is missing": other_table(bases),
              "KL coefficient": beta_table(bases, found), "Group size": group_table(bases),
              "Order of the responses": vote_table(bases),
              "How many judgements vote": k_meta_table(bases)}
    return tables, {"beta": BETAS, "curves": curves}, figure


FINDINGS = """
What was seen in three runs (the base runs' training on an Intel Xeon, the arms on an AMD EPYC in processes of
one thread):

- **Hinted samples matter for the greedy judgement**: without them .392 after RFT, .689 with them. The right
  judgements that the base model finds by itself are mostly short impressions ("looks fine"), and so are the
  greedy judgements of a model that learns from these alone: short, and often ties; with general text alone
  (.540) it is better. Eight weighted votes lose .021, which may be noise. In the paper hinted samples are
  worth .8 points.
- **The rules matter for RFT**: as many judgements of each kind at random lose .094, with 8 votes .064.
- **Against the paper: general text does not matter** for RFT's greedy judgement (the paper: -5.5, its
  largest loss), for 8 votes a little (-.025). There it keeps a pre-trained model from forgetting; here the
  same domains make up pre-training, and RFT is short.
- **RL evens out**: after 24 steps the judge with RFT on random judgements, with general text alone (the
  paper: -1.2) and without RFT is within .016 of the default, greedy and with 8 votes, which may be noise.
  With version 0.1.0, a weaker base, these were .05, .07 and .10 behind. So here RFT is a way to a better
  judge without RL; before RL it is worth little.
- **Principles pay**: without them RL ends at -.032 greedy, -.037 with 32 votes out of distribution (the
  paper: -2.4).
- **Against the paper: beta = 0 does not collapse**, not in three times as many steps either: 32 votes are
  level (-.001, -.006 after 72 steps), the worst subset, sums, is at .77 in place of .79. A reward of right
  or wrong and a grammar leave little to exploit in a world this small. beta = .5 holds the judge back: a sum
  of 8 is at .812, not .863 (32 weighted votes: -.010, seeds disagree). In 0.1.0 the penalty cost more (8
  votes .047 after the longer run): a better base has less to gain by going far.
- **Longer RL** helps the sum of scores most: 72 steps bring that of 8 from .863 to .929, greedy from .875
  to .885 (no intervals were taken of these two), 32 weighted votes from .936 to .945 (noise).
- **RL and guided votes are substitutes**: after RFT the filter adds .050 to a sum of 32 (half of them) or
  .072 (a quarter), after RL it takes .008 or .032 away; of 8 half adds .012. RL and all 32, .921, are far
  ahead of RFT and the filter. (In 0.1.0 both together were the best.)
- **Groups**: with 4 samples of twice as many points twice as many groups are silent, and all the same it is
  level. To learn from all 8 is no better than from 4 chosen by contrast (+.007, noise), at twice the update.
- **A fresh order for each vote** is worth .016 to 32 weighted votes (.005 to .027; in 0.1.0 noise); with 8
  .005, without an interval. See the last chapter for judges with a bias.
- **k_meta**: as in the paper, one judgement of 32 is too few. After RFT a quarter of 32 is the best, after
  RL no filter is; of 8 a quarter or a half.
"""


if __name__ == "__main__":
    command(lambda argv: study.main(sys.modules[__name__], argv))
