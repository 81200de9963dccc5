"""
What only a toy world can show: is a judge right for the right reasons, sure when it is right, free of its
teachers' biases, robust to wrong labels?

    python -m experiments.truth           # three seeds; --quick: a minute, numbers without meaning

Real preference data has no answers to compare with. The paper looks at failures by hand: mostly wrong
critiques, then unbalanced weights, then labels that one may dispute. Here the truth behind every reward is
known. Samples are drawn at T = 1, if nothing else is said: they differ more, and are more often wrong, than
those of the default run.

- Faithfulness: principles, checks and totals against the world's own. A judgement is well-founded if no
  check is missing or false and all of its totals add up. How often is a right one? Does the Meta RM, which
  has seen verdicts only, prefer the well-founded among the right ones? (AUC within item; .5: it does not.
  Once among all, once among those that check each response by each principle: a mere impression is easy to
  tell from a check.) All numbers are means over items of means over an item's judgements.
- Calibration: sureness, the share of samples that agree with the vote (one that ties agrees with nothing), as
  the chance that the vote is right. ECE is the mean distance between the two, in ten bins: never less than
  the gap between their means; and the accuracy on the half of the items with the widest margins between the
  two largest numbers of votes (a plurality).
- Bias laboratory: annotators that give `dose` more points to the first, or the longest, response. The bias
  of a judge is how much more often, when it picks one, it picks that response than it is the best one.
  "Against base" and "against one sample" are differences of the bias, "against dose 0" of accuracy. A
  sample's first response is the first that it read, a vote's is that of the item: so votes over shuffled
  orders can have no such bias but by chance, and their control are votes over samples that all read the
  item's order. Guided votes are sums, so their control is the sum. (The Meta RMs of dose 3 learn from half
  as many judgements as the default's; and a hint is worth less, since an annotator that knows the best
  response lifts it first, and then adds the dose to the favoured one.)
- Label noise: in a share of the points with two responses or more the best changes places with another. GRM
  against scalar RM, which sees each label four times, as always, or once, so that it cannot learn the wrong
  ones by heart (at a rate that was tuned with two epochs and more). The race is not even: RL reads half of
  the points, each once, and single responses, which only a GRM learns from, stay as they are.

What to look at: which step removes which bias. RFT and RL see labels, so they can unlearn both; shuffled
votes can only cancel what depends on the order.
"""

import copy
import itertools
import sys

import numpy as np

import metarm
import report
import spct
from config import Config
from data import command
from data.annotators import annotate
from data.judgement import correct, pick
from data.world import make_items
from experiments import study
from experiments.ablations import in_item_order, stage_groups
from experiments.baselines import grm, scalar_rm
from experiments.study import accuracy, difference, judged, mean, number, right, trajectories
from metarm import RULES
from report import FAITHFUL, faithfulness
from sample import verdict

NAME = "truth"
STAGES = ("base", "rft", "rl")
DOSE = 3                                           # points of ten
NOISE = (0.0, 0.3)

# ----------------------------------------------------------------------------------------
# Faithfulness

def well_founded(shares):
    _, checks, totals = shares
    return checks == 1 and totals == 1


def all_checked(judgement):
    """Does it check each response by each principle? (A sloppy annotator states impressions.)"""
    names = {name for name, _ in judgement.principles}
    return all(names == {name for name, *_ in c["checks"]} for c in judgement.critiques)


MEASURES = {**{name: name for name in FAITHFUL}, "all checked": "all checked", "of all": "well-founded",
            "of right": "of the right", "of wrong": "of the wrong",
            "right, if well-founded": "right, if well-founded",
            "auc": "Meta RM's AUC: well-founded among right", "auc checked": "if all checked"}


