"""
What does compute buy: more votes, a larger judge, or longer training?

    python -m experiments.scaling           # three seeds, but of the largest size one; --quick: a minute

The paper's answers (RewardBench): a judge of 27B has 86.0 greedy, 88.5 with 32 votes and 89.8 guided with
8; one of 671B, without RL, 88.4 greedy. So samples beat size. Here the two are compared at equal compute,
in FLOPs of one judgement, with scalar RMs of each size beside them; and as in the paper, where the larger
judge had no RL.

- k = 1..64 votes of each stage, with the greedy line; pass@k: is any of k right?; and the share of items
  that are right in more than half of their samples, with which an absolute majority would end. (A plurality
  does better: it needs no majority if there are ties, or three responses and more.)
- Sizes, with votes at T = 0.5, where few of them are worth most (votes.py; all else here is at T = 1, where
  a part of what training brings is that samples differ less): each judge has the default run's training: as
  many tokens, points and steps, so that a larger one has had more training compute, in proportion to its
  size. Rates, T and the scalar RMs' epochs were tuned for S. M has one seed, beside which that seed of the
  others is shown.
- Training compute: judges of the default size after fewer pre-training tokens (twice as many brought nothing
  in 0.1.0), after fewer or more RL steps, beside the scalar RM of the same base model. Each number of RL
  steps has a schedule of its own, down over the last 30%; 72 steps see most points twice.

What to look at: where the votes of a small judge meet the greedy point of a larger one, and where the
scalar RMs lie, which need one short reading of each response.
"""

import sys

import numpy as np

import report
import spct
from data import command
from data.judgement import correct
from experiments import study
from experiments.ablations import stage_groups
from experiments.baselines import grm, scalar_rm
from experiments.bench import SIZES
from experiments.study import accuracy, difference, judged, mean, overall, right
from metarm import RULES

NAME = "scaling"
JUDGES = {"XS": dict(n_layer=3, n_head=4, n_embd=64), "S": SIZES["S"], "M": SIZES["M"]}
TEMPERATURE = 0.5                                  # of the votes of all sizes
ONE_SEED = ("M",)                                  # sizes that the first seed alone has
TOKENS = (3_000_000, 6_500_000)
RL_STEPS = (8, 16, 24, 72)
MOSTLY = "right in most samples"


def up_to(k):
    """2, 4, 8, ... k."""
    return [2 ** i for i in range(1, k.bit_length()) if 2 ** i <= k]

# ----------------------------------------------------------------------------------------
# Votes

def vote_curves(base, name):
    """-> {measure: (items,)} of one stage: one sample, greedy, votes, pass@k, right in most samples."""
    items = base.parts["test"]
    groups, answers = stage_groups(base, name), grm(base, name)
    single = np.array([[correct(j.scores, item.gold) for j in g] for g, item in zip(groups, items)], float)
    curves = {"greedy": right([base], [answers], "greedy")[0], "one sample": single.mean(axis=1)}
    for k in up_to(base.most):
        votes = [RULES["weighted"](g[:k]) for g in groups]
        curves[f"weighted@{k}"] = np.array([correct(v, item.gold) for v, item in zip(votes, items)], float)
        curves[f"pass@{k}"] = single[:, :k].max(axis=1)
    return {**curves, MOSTLY: (single.mean(axis=1) > 0.5).astype(float)}


def vote_table(bases, curves):
    """curves: {stage: [vote_curves of each seed]}"""
    last = max(up_to(bases[0].most))
    shown = ["one sample", "greedy", *(f"weighted@{k}" for k in up_to(last)), MOSTLY, f"pass@{last}"]
    rows = [["stage", *shown, "last doubling of votes"]]
    for name, found in curves.items():
        values = lambda m: [c[m] for c in found]
        rows.append([name, *(accuracy(values(m)) for m in shown),
                     difference(values(f"weighted@{last}"), values(f"weighted@{last // 2}"))])
    return rows

# ----------------------------------------------------------------------------------------
# Sizes

