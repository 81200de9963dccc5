"""
What only a toy world can show: is a judge correct for the right reasons, is it sure when it is correct, does it
inherit the biases of its teachers, and does it survive wrong labels?

Real preference data has no answers to compare with. Here the truth behind every reward is known.

1. Reasons. A judgement is well-founded if each response was checked by each principle, all these checks are true,
   and all totals are their sums. (The principles may still overlook the cue.) How many of the correct judgements
   are well-founded, and of the incorrect ones? The Meta RM was trained to tell whether a judgement is correct.
   Does it prefer those that are well-founded?
2. Calibration. Confidence is the share of 8 samples that agree with the vote. The expected calibration error (ECE)
   is the mean distance between confidence and accuracy, in ten bins of confidence. (Of a few samples, some agree
   by chance: a perfect judge's ECE is not 0, either.)
3. Biases. The base model reads a million tokens more, in three variants: by annotators as before, and by ones who
   give 3 points too many to the response that stands first, or to the longest one. (These texts have no hints and
   no single responses.) RFT and RL follow, as always. The bias of a judge is how much more often it picks that
   response than that response is the best. The first variant is the control.
4. Wrong labels. In 30% of the training items with several responses, the best one changes places with another. A
   scalar RM learns from them, too: it sees each label four times, as always, or once.
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
    found = {"true checks": [], "of correct": [], "of incorrect": [], "Meta RM": [], "log-probability": []}
    for item, group in zip(items, groups):
        parsed = [j for j in group if j.scores is not None]
        good = [well_founded(j, item) for j in parsed]
        hits = [is_correct(j, item) for j in parsed]
        found["true checks"].append(share([faithfulness(j, item)[1] for j in parsed]))
        found["of correct"].append(share([g for g, hit in zip(good, hits) if hit]))
        found["of incorrect"].append(share([g for g, hit in zip(good, hits) if not hit]))
        for name, logit in (("Meta RM", lambda j: j.meta), ("log-probability", lambda j: j.logp / len(j.ids))):
            area = auc([g for g, hit in zip(good, hits) if hit], [logit(j) for j, hit in zip(parsed, hits) if hit])
            found[name].append(np.nan if area is None else area)
    return {name: np.array(values, float) for name, values in found.items()}


def confidence(items, groups):
    """-> for each item: the share of samples that agree with the plurality, and whether it is correct. A sample
    that ties, or does not parse, agrees with nothing."""
    sure, right = [], []
    for item, group in zip(items, groups):
        votes = vote_plurality([j.scores for j in group])
        best = pick(votes)
        sure.append(np.mean([best is not None and pick(j.scores) == best for j in group]))
        right.append(float(correct(votes, item.gold)))
    return np.array(sure), np.array(right)


def bins(sure, right):
    """[(share of the items, mean confidence, accuracy)] of each of ten bins of confidence that has items."""
    where = np.minimum((sure * 10).astype(int), 9)
    return [(float((where == b).mean()), float(sure[where == b].mean()), float(right[where == b].mean()))
            for b in range(10) if (where == b).any()]


def ece(sure, right):
    """The expected calibration error: the mean distance between confidence and accuracy over the bins.

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
    """As a document of the corpus, but annotators give too many points to a response. kind: "none" for no bias."""
    rng = random.Random(seed_of(seed, "biased", index))
    if rng.random() < GENERAL:
        return general_text(rng)
    item = make_item(seed, "train", seed_of("biased", index), least=2)
    skill = rng.choices(list(SKILLS), SKILLS.values())[0]
    weights, critiques, _ = annotate(rng, item, skill)
    best = favoured(item, kind)
    dose = 0 if kind == "none" else DOSE
    critiques = [(quote, text, min(10, total + dose * (i == best))) for i, (quote, text, total) in
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


def retrain(run, name, base, items, samples=None):
    """RFT and RL from a base model, on items -> {stage: name of the model}. As spct.main does it. samples: the
    base model's judgements of the items, if there are any."""
    cfg, several = run.config(), [item for item in items if item.n > 1]
    names = {"base": base, "rft": f"truth, {name}, rft", "rl": f"truth, {name}, rl"}
    samples = samples or run.groups(f"truth, {name}, rft", lambda: judge(
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
    """How much more often is the favoured response picked than it is the best? A number for each item. What ties,
    or does not parse, picks none.

    Position, single judgement: the favoured response is the one that it has read first. Position, vote: the item's
    first. Samples with fresh orders have read that one at any place, so no bias is expected of their vote."""
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
    name = f"truth, {policy}, {len(items)}x{k}, {'fresh orders' if shuffle else 'one order'}"
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
    """With the probability `rate` the gold rewards of the best and another response change places."""
    rng = random.Random(seed_of(seed, "label", item.id))
    if item.n == 1 or rng.random() >= rate:
        return item
    other = rng.choice([i for i in range(item.n) if i != item.best])
    gold = list(item.gold)
    gold[item.best], gold[other] = gold[other], gold[item.best]
    return replace(item, gold=gold)

# ----------------------------------------------------------------------------------------
# One run


def wrong_labels(run, items, k):
    """-> {"share of wrong labels, policy": {measure: a number for each item}}"""
    found, cfg, right = {}, run.config(), run.training_items()
    wrong = [mislabelled(cfg.seed, item, 0.3) for item in right]
    for title, learned, names in (("0", right, {"rft": "rft", "rl": "rl"}),
                                  ("0.3", wrong, retrain(run, "labels", "base", wrong, run.own("rft")))):
        for policy in ("rft", "rl"):
            def make():
                greedy = judge(run.model(names[policy]), run.tok, items, 1, 0, temperature=0, shuffle=False)
                return {"greedy": np.array([float(is_correct(g[0], item)) for g, item in zip(greedy, items)]),
                        "plurality": confidence(items, asked(run, names[policy], items, k, True))[1]}
            found[f"{title}, {policy}"] = run.numbers(f"truth, {title}, {policy}, {len(items)}", make)
        for epochs in (4, 1):
            def make():
                answer = scalar_rm(run, learned, f"scalar, {title}, {epochs}", epochs)
                scores = answer(items, 1)[0]["answer"]
                return {"greedy": np.array([float(correct(s, item.gold)) for s, item in zip(scores, items)])}
            who = f"scalar RM, {epochs} epochs"
            found[f"{title}, {who}"] = run.numbers(f"truth, {title}, {who}, {len(items)}", make)
    return found


def study_run(run, sizes):
    """-> {"part, policy": {measure: a number for each item}}"""
    test_items, k, tokens = sizes
    items, found, cfg = run.items("test", test_items), {}, run.config()
    for policy in STAGES:
        _, groups = run.judged(policy, "test", test_items, k, cfg.temperature)
        found[f"reasons, {policy}"] = reasons(items, groups)
        sure, right = confidence(items, groups)
        found[f"calibration, {policy}"] = {"confidence": sure, "accuracy": right}
    for bias in ("none", "position", "length"):
        base = f"truth, {bias}"
        run.model(base, lambda: biased_base(run, bias, tokens))
        for policy, name in retrain(run, bias, base, run.training_items()).items():
            for kind in ("position", "length"):
                if bias in ("none", kind):
                    title = f"{kind} bias, taught {bias}, {policy}"
                    found[title] = run.numbers(f"truth, {title}, {test_items}",
                                               lambda: biases(run, name, kind, items, k))
    for name, of in wrong_labels(run, items, k).items():
        found[f"labels, {name}"] = of
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
    left.set(xlabel="confidence: share of samples that agree with the vote", ylabel="accuracy of the vote")
    for kind, style in (("position", "o-"), ("length", "s--")):
        for measure, color in (("one sample", "blue"), ("vote in one order", "orange"), ("vote", "green")):
            of = [result["bias"][f"{kind}, {policy}, {measure}"][0] for policy in STAGES]
            right.plot(STAGES, of, style, color=f"tab:{color}", label=f"{kind}: {measure}")
    right.set(ylabel="bias that annotators have taught")
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
    taught = lambda kind, policy, m: less(f"{kind} bias, taught {kind}, {policy}",
                                          f"{kind} bias, taught none, {policy}", m)
    change = lambda who: [a - b for a, b in zip(*(
        columns[f"labels, {share}, {who}"]["greedy"] for share in ("0.3", "0")))]
    scalar = "scalar RM, 1 epochs"
    result = {
        "numbers": {name: {m: study.number(v) for m, v in of.items()} for name, of in columns.items()},
        "ece": {}, "bins": {},
        "well-founded, correct less incorrect": {policy: study.difference(
            columns[f"reasons, {policy}"]["of correct"], columns[f"reasons, {policy}"]["of incorrect"], queries)
            for policy in STAGES},
        "bias": {f"{kind}, {policy}, {m}": taught(kind, policy, m) for kind in ("position", "length")
                 for policy in STAGES for m in columns[f"{kind} bias, taught {kind}, {policy}"]},
        "30% wrong labels, less none": {
            f"{who}, {m}": less(f"labels, 0.3, {who}", f"labels, 0, {who}", m)
            for who in ("rft", "rl", "scalar RM, 4 epochs", scalar) for m in columns[f"labels, 0, {who}"]},
        "change of the GRM, less that of the scalar RM": study.difference(change("rl"), change(scalar), queries)}
    for policy in STAGES:
        of = [f[f"calibration, {policy}"] for f in found]
        both = [(mine["confidence"], mine["accuracy"]) for mine in of]
        result["ece"][policy] = [round(float(ece(*mine)), 4) for mine in both]
        result["bins"][policy] = bins(*(np.concatenate(parts) for parts in zip(*both)))

    rows = [["measure", *STAGES]]
    def row(title, cell):
        rows.append([title, *(study.in_words(cell(policy)) for policy in STAGES)])
    number = lambda name, m: lambda policy: result["numbers"].get(f"{name}, {policy}", {}).get(m)
    bias = lambda kind, m: lambda policy: result["bias"][f"{kind}, {policy}, {m}"]
    row("true checks, of those due", number("reasons", "true checks"))
    row("well-founded, of correct judgements", number("reasons", "of correct"))
    row("well-founded, of incorrect judgements", number("reasons", "of incorrect"))
    row("AUC of the Meta RM, well-founded among correct", number("reasons", "Meta RM"))
    row("confidence of the vote", number("calibration", "confidence"))
    row("accuracy of the vote", number("calibration", "accuracy"))
    rows.append(["ECE, each run", *(", ".join(f"{x:.3f}" for x in result["ece"][policy]) for policy in STAGES)])
    row("position bias, one sample", bias("position", "one sample"))
    row("position bias, vote in one order", bias("position", "vote in one order"))
    row("length bias, one sample", bias("length", "one sample"))
    row("length bias, vote", bias("length", "vote"))
    row("greedy, 30% wrong labels less none", lambda policy: result["30% wrong labels, less none"].get(
        f"{policy}, greedy"))
    study.save("truth", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
