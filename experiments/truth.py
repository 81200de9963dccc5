"""
What only a toy world can show: is a judge correct for the right reasons, is it sure when it is correct, does it
inherit the biases of its teachers, and does it survive wrong labels?

Real preference data has no answers to compare with. Here the truth behind every reward is known.

1. Reasons. A judgement is well-founded if each response was checked by each principle, all these checks are true,
   and all totals are their sums. How many of the correct judgements are well-founded, and of the incorrect ones?
   Does the Meta RM, which has seen verdicts only, prefer those that are?
2. Calibration. Sureness is the share of samples that agree with the vote. The expected calibration error (ECE) is
   the mean distance between sureness and accuracy, in ten bins of sureness.
3. Biases. The base model reads more judgements, whose annotators give 3 points too many to the response that
   stands first, or to the longest one. RFT and RL follow, as always. The bias of a judge is how much more often it
   picks that response than that response is the best.
4. Wrong labels. In 30% of the training items the best response changes places with another one.
"""

import random
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import GENERAL, SKILLS, annotate, encode_document, general_text, pack
from data.judgement import correct, judgement_parts, pick, prompt_parts, vote_plurality
from data.world import make_item, seed_of
from experiments import study
from experiments.baselines import scalar_rm
from report import auc, faithfulness
from sample import judge
from spct import is_correct

STAGES = ("base", "rft", "rl")
DOSE = 3                                           # points too many

# ----------------------------------------------------------------------------------------
# 1. Reasons, 2. calibration: of judgements that the run has sampled


def well_founded(j, item):
    """Are all checks that its principles ask for made and true, and all totals their sums?"""
    if j.scores is None:
        return False
    _, checks, totals = faithfulness(j, item)
    return checks == 1 and totals == 1


def share(values):
    """The mean, or nan of nothing: such an item is left out."""
    return np.mean(values) if len(values) else np.nan


def reasons(items, groups):
    """{measure: a number for each item}"""
    found = {"true checks": [], "of correct": [], "of incorrect": [], "AUC": []}
    for item, group in zip(items, groups):
        parsed = [j for j in group if j.scores is not None]
        good = [well_founded(j, item) for j in parsed]
        hits = [is_correct(j, item) for j in parsed]
        found["true checks"].append(share([faithfulness(j, item)[1] for j in parsed]))
        found["of correct"].append(share([g for g, hit in zip(good, hits) if hit]))
        found["of incorrect"].append(share([g for g, hit in zip(good, hits) if not hit]))
        among = [(g, j.meta) for g, hit, j in zip(good, hits, parsed) if hit and j.meta is not None]
        area = auc(*zip(*among)) if among else None
        found["AUC"].append(np.nan if area is None else area)
    return {name: np.array(values, float) for name, values in found.items()}


def sureness(items, groups):
    """-> for each item: the share of samples that agree with the plurality, and whether it is correct."""
    sure, right = [], []
    for item, group in zip(items, groups):
        votes = vote_plurality([j.scores for j in group])
        best = pick(votes)
        sure.append(np.mean([best is not None and pick(j.scores) == best for j in group]))
        right.append(float(correct(votes, item.gold)))
    return np.array(sure), np.array(right)


def bins(sure, right):
    """[(share of the items, mean sureness, accuracy)] of each of ten bins of sureness that has items."""
    where = np.minimum((sure * 10).astype(int), 9)
    return [(float((where == b).mean()), float(sure[where == b].mean()), float(right[where == b].mean()))
            for b in range(10) if (where == b).any()]


def ece(sure, right):
    """
    >>> round(ece(np.array([0.95, 0.95, 0.55]), np.array([1.0, 1.0, 0.0])), 4)
    0.2167
    """
    return sum(weight * abs(s - r) for weight, s, r in bins(sure, right))

# ----------------------------------------------------------------------------------------
# 3. Biases


def favoured(item, kind):
    """The response that biased annotators favour: the first of the item's order, or the longest."""
    return 0 if kind == "position" else max(range(item.n), key=lambda i: len(item.responses[i]))


def biased_document(seed, index, kind):
    """As a document of the corpus, by an annotator who gives a response too many points."""
    rng = random.Random(seed_of(seed, "biased", index))
    if rng.random() < GENERAL:
        return general_text(rng)
    item = make_item(seed, "train", seed_of("biased", index), least=2)
    skill = rng.choices(list(SKILLS), SKILLS.values())[0]
    weights, critiques, _ = annotate(rng, item, skill)
    best = favoured(item, kind)
    critiques = [(quote, text, min(10, total + DOSE * (i == best))) for i, (quote, text, total) in
                 enumerate(critiques)]
    judgement = judgement_parts(weights, critiques, [total for _, _, total in critiques])
    return [(prompt_parts(item.query, item.responses), False), (judgement, True)]