def judge_of_size(base, size):
    """-> answers (greedy, votes of k = 2, 3, ... 64), greedy ones after RFT, the scalar RM's answers,
    parameters."""
    votes = range(2, base.most + 1)
    shape = {} if base.quick or JUDGES[size] == SIZES["S"] else JUDGES[size]
    if shape:                                      # in a quick run there is but one size
        run = base.arm(f"size-{size}", **shape)
        policies, _ = spct.train_policies(run, base.tok, base.points)
        policy = policies["rl"]
        tuned = judged(base, base.arm(f"size-{size} rft", **shape), policies["rft"], ["test"], [])
        scalar = scalar_rm(base, run, policies["base"])
    else:                                          # the base run's judge: grm(base, "rl") has its judgements
        run, policy = base.arm("grm-rl"), base.policy("rl")
        tuned, scalar = grm(base, "rft"), scalar_rm(base)
    answers = judged(base, run, policy, ["test"], votes, base.most, temperature=TEMPERATURE)
    return answers, tuned, scalar, sum(p.numel() for p in policy.parameters())


def mflops(answers, m):
    return float(np.mean([a["test"][m]["flops"] for a in answers])) / 1e6


def side_by_side(bases, sizes):
    """Some sizes have the first seed only: {name: judges} with that seed alone of the others, too."""
    one = {size: judges[:1] for size, judges in sizes.items()}
    if all(len(judges) == len(bases) for judges in sizes.values()):
        return sizes
    return {**{size: judges for size, judges in sizes.items() if len(judges) == len(bases)},
            **{f"{size}, seed {bases[0].seed} alone": judges for size, judges in one.items()}}


def size_table(bases, sizes):
    """sizes: {size: [judge_of_size of each of the first seeds]}. Means over subsets."""
    modes = ["greedy", "weighted@4", *(f"weighted@{k}" for k in bases[0].votes if k > 4)]
    rows = [["size", "parameters", *(cell for m in modes for cell in (m, "MFLOPs")), "scalar RM",
             "MFLOPs"]]
    for size, found in side_by_side(bases, sizes).items():
        answers, _, scalars, parameters = zip(*found)
        cells = [cell for a, m in [*((answers, m) for m in modes), (scalars, "greedy")]
                 for cell in (accuracy(overall(bases, a, m)), f"{mflops(a, m):.0f}")]
        rows.append([size, f"{parameters[0] / 1e6:.2f}M", *cells])
    return rows


def pairs_of_sizes(sizes):
    """-> (larger's name, its judges, smaller's name, its judges on the same seeds), of each pair."""
    names = list(sizes)
    for i, large in enumerate(names):
        for small in names[:i]:
            yield large, sizes[large], small, sizes[small][:len(sizes[large])]


def equal_compute_table(bases, sizes):
    """A larger judge's greedy judgement against votes of a smaller one, the most that cost no more. Means
    over subsets."""
    rows = [["larger, greedy", "seeds", "MFLOPs", "smaller", "MFLOPs", "smaller - larger",
             "larger's scalar RM", "MFLOPs", "smaller - scalar RM"]]
    for large, judges, small, others in pairs_of_sizes(sizes):
        theirs, _, scalars, _ = zip(*judges)
        ours, *_ = zip(*others)
        budget = mflops(theirs, "greedy")
        affordable = [m for m in ours[0]["test"] if m.startswith("weighted") and mflops(ours, m) <= budget]
        if not affordable:
            continue
        m = max(affordable, key=lambda m: mflops(ours, m))
        mine, scalar = overall(bases, ours, m), overall(bases, scalars, "greedy")
        rows.append([large, str(len(judges)), f"{budget:.0f}", f"{small}, {m}", f"{mflops(ours, m):.0f}",
                     difference(mine, overall(bases, theirs, "greedy")),
                     accuracy(scalar), f"{mflops(scalars, 'greedy'):.1f}", difference(mine, scalar)])
    return rows


