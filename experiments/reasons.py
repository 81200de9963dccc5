"""
Is a judge correct for the right reasons, why, and does it matter to a policy that learns from it?

RL with a reward for the verdict alone can make the reasons of a judge worse (RationaleRM, arXiv 2602.04649). Ours
makes them better: see truth.py. Five judges of each run, to see why:

- default: the run's own.
- true checks rewarded: RL again, with the reward (correct or not) x (share of true checks).
- more reading: the base model reads a million tokens more, as before. RFT and RL follow. It is the control of:
- evidence after the verdict: the same in another format, "correct: good 4, 230+481=711 got 7 7 1 1 1 1". A verdict
  can then not be read off its evidence.
- no running sums: "correct: 230+481=711 got 7 7 1 1 1 1, good polite: ...". Then the total is not added up check
  by check.

A judgement is well-founded if all its checks are made and true, and its totals add up (truth.py). Evidence is true
if it is what the world says, to the letter.

Then each judge is the reward of a writer (rlhf.py), for fewer steps than there. What predicts the gold reward that
the writer reaches: the judge's accuracy, or its reasons? (R-Align, arXiv 2602.06763, finds: the reasons.) Two more
candidates are what the judge sees in the first writer's responses, before any training against it: how often it
misquotes them, and how often it praises bad content.
"""

import re

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import general_text, make_document
from data.world import seed_of
from experiments import rlhf, study
from experiments.offline import spearman
from experiments.truth import share, well_founded
from experiments.writer import first_writer, queries_of, texts_of, write
from report import faithfulness
from sample import judge

# ----------------------------------------------------------------------------------------
# Formats: each is a function of a text of the corpus. The judge is read as always: what the core reads of a
# check, its criterion and verdict, stands in all of them.


def as_before(text):
    return text


def evidence_after(text):
    """
    >>> evidence_after(" correct: 1+1=2 got 2 2, good 6 polite: none, bad 6")
    ' correct: good 6, 1+1=2 got 2 2 polite: bad 6, none'
    """
    return re.sub(r"([a-z]+): ([^,:]+), (good|bad)( \d+)?", r"\1: \3\4, \2", text)


def no_running_sums(text):
    """
    >>> no_running_sums(" polite: kindly, good 5 formal: bad 5"), no_running_sums(" 5"), no_running_sums("5 1")
    (' polite: kindly, good formal: bad', '', '5 1')
    """
    return re.sub(r"(^|good|bad) \d+", r"\1", text)


FORMATS = {"more reading": as_before, "evidence after the verdict": evidence_after,
           "no running sums": no_running_sums}


def in_format(document, change):
    return [([change(part) if isinstance(part, str) else part for part in parts], learned)
            for parts, learned in document]


def evidence_of(critique):
    """{criterion: evidence} in both orders."""
    before = {name: evidence for name, evidence, _ in critique["checks"] if evidence}
    after = re.findall(r"([a-z]+): (?:good|bad)(?: \d+)?, ([^,:]*?)(?= [a-z]+:|$)", critique["text"])
    return {**dict(after), **before}

# ----------------------------------------------------------------------------------------
# Judges of a run -> {"judge, stage": name of its model}


def in_another_format(run, name, change, tokens):
    cfg, title = run.config(), f"reasons, {name}"
    base = run.model(f"{title}, base", lambda: study.reread(
        run, lambda index: in_format(make_document(cfg.seed, index), change), tokens))
    policy, hard, _ = study.rft(run, title, base, run.training_items(),
                                lambda rng: in_format(general_text(rng), change))
    run.model(f"{title}, rl", lambda: spct.reinforce(cfg, run.tok, policy, hard))
    return {f"{name}, {stage}": f"{title}, {stage}" for stage in ("rft", "rl")}


def with_true_checks(judgement, item):
    """A reward: the share of true checks of a correct judgement, 0 for an incorrect one."""
    return faithfulness(judgement, item)[1] if spct.is_correct(judgement, item) else 0.0