def faithful_numbers(base, name):
    """-> {measure: (items,)} of one stage; items without judgements of a kind do not count in its measure."""
    found = {m: [] for m in MEASURES}
    for group, item in zip(stage_groups(base, name), base.parts["test"]):
        parsed = [j for j in group[:max(base.votes)] if j.scores is not None]
        if not parsed:
            continue
        shares = [faithfulness(j, item) for j in parsed]
        good = np.array([well_founded(s) for s in shares])
        right = np.array([correct(j.scores, item.gold) for j in parsed])
        for m, values in zip(FAITHFUL, np.mean(shares, axis=0)):
            found[m].append(values)
        checked = np.array([all_checked(j) for j in parsed])
        for m, values in (("all checked", checked), ("of all", good), ("of right", good[right]),
                          ("of wrong", good[~right]), ("right, if well-founded", right[good])):
            found[m] += [values.mean()] if len(values) else []
        if name != "base":                         # it has no Meta RM
            meta = np.array([j.meta for j in parsed])
            for m, which in (("auc", right), ("auc checked", right & checked)):
                auc = metarm.auc(good[which], meta[which])
                found[m] += [] if auc is None else [auc]
    return {m: np.array(values, float) for m, values in found.items()}


def faithful_table(bases):
    rows = [["stage", *MEASURES.values()]]
    for name in STAGES:
        found = [faithful_numbers(b, name) for b in bases]
        rows.append([name, *(accuracy([f[m] for f in found]) for m in MEASURES)])
    return rows

# ----------------------------------------------------------------------------------------
# Calibration

def samples_at(base, name, temperature):
    """Judgements of the test items by a stage, at the usual temperature or at that of the default run."""
    if temperature == base.cfg.temperature:
        return stage_groups(base, name)
    return trajectories(base, base.arm(f"votes-{name}"), base.policy(name), "test", max(base.votes),
                        temperature=temperature)[0]


def confidences(base, name, k, temperature):
    """Of a plurality of k, each (items,): sure, the share of samples that agree; margin; right."""
    found = []
    for group, item in zip(samples_at(base, name, temperature), base.parts["test"]):
        result = verdict(group[:k], "plurality", item.n)
        top = sorted(result["votes"] or [0, 0])[-2:]
        found.append((result["sure"], top[1] - top[0], correct(result["votes"], item.gold)))
    return np.array(found, float).T


def reliability(sure, right):
    """-> (mean sureness, accuracy, items) of each of ten bins, of equal width, that is not empty."""
    at = np.minimum((sure * 10).astype(int), 9)
    return [(sure[at == i].mean(), right[at == i].mean(), int((at == i).sum())) for i in sorted(set(at))]


def expected_error(sure, right):
    """ECE: the mean over items of the distance between a bin's mean sureness and its accuracy."""
    return sum(count * abs(s - r) for s, r, count in reliability(sure, right)) / len(sure)