def paper_table(bases, sizes):
    """The paper's comparison: the larger judge without RL, greedy; the smaller one with RL and votes."""
    k = bases[0].votes[-1]
    rows = [["larger, after RFT, greedy", "seeds", "MFLOPs", "accuracy",
             f"smaller, after RL, weighted@{k}", "MFLOPs", "accuracy", "smaller - larger"]]
    for large, judges, small, others in pairs_of_sizes(sizes):
        _, tuned, *_ = zip(*judges)
        ours, *_ = zip(*others)
        theirs, mine = overall(bases, tuned, "greedy"), overall(bases, ours, f"weighted@{k}")
        rows.append([large, str(len(judges)), f"{mflops(tuned, 'greedy'):.0f}", accuracy(theirs), small,
                     f"{mflops(ours, f'weighted@{k}'):.0f}", accuracy(mine), difference(mine, theirs)])
    return rows

# ----------------------------------------------------------------------------------------
# Training compute

def after(base, field, value):
    """-> answers of the RL policy with another value of one setting, and of the scalar RM from its base."""
    if value == getattr(base.cfg, field):
        return grm(base, "rl"), scalar_rm(base)
    run = base.arm(field, **{field: value})
    if field == "rl_steps":                        # all before RL is that of the base run
        policy = spct.rl(run, base.tok, base.policy("rft"), base.points, base.samples)
        return judged(base, run, policy, ["test"]), scalar_rm(base)
    policies, _ = spct.train_policies(run, base.tok, base.points)
    return judged(base, run, policies["rl"], ["test"]), scalar_rm(base, run, policies["base"])


def training_table(bases, field, values):
    """-> rows, and for each value {mode: accuracy}"""
    modes = ["greedy", *(f"weighted@{k}" for k in bases[0].votes)]
    rows, curve, before = [[field, *modes, f"against the row above, {modes[-1]}", "its scalar RM",
                            "greedy - scalar RM"]], [], None
    for value in values:
        answers, scalars = zip(*(after(b, field, value) for b in bases))
        found, scalar = {m: right(bases, answers, m) for m in modes}, right(bases, scalars, "greedy")
        rows.append([f"{value:,}", *map(accuracy, found.values()),
                     difference(found[modes[-1]], before) if before else "",
                     accuracy(scalar), difference(found["greedy"], scalar)])
        before = found[modes[-1]]
        curve.append({m: mean(values) for m, values in found.items()})
    return rows, curve

# ----------------------------------------------------------------------------------------

def run(bases):
    quick = bases[0].quick
    curves = {name: [vote_curves(b, name) for b in bases] for name in ("base", "rft", "rl")}
    one = bases[0] if bases[0].seed == study.SEEDS[0] or quick else None     # the base of ONE_SEED
    has = lambda base, size: size not in ONE_SEED or base is one
    sizes = {size: [judge_of_size(b, size) for b in bases if has(b, size)] for size in JUDGES}
    sizes = {size: judges for size, judges in sizes.items() if judges}
    tokens = (100_000, bases[0].cfg.pretrain_tokens) if quick else TOKENS
    steps = (1, bases[0].cfg.rl_steps) if quick else RL_STEPS
    token_rows, token_curve = training_table(bases, "pretrain_tokens", tokens)
    step_rows, step_curve = training_table(bases, "rl_steps", steps)
    means = {name: {m: mean([c[m] for c in found]) for m in found[0]} for name, found in curves.items()}
    frontier = {}
    for size, found in side_by_side(bases, sizes).items():
        answers, _, scalars, _ = zip(*found)
        point = lambda a, m: [mflops(a, m), mean(overall(bases, a, m))]
        frontier[size] = {"votes": [point(answers, f"weighted@{k}") for k in up_to(bases[0].most)],
                          "greedy": [point(answers, "greedy")], "scalar RM": [point(scalars, "greedy")]}

    def figure(path):
        with report.canvas(path, 2, 2, width=11, height=8) as axes:
            ks = up_to(bases[0].most)
            for i, (name, c) in enumerate(means.items()):
                votes = [c["one sample"], *(c[f"weighted@{k}"] for k in ks)]
                axes[0, 0].plot([1, *ks], votes, "o-", color=f"C{i}", label=f"{name}: votes")
                axes[0, 0].axhline(c["greedy"], color=f"C{i}", ls=":", label=f"{name}: greedy")
                axes[0, 0].axhline(c[MOSTLY], color=f"C{i}", ls="--", lw=0.7, label=f"{name}: {MOSTLY}")
            axes[0, 0].set(xscale="log", xticks=[1, *ks], xticklabels=[1, *ks], xlabel="votes k")
            for name, lines in frontier.items():
                size, *alone = name.split(",")     # a colour a size, dotted if it is of one seed alone
                for how, style in (("votes", "o:" if alone else "o-"), ("greedy", "s"), ("scalar RM", "*")):
                    axes[0, 1].plot(*zip(*lines[how]), style, color=f"C{list(JUDGES).index(size)}",
                                    label=f"{name}: votes" if how == "votes" else None)
            axes[0, 1].set(xscale="log", xlabel="MFLOPs a judgement (squares: greedy, stars: scalar RMs)")
            for ax, values, curve, name in ((axes[1, 0], tokens, token_curve, "pre-training tokens"),
                                            (axes[1, 1], steps, step_curve, "RL steps")):
                for m in curve[0]:
                    ax.plot(values, [point[m] for point in curve], "o-", label=m)
                ax.set(xscale="log", xlabel=name)
            for ax in axes.flat:
                ax.set(ylabel="strict accuracy")
            axes[0, 1].set(ylabel="strict accuracy, mean over subsets")

    tables = {"Votes": vote_table(bases, curves), "Sizes, mean over subsets": size_table(bases, sizes),
              "Samples against size, at equal compute, mean over subsets": equal_compute_table(bases, sizes),
              "Samples against size, as in the paper, mean over subsets": paper_table(bases, sizes),
              "Pre-training": token_rows, "RL": step_rows}
    curves = {"votes": means, "frontier": frontier, "pretrain_tokens": token_curve, "rl_steps": step_curve}
    return tables, curves, figure