def judges_of(run, tokens):
    cfg = run.config()
    found = {"default, base": "base", "default, rft": "rft", "default, rl": "rl"}
    rollout = lambda policy, batch, seed: judge(policy, run.tok, batch, cfg.group, seed, shuffle=False)
    run.model("reasons, rewarded, rl", lambda: [*study.reinforce(
        cfg, run.model("rft"), run.hard_items(), rollout, with_true_checks)][-1])
    found["true checks rewarded, rl"] = "reasons, rewarded, rl"
    for name, change in FORMATS.items():
        found |= in_another_format(run, name, change, tokens)
    return found

# ----------------------------------------------------------------------------------------
# One run


def reasons(items, groups):
    """{measure: a number for each item} of greedy judgements"""
    found = {m: [] for m in ("accuracy", "parses", "true checks", "true evidence", "evidence first",
                             "well-founded, of correct", "correct and well-founded")}
    for item, [j] in zip(items, groups):
        parses, hit = j.scores is not None, spct.is_correct(j, item)
        given = [(evidence, truth[name][1]) for critique, truth in zip(j.critiques or [], item.truth)
                 for name, evidence in evidence_of(critique).items() if name in truth]
        found["accuracy"].append(float(hit))
        found["parses"].append(float(parses))
        found["true checks"].append(faithfulness(j, item)[1] if parses else 0.0)
        # the share of checks with evidence before the verdict
        first = [evidence for critique in j.critiques or [] for _, evidence, _ in critique["checks"]]
        found["evidence first"].append(share([bool(evidence) for evidence in first]))
        found["true evidence"].append(share([evidence == true for evidence, true in given]))
        found["well-founded, of correct"].append(float(well_founded(j, item)) if hit else np.nan)
        found["correct and well-founded"].append(float(hit and well_founded(j, item)))
    return {name: np.array(values, float) for name, values in found.items()}


def of_writer(run, writer, name, sizes):
    """A writer learns with a judge as its reward -> {measure: a number for each query (gold: at checkpoints)}"""
    learned, copies = rlhf.learn(run, writer, rlhf.grm(1, policy=name)(run), sizes)
    seed, found = run.config().seed, {"gold": learned["gold"]}
    test = queries_of(seed, "test", sizes.queries)
    for title, model in (("first", writer), ("last", copies[sizes.steps])):
        texts = texts_of(run.tok, write(model, run.tok, test, 4, seed_of(seed, "writer", "test")))
        found |= {f"{title} writer, {m}": v for m, v in rlhf.seen_by_the_judge(run, test, texts, name).items()}
    return found