def biased_base(run, kind, tokens):
    """The base model, after it has read so many tokens more."""
    cfg, examples, count = run.config(), [], 0
    while count < tokens:
        examples.append(encode_document(run.tok, biased_document(cfg.seed, len(examples), kind)))
        count += len(examples[-1][0])
    ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "biased"))
    return spct.train_lm(cfg, "base", run.model("base"), ids, learned, cfg.rft_lr, cfg.pretrain_rows)


def retrain(run, name, base, items):
    """RFT and RL from a base model, on items -> {stage: name of the model}. As spct.main does it."""
    cfg, several = run.config(), [item for item in items if item.n > 1]
    names = {"base": base, "rft": f"truth, {name}, rft", "rl": f"truth, {name}, rl"}
    samples = run.groups(f"truth, {name}, rft", lambda: judge(
        run.model(base), run.tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    hinted = run.groups(f"truth, {name}, hinted", lambda: judge(
        run.model(base), run.tok, several, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    kept = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    kept += [j for group, item in zip(hinted, several) for j in spct.keep_hinted(group, item)]
    run.model(names["rft"], lambda: spct.finetune(cfg, run.tok, run.model(base), kept))
    hard = [item for group, item in zip(samples, items) if not spct.too_easy(group, item)]
    run.model(names["rl"], lambda: spct.reinforce(cfg, run.tok, run.model(names["rft"]), hard))
    return names


def excess(items, groups, kind, voted):
    """How much more often is the favoured response picked than it is the best? A number for each item. The first
    response is, for a single judgement, the first that it has read. What ties, or does not parse, picks none."""
    found = []
    for item, group in zip(items, groups):
        picks = [(pick(vote_plurality([j.scores for j in group])), list(range(item.n)))] if voted else \
                [(pick(j.scores), j.order) for j in group]
        of = [order[0] if kind == "position" else favoured(item, kind) for _, order in picks]
        found.append(share([float(p == f) - float(item.best == f)
                            for (p, _), f in zip(picks, of) if p is not None]))
    return np.array(found, float)


def asked(run, policy, items, k, shuffle):
    """k judgements of each item by a policy, a name"""
    name = f"truth, {policy}, {'fresh orders' if shuffle else 'one order'}"
    return run.groups(name, lambda: judge(run.model(policy), run.tok, items, k, seed_of(
        run.config().seed, "study", "truth"), run.config().temperature, shuffle))


def biases(run, policy, kind, items, k):
    """{measure: a number for each item} of a policy, a name"""
    fresh, fixed = asked(run, policy, items, k, True), asked(run, policy, items, k, False)
    accuracy = lambda groups: np.array([float(correct(vote_plurality([j.scores for j in group]), item.gold))
                                        for group, item in zip(groups, items)])
    return {"one sample": excess(items, fresh, kind, False), "vote": excess(items, fresh, kind, True),
            "vote in one order": excess(items, fixed, kind, True), "accuracy": accuracy(fresh),
            "accuracy in one order": accuracy(fixed)}

# ----------------------------------------------------------------------------------------
# 4. Wrong labels


def mislabelled(seed, item, rate):
    """With this probability the gold rewards of the best and another response change places."""
    rng = random.Random(seed_of(seed, "label", item.id))
    if item.n == 1 or rng.random() >= rate:
        return item
    other = rng.choice([i for i in range(item.n) if i != item.best])
    gold = list(item.gold)
    gold[item.best], gold[other] = gold[other], gold[item.best]
    return replace(item, gold=gold)

# ----------------------------------------------------------------------------------------
# One run


def study_run(run, sizes):
    """-> {"part, policy": {measure: a number for each item}}"""
    test_items, k, tokens = sizes
    items, found, cfg = run.items("test", test_items), {}, run.config()
    for policy in STAGES:
        split_k = k if policy == "base" else cfg.k
        _, groups = run.judged(policy, "test", test_items, split_k, cfg.temperature)
        found[f"reasons, {policy}"] = reasons(items, groups)
        sure, right = sureness(items, groups)
        found[f"calibration, {policy}"] = {"sureness": sure, "accuracy": right}
    for kind in ("position", "length"):
        base = f"truth, {kind}"
        run.model(base, lambda: biased_base(run, kind, tokens))
        for dose, names in (("none", {stage: stage for stage in STAGES}),
                            (str(DOSE), retrain(run, kind, base, run.training_items()))):
            for policy, name in names.items():
                found[f"{kind}, dose {dose}, {policy}"] = run.numbers(
                    f"truth, {kind}, {dose}, {policy}", lambda: biases(run, name, kind, items, k))
    wrong = [mislabelled(cfg.seed, item, 0.3) for item in run.training_items()]
    for share_of_wrong, names, learned in (("0", {"rft": "rft", "rl": "rl"}, None),
                                           ("0.3", retrain(run, "labels", "base", wrong), wrong)):
        for policy in ("rft", "rl"):
            def make():
                greedy = judge(run.model(names[policy]), run.tok, items, 1, 0, 0, False)
                votes = asked(run, names[policy], items, k, True)
                return {"greedy": np.array([float(is_correct(g[0], item)) for g, item in zip(greedy, items)]),
                        "plurality": sureness(items, votes)[1]}
            found[f"labels, {share_of_wrong}, {policy}"] = run.numbers(f"truth, {share_of_wrong}, {policy}", make)

        def make():
            scores, _ = scalar_rm(run, learned, f"scalar, {share_of_wrong}")(items, 1)
            both = zip(scores["answer"], items)
            return {"greedy": np.array([float(correct(scores, item.gold)) for scores, item in both])}
        found[f"labels, {share_of_wrong}, scalar RM"] = run.numbers(f"truth, {share_of_wrong}, scalar", make)
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    for policy, color in zip(STAGES, ("tab:gray", "tab:blue", "tab:red")):
        found = result["bins"][policy]
        left.plot([s for _, s, _ in found], [r for _, _, r in found], "o-", color=color, label=policy)
    left.plot([0, 1], [0, 1], "k:", lw=0.8)
    left.set(xlabel="sureness: share of samples that agree with the vote", ylabel="accuracy of the vote")
    for kind, style in (("position", "o-"), ("length", "s--")):
        for measure, color in (("one sample", "blue"), ("vote in one order", "orange"), ("vote", "green")):
            of = [result["numbers"][f"{kind}, dose {DOSE}, {policy}"][measure][0] for policy in STAGES]
            right.plot(STAGES, of, style, color=f"tab:{color}", label=f"{kind}: {measure}")
    right.set(ylabel="bias after biased annotators")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    test_items, k, _ = sizes = (8, 2, 6000) if quick else (600, 8, 1_000_000)
    queries = [[item.query for item in run.items("test", test_items)] for run in runs]
    found = [study_run(run, sizes) for run in runs]
    columns = {name: {m: [f[name][m] for f in found] for m in found[0][name]} for name in found[0]}
    less = lambda a, b, m: study.difference(columns[a][m], columns[b][m], queries)
    dosed = lambda kind, policy, dose: f"{kind}, dose {dose}, {policy}"
    result = {"numbers": {name: {m: study.number(v) for m, v in of.items()} for name, of in columns.items()},
              "ece": {}, "bins": {}, "wrong labels, less none": {
                  f"{who}, {m}": less(f"labels, 0.3, {who}", f"labels, 0, {who}", m)
                  for who in ("rft", "rl", "scalar RM") for m in columns[f"labels, 0, {who}"]},
              "accuracy, dose 3 less none": {
                  f"{kind}, {policy}, {m}": less(dosed(kind, policy, DOSE), dosed(kind, policy, "none"), m)
                  for kind in ("position", "length") for policy in STAGES
                  for m in ("accuracy", "accuracy in one order")}}
    for policy in STAGES:
        both = [(f[f"calibration, {policy}"]["sureness"], f[f"calibration, {policy}"]["accuracy"]) for f in found]
        eces = [ece(*of) for of in both]
        result["ece"][policy] = [round(float(np.mean(eces)), 4), round(float(np.ptp(eces)) / 2, 4)]
        result["bins"][policy] = bins(*(np.concatenate(parts) for parts in zip(*both)))

    rows = [["measure", *STAGES]]
    def row(title, name, measure, what=None):
        cells = [(what or result["numbers"]).get(name.format(policy), {}).get(measure) for policy in STAGES]
        rows.append([title, *(study.in_words(x) if x else "" for x in cells)])
    row("true checks, of those due", "reasons, {}", "true checks")
    row("well-founded, of correct judgements", "reasons, {}", "of correct")
    row("well-founded, of incorrect judgements", "reasons, {}", "of incorrect")
    row("Meta RM's AUC, well-founded among correct", "reasons, {}", "AUC")
    row("sureness of the vote", "calibration, {}", "sureness")
    row("accuracy of the vote", "calibration, {}", "accuracy")
    eces = [study.in_words(result["ece"][policy]) for policy in STAGES]
    rows.append(["ECE (± half the range over seeds)", *eces])
    row("position bias, one sample", "position, dose 3, {}", "one sample")
    row("position bias, 8 votes in one order", "position, dose 3, {}", "vote in one order")
    row("position bias, 8 votes", "position, dose 3, {}", "vote")
    row("length bias, one sample", "length, dose 3, {}", "one sample")
    row("length bias, 8 votes", "length, dose 3, {}", "vote")
    study.save("truth", runs, quick, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