FINDINGS = """
What was seen in three runs (of M in one):

- **Votes bring most where a judge is poor, and little beyond eight of them after RL**: from base to RL, 64
  votes add .39, .37 and .18 to one sample, and the last doubling .042, .028 and .003 (noise). Against the
  greedy judgement it takes one sample at base, 8 votes after RFT, 4 after RL to be ahead. Weighted
  pluralities do far better than absolute majorities: only .850 of the items are right in most of their
  samples after RL. That one of 64 samples is right (pass@64 = 1) says nothing here, with four responses at
  most. (In version 0.1.0, with sums, 64 votes were still rising after RL.)
- **RL**: 8 steps bring greedy to .863, 72 to .885; 32 votes to .891 and .945. From 16 to 24 steps 32 votes
  gain .008, from 24 to 72 .009 (noise): three times the default's steps buy little. (In 0.1.0 there was no
  end in sight after 108 steps.)
- **Pre-training decides**: with 3M tokens in place of 6.5M greedy is at .551 (.38, .66 and .62 on the three
  seeds), .216 behind the scalar RM of the same base model, which is at .767.
- **Size and seed decide**: XS, with .17M parameters, is at .801, .076 and .656 on the three seeds, with .80,
  .21 and .67 of its checks true in RL's last step: on seed 2 it still states impressions, for a third of
  seed 1's FLOPs. On seed 1, which alone has M, accuracy rises with size: greedy .801, .861, .903, with 4
  votes .861, .910, .941 (differences without intervals).
- **At equal compute no gap is seen, where both have learned to check** (seed 1): 16 votes of XS against one
  greedy judgement of M -.018, 3 of S +.006 (both noise), 4 of XS against greedy S .000. Over all seeds XS is
  .206 behind S (seeds disagree). (In 0.1.0, with sums at T = 1, votes were .085 to .120 behind: a low
  temperature and weights may be why.)
- **As in the paper, without RL for the larger judge, the smaller one wins** (seed 1): 32 votes of S after RL
  beat M's greedy judgement after RFT by .245, at nine times its FLOPs; but most of that is RL, since greedy
  S is at .861, for a third of M's FLOPs. Of XS against S, over all seeds, it is +.013 (noise).
- **The scalar RMs are at .75 to .78 at each size**, XS's for about a twenty-fifth of the FLOPs of M's, or of
  a greedy judgement of S: size shows no gain.
"""


if __name__ == "__main__":
    command(lambda argv: study.main(sys.modules[__name__], argv))