def study_run(run, sizes):
    """-> {judge: {measure: a number for each item, or for each query of the writer}}"""
    test_items, tokens, writer_sizes = sizes
    seed, found = run.config().seed, {}
    writer = run.model("writer", lambda: first_writer(run, writer_sizes.tokens))
    for title, name in judges_of(run, tokens).items():
        found[title] = run.numbers(f"reasons, writer of {title}",
                                   lambda: of_writer(run, writer, name, writer_sizes))
        found[title] |= {"gold before": found[title]["gold"][0], "gold after": found[title]["gold"][-1]}
        for split, count in (("test", test_items), ("ood", test_items // 2)):
            items = run.items(split, count)
            groups = run.groups(f"reasons, {title}, {split}", lambda: judge(
                run.model(name), run.tok, items, 1, seed_of(seed, "study", split), 0, shuffle=False))
            found[title] |= {f"{split}, {m}": values for m, values in reasons(items, groups).items()}
    return found

# ----------------------------------------------------------------------------------------
# Table and figure

MEASURES = ("accuracy", "parses", "true checks", "true evidence", "well-founded, of correct",
            "correct and well-founded")
PREDICT = (*(f"test, {m}" for m in MEASURES), "first writer, misquoted", "first writer, false praise")


def correlations(means, measure):
    """Spearman's, between a measure of judges and the gold reward of their writers: of all judges in each run, and
    of those after RL in all runs (less the mean of their run, since runs have other writers)."""
    table = lambda m, titles: np.array([means[title][m] for title in titles])                # (judges, runs)
    after_rl = [title for title in means if title.endswith(", rl")]
    there = [title for title in means if not np.isnan(means[title][measure]).any()]
    pairs = zip(table(measure, there).T, table("gold after", there).T)
    centred = lambda m: (table(m, after_rl) - table(m, after_rl).mean(axis=0)).flatten()
    return {"each run": [spearman(*pair) for pair in pairs],
            "after RL": [spearman(centred(measure), centred("gold after"))]}


def draw(points):
    figure = Figure(figsize=(13, 4))
    for ax, measure in zip(figure.subplots(1, 3), ("test, accuracy", "test, true checks",
                                                   "first writer, misquoted")):
        for i, (title, of) in enumerate(points.items()):
            ax.plot(of[measure], of["gold after"], "o", color=f"C{i % 10}", label=title)
        ax.set(xlabel=f"the judge: {measure.split(', ')[1]}", ylabel="gold reward of its writer")
        ax.grid(alpha=0.3)
    ax.legend(fontsize=6)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (8, 6000, rlhf.QUICK) if quick else (600, 1_000_000, rlhf.FULL._replace(steps=100, every=20))
    queries = [[item.query for item in run.items("test", sizes[0])] for run in runs]
    found = [study_run(run, sizes) for run in runs]
    column = lambda title, m: [f[title][m] for f in found]
    means = {title: {m: [float(np.nanmean(v)) for v in column(title, m)] for m in found[0][title]}
             for title in found[0]}
    result = {
        "numbers": {title: {m: study.number(column(title, m)) for m in of if m != "gold"}
                    for title, of in found[0].items()},
        "gold at each checkpoint": {title: np.round([v.mean(axis=1) for v in column(title, "gold")], 3).tolist()
                                    for title in found[0]},
        "rl less rft": {}, "less the default": {}, "less more reading": {},
        "rl less rft, less that of more reading": {},
        "misquotes the first writer, each run": {
            title: [round(v, 3) for v in means[title]["first writer, misquoted"]] for title in found[0]},
        "rank correlation with the gold reward": {m: correlations(means, m) for m in PREDICT}}
    gain = lambda name, m: [after - before for after, before in zip(
        column(f"{name}, rl", f"test, {m}"), column(f"{name}, rft", f"test, {m}"))]
    less = lambda a, b: {f"test, {m}": study.difference(column(a, f"test, {m}"), column(b, f"test, {m}"), queries)
                         for m in MEASURES}
    rows = [["judge", "accuracy", "true checks", "true evidence", "well-founded, of correct",
             "the same, out of distribution", "misquotes the first writer", "gold reward of its writer",
             "each run"]]
    for title, of in result["numbers"].items():
        name, stage = title.rsplit(", ", 1)
        if stage == "rl":
            before = f"{name}, rft" if f"{name}, rft" in found[0] else "default, rft"
            result["rl less rft"][name] = less(title, before)
            result["less the default"][name] = less(title, "default, rl")
            result["less more reading"][name] = less(title, "more reading, rl")
            if name in FORMATS:
                result["rl less rft, less that of more reading"][name] = {m: study.difference(
                    gain(name, m), gain("more reading", m), queries) for m in MEASURES}
        shown = ("test, accuracy", "test, true checks", "test, true evidence", "test, well-founded, of correct",
                 "ood, well-founded, of correct", "first writer, misquoted", "gold after")
        rows.append([title, *(study.in_words(of[m]) for m in shown),
                     ", ".join(f"{v:.2f}" for v in means[title]["gold after"])])
    study.save("reasons", runs, result, rows, draw(means))


if __name__ == "__main__":
    run_command(main)