def calibration_table(bases):
    rows = [["stage", "T", "votes", "accuracy", "mean sureness", "ECE", "accuracy, wider margins",
             "narrower margins"]]
    ways = [(name, 1.0) for name in STAGES] + [(name, Config.temperature) for name in ("rft", "rl")]
    for (name, temperature), k in itertools.product(ways, bases[0].votes):
        sure, margin, right = zip(*(confidences(b, name, k, temperature) for b in bases))
        widest_first = [r[np.argsort(-m, kind="stable")] for r, m in zip(right, margin)]
        rows.append([name, str(temperature), str(k), accuracy(right), f"{mean(sure):.3f}",
                     number([expected_error(s, r) for s, r in zip(sure, right)]),
                     accuracy([r[:len(r) // 2] for r in widest_first]),
                     accuracy([r[len(r) // 2:] for r in widest_first])])
    return rows

# ----------------------------------------------------------------------------------------
# Bias laboratory

def favoured(kind, responses):
    """The slot that a biased annotator prefers: the first, or that of the longest response."""
    return 0 if kind == "position" else max(range(len(responses)), key=lambda i: len(responses[i]))


def biased(kind, dose):
    """Annotators that give the favoured response `dose` points more (10 at most)."""
    def annotate_with_bias(rng, item, skill, hint=None):
        weights, critiques, scores = annotate(rng, item, skill, hint)
        slot = favoured(kind, item.responses)
        quote, text, total = critiques[slot]
        scores[slot] = min(10, total + dose)
        critiques[slot] = quote, text, scores[slot]
        return weights, critiques, scores
    return annotate_with_bias


def bias_of(kind, items, scores, orders=None):
    """(items,): 1 where the favoured response is picked, less 1 where it is best; nan where none is picked.

    scores: one list an item. orders: order[slot] = response, where they stood; by default the item's order.
    """
    found = []
    for i, (item, s) in enumerate(zip(items, scores)):
        order = orders[i] if orders else list(range(item.n))
        favourite = order[favoured(kind, [item.responses[r] for r in order])]
        picked = pick(s)
        found.append(np.nan if picked is None else float(picked == favourite) - float(item.best == favourite))
    return np.array(found)


def mean_known(rows):
    """(samples, items), nan where nothing is known -> (items,): means over samples, nan where none knows."""
    count = np.sum(~np.isnan(rows), axis=0)
    return np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), np.nan)


def bias_numbers(base, kind, groups, same_order=None, k_meta=None):
    """Judgements of the test items -> {way to judge: (bias (items,), nan without any pick, right (items,))}.

    same_order: judgements that all read the item's order. k_meta: for guided votes, and for their control.
    """
    items, k = base.parts["test"], max(base.votes)
    right = lambda scores: np.array([correct(s, item.gold) for s, item in zip(scores, items)], float)
    samples = [([g[i].scores for g in groups], [g[i].order for g in groups]) for i in range(k)]
    found = {"one sample": (mean_known([bias_of(kind, items, s, orders) for s, orders in samples]),
                            np.mean([right(s) for s, _ in samples], axis=0))}
    plain = lambda groups: [RULES["weighted"](g[:k]) for g in groups]
    votes = {f"weighted@{k}, one order": plain(same_order)} if same_order else {}
    votes[f"weighted@{k}"] = plain(groups)
    if k_meta:
        votes[f"sum@{k}"] = [RULES["sum"](g[:k]) for g in groups]
        votes[f"guided@{k}"] = [metarm.guided_vote(g[:k], k_meta) for g in groups]
    return found | {name: (bias_of(kind, items, s), right(s)) for name, s in votes.items()}


def in_one_order(base, kind, name, policy, **changes):
    """The control of a position bias: judgements of the test items, all in the item's order.

    A length bias has none: the longest response is the same in every order.
    """
    if kind == "length":
        return None
    arm = base.arm(f"fixed-order {name}", **changes)
    return trajectories(base, arm, policy, "test", max(base.votes), judge=in_item_order)[0]


def laboratory(base, kind):
    """-> {stage: bias_numbers}; RFT's and RL's policy are guided by Meta RMs of their own."""
    name, fewer, k = f"{kind} bias {DOSE}", dict(meta_items=base.cfg.meta_items // 3), max(base.votes)
    if base.quick:
        fewer["pretrain_tokens"] = 100_000
    run, found = base.arm(name, **fewer), {}
    policies, samples = spct.train_policies(run, base.tok, base.points, biased(kind, DOSE))
    metas = spct.train_guides(run, base.tok, policies, samples, base.points)
    for stage, policy in policies.items():
        arm = base.arm(f"{name} {stage}", **fewer)
        groups, *_ = trajectories(base, arm, policy, "test", k, meta=metas.get(stage))
        control = in_one_order(base, kind, f"{name} {stage}", policy, **fewer)
        found[stage] = bias_numbers(base, kind, groups, control, k // 2 if stage in metas else None)
    return found


def unbiased(base, kind):
    """The same numbers of the default run: dose 0."""
    k_meta = max(base.votes) // 2
    return {stage: bias_numbers(base, kind, stage_groups(base, stage),
                                in_one_order(base, kind, stage, base.policy(stage)),
                                None if stage == "base" else k_meta) for stage in STAGES}


def known(arrays):
    return [values[~np.isnan(values)] for values in arrays]


def change(arrays, others):
    """The difference, paired by the items that both know."""
    both = [~np.isnan(a - b) for a, b in zip(arrays, others)]
    return difference([a[w] for a, w in zip(arrays, both)], [b[w] for b, w in zip(others, both)])


def bias_table(found):
    """found: {dose: [laboratory() of each seed]}"""
    rows = [["stage", "bias, dose 0", "accuracy", f"bias, dose {DOSE}", "against base", "against one sample",
             "accuracy", "against dose 0"]]
    for stage in STAGES:
        for way in found[0][0][stage]:
            of = lambda dose, i, stage=stage, way=way: [seed[stage][way][i] for seed in found[dose]]
            bias, right = of(DOSE, 0), of(DOSE, 1)
            in_base = stage != "base" and way in found[DOSE][0]["base"]
            rows.append([f"{stage}, {way}", accuracy(known(of(0, 0))), accuracy(of(0, 1)),
                         accuracy(known(bias)), change(bias, of(DOSE, 0, "base")) if in_base else "",
                         "" if way == "one sample" else change(bias, of(DOSE, 0, stage, "one sample")),
                         accuracy(right), difference(right, of(0, 1))])
    return rows

# ----------------------------------------------------------------------------------------
# Label noise

def noisy(base, share):
    """-> answers of a GRM after RL, of scalar RMs after four epochs, after one: a share of their points is
    wrong."""
    if not share:
        return grm(base, "rl"), scalar_rm(base), scalar_rm(base, base.arm("scalar-rm-1"), epochs=1)
    other = copy.copy(base)
    other.points = make_items(base.seed, "train", base.cfg.points, noise=share)
    run, start = base.arm("noise", noise=share), base.policy("base")
    samples, hinted = spct.rft_samples(run, base.tok, start, other.points)
    kept = spct.all_kept(other.points, samples, hinted)
    tuned = spct.rft(run, start, spct.rft_examples(run.cfg, base.tok, kept))
    policy = spct.rl(run, base.tok, tuned, other.points, samples)
    scalars = [scalar_rm(other, base.arm(f"noise-scalar{suffix}", noise=share), epochs=epochs)
               for suffix, epochs in (("", 4), ("-1", 1))]
    return judged(base, run, policy, ["test"]), *scalars


def noise_table(bases):
    last = f"weighted@{bases[0].votes[-1]}"
    columns = {"GRM, greedy": (0, "greedy"), f"GRM, {last}": (0, last), "scalar RM": (1, "greedy"),
               "scalar RM, 1 epoch": (2, "greedy")}
    rows = [["wrong labels", *(cell for name in columns for cell in (name, "change"))]]
    clean, curves = None, []
    for share in NOISE:
        found = [noisy(b, share) for b in bases]
        arrays = [right(bases, [answers[i] for answers in found], m) for i, m in columns.values()]
        clean = clean or arrays
        change = ["" if arrays is clean else difference(a, c) for a, c in zip(arrays, clean)]
        rows.append([f"{share:.0%}", *(cell for a, c in zip(arrays, change) for cell in (accuracy(a), c))])
        curves.append([mean(a) for a in arrays])
    return rows, dict(zip(columns, zip(*curves)))

# ----------------------------------------------------------------------------------------

def run(bases):
    labs = {kind: {0: [unbiased(b, kind) for b in bases], DOSE: [laboratory(b, kind) for b in bases]}
            for kind in ("position", "length")}
    noise_rows, noise_curves = noise_table(bases)
    k = bases[0].votes[-1]
    surety = {name: [np.concatenate(parts) for parts in zip(*(confidences(b, name, k, 1.0) for b in bases))]
              for name in STAGES}

    def figure(path):
        with report.canvas(path, 2, 2, width=10, height=8) as axes:
            for i, (name, (sure, margin, won)) in enumerate(surety.items()):
                x, y, _ = zip(*reliability(sure, won))
                axes[0, 0].plot(x, y, "o-", color=f"C{i}", label=name)
                best_first = np.argsort(-margin, kind="stable")
                covered = np.arange(1, len(won) + 1)
                axes[0, 1].plot(covered / len(won), won[best_first].cumsum() / covered, color=f"C{i}",
                                label=name)
            axes[0, 0].plot([0, 1], [0, 1], ":", color="gray")
            axes[0, 0].set(xlabel=f"share of {k} samples that agree with the vote", ylabel="accuracy")
            axes[0, 1].set(xlabel="share of items, widest margins first", ylabel="accuracy", ylim=(0.4, 1))
            for i, (kind, found) in enumerate(labs.items()):
                styles = {"one sample": "o-", f"weighted@{k}, one order": "s:", f"weighted@{k}": "^--"}
                for way in filter(found[DOSE][0]["base"].get, styles):
                    left = [mean(known([seed[stage][way][0] for seed in found[DOSE]])) for stage in STAGES]
                    axes[1, 0].plot(STAGES, left, styles[way], color=f"C{i}", label=f"{kind}, {way}")
            axes[1, 0].set(ylabel=f"bias, dose {DOSE}")
            axes[1, 0].margins(y=0.3)              # room for the legend
            for label, values in noise_curves.items():
                axes[1, 1].plot(NOISE, values, "o-", label=label)
            axes[1, 1].set(xlabel="share of wrong labels", ylabel="strict accuracy")

    tables = {"Faithfulness": faithful_table(bases), "Calibration": calibration_table(bases),
              **{f"{kind.capitalize()} bias": bias_table(found) for kind, found in labs.items()},
              "Wrong labels": noise_rows}
    return tables, {"noise": noise_curves}, figure


FINDINGS = """
What was seen in three runs (samples at T = 1 but where T is named):

- **Reasons improve although no reward looks at them**: of all checks due .22, .49, .91 are made and true
  after base, RFT, RL; principles and totals likewise. After RL .67 of the right verdicts are well-founded,
  and a well-founded judgement is right in .92. (In version 0.1.0 it was one of three, and .76.) Of the wrong
  judgements .18 are well-founded, too: what they err in are principles or weights.
- **The Meta RM prefers the well-founded among right judgements**, though it has learned from verdicts alone:
  AUC .81 after RFT, .60 after RL; among judgements that check everything, where no impression helps it, .74
  and .58 (of fewer items).
- **Votes are under-confident, at T = 1 far more than at 0.5**: after RL .78 of 32 samples agree with a vote
  that is right in .94 (ECE .16); at 0.5 it is .89 (ECE .05, nearly all of it that gap). After RFT the ECE is
  .27 and .18. The margin sorts at each: after RL the half with the wider margins is right in .99, the other
  in .88.
- **Votes keep a position bias if all samples read the same order, and shuffled orders remove it.** If
  annotators give the first response 3 points, single samples have a bias of .26 at base, .21 after RFT, .16
  after RL: training takes off .106 (.098 to .114). 32 votes in one order have a little more (by .07 at base,
  by .03 after RL), and are right in .765 after RL. With fresh orders none can be left but by chance, and
  .862 are right, still .074 less than without any bias. (In 0.1.0 sums in one order doubled the bias.)
- **A length bias is for training to remove**: fresh orders cannot, and at base 32 votes keep all of it
  (.17). RFT takes off more than half in single samples (.07 is left), RL most of the rest (.01), and 32
  votes are then .024 behind those without any bias. How votes are counted matters: after RFT a sum has more
  of it than a sample (.19, .07), weighted votes less (.03). The base model's samples lean to the longest
  without any dose (.10), RL's do not.
- **The Meta RM takes off nearly half of a sum's length bias after RFT** (.19 to .11), but weighted votes
  have .03 without it. Shuffled orders leave it no position bias to take, and RL no length bias. (In 0.1.0 it
  took two thirds of what RL had left.)
- **Wrong labels**: with 30% of them the GRM's greedy judgement has lost .009 (noise), 32 votes .019, the
  scalar RM .132; learning each label once only it loses .094 (.663 and .650 are left). It is no fair race:
  both start from the base model, but wrong labels can only choose among judgements that the GRM writes; a
  scalar RM learns its number from labels alone.
"""


if __name__ == "__main__":
    command(lambda argv: study.main(sys.modules[__name__], argv))
