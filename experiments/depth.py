"""
When is longer thinking worth its tokens?

The world gets a dial: digits of the numbers to add (2 to 5), letters to sort (3 to 9). Evidence is written in one
step, or step by step (lengths.py):

    correct: 230+481=711 got 7 7 1 1 1 1, good
    correct: 0+1=1 3+8=11 2+4+1=7 so 711 got 7 7 1 1 1 1, good

Each judge begins with the base model of a run, which reads two million tokens more, mostly about such items. (It
has read about sums of 3 digits and about 5 or 6 letters before, perhaps about these letters in another order. Its
evidence had one step.) It practises sums of single digits, and learns at the rate of pre-training: a model that
does not know these makes a mistake in nearly every chain. RFT and RL follow. Five judges:

- short evidence: experts never go step by step;
- long evidence: they always do;
- mixed: they do in half of their judgements, and it reads twice as much, to practise the long way as often. Then
  RL may choose. Its reward has no price for tokens;
- short problems, with short or with long evidence: about 2 and 3 digits, and 3 to 6 letters. They have not seen
  longer ones.

Beside them, from the models of long evidence: CLoud, whose critiques go step by step as the RFT policy's do, and a
scalar RM (eight times as many items, each seen once), which learns from short problems, too.

Test items have two responses. One is correct, and that decides which is better. Ties are broken at random. A check
is true if its verdict on "correct" is; a missing one is not. It is exact if its evidence is, letter by letter.
"""

import os
import re
from collections import namedtuple
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.judgement import read_judgements, vote_plurality
from data.world import seed_of
from experiments import study
from experiments.baselines import cloud, scalar_rm
from experiments.lengths import cell_of, document, general, items_of, step_by_step
from experiments.truth import share
from model import GPT
from report import tie_broken
from sample import judge

LENGTHS = {"sums": (2, 3, 4, 5), "sort": (3, 4, 5, 6, 7, 8, 9)}
SHORT = {"sums": (2, 3), "sort": (3, 4, 5, 6)}
CELLS = [(domain, length) for domain in LENGTHS for length in LENGTHS[domain]]
# long: the share of evidence that goes step by step; reading: how often the tokens of Sizes
Arm = namedtuple("Arm", "lengths long reading", defaults=[1])
ARMS = {
    "short evidence": Arm(LENGTHS, 0.0), "long evidence": Arm(LENGTHS, 1.0), "mixed": Arm(LENGTHS, 0.5, 2),
    "short problems, short evidence": Arm(SHORT, 0.0), "short problems, long evidence": Arm(SHORT, 1.0)}
CONTEXT = 448
VOTES = (2, 4, 8)                                  # samples of a vote
Sizes = namedtuple("Sizes", "items tokens pairs test")
FULL, QUICK = Sizes(3000, 2_000_000, 24_000, 2200), Sizes(24, 8000, 44, 11)

# ----------------------------------------------------------------------------------------
# Training


class Deep(study.Run):
    """What a run becomes in an arm of this study. Its files are in a folder of their own."""

    def __init__(self, run, name, sizes):
        self.folder = os.path.join(run.folder, "studies", f"depth, {name}")
        self.config_of_run = {**run.config_of_run, "block_size": CONTEXT}
        self.tok, self.arm, self.sizes, self.start = run.tok, ARMS[name], sizes, run.model("base")
        os.makedirs(self.path(""), exist_ok=True)

    def training_items(self):
        return items_of(self.config().seed, "train", self.arm.lengths, self.sizes.items)

    def with_longer_context(self):
        model = GPT(replace(self.start.cfg, block_size=CONTEXT))
        model.load_state_dict(self.start.state_dict())
        return model


def learn(deep):
    """Reading, RFT and RL. They make base, rft and rl.pt, and keep RL's rollouts."""
    cfg, arm = deep.config(), deep.arm
    base = deep.model("base", lambda: study.reread(
        deep, lambda index: document(cfg.seed, index, arm), arm.reading * deep.sizes.tokens,
        deep.with_longer_context(), cfg.pretrain_lr))
    policy, hard, _ = study.rft(deep, "samples", base, deep.training_items(),
                                lambda rng: general(rng, cfg.seed, arm))
    deep.model("rft", lambda: policy)
    deep.model("rl", lambda: spct.reinforce(cfg, deep.tok, policy, hard))

# ----------------------------------------------------------------------------------------
# Measures


def checks_of(judgement, item):
    """-> for each response (way, is the verdict true?, evidence) of its check of "correct". way: none, if there is
    no evidence, short or long"""
    found = []
    for i, truth in enumerate(item.truth):
        critique = judgement.critiques[i] if judgement.critiques else {"checks": []}
        checks = {name: (evidence, good) for name, evidence, good in critique["checks"]}
        evidence, good = checks.get("correct", (None, None))
        found.append(("none" if not evidence else "long" if " so " in evidence else "short",
                      good == truth["correct"][0], evidence))
    return found


def is_exact(way, evidence, item, i):
    true = step_by_step(item) if way == "long" else item
    return evidence == true.truth[i]["correct"][1]


def adds_digits(evidence):
    """Are all sums of a way step by step right? (It may hold anything: what is no sum is not right.)

    >>> adds_digits("8+4=12 2+5+1=8 so 82 got 8 8"), adds_digits("5+6=12 so 12 got 1 1"), adds_digits("4+=4 so 4")
    (True, False, False)
    """
    way = evidence.split(" so ")[0].split(" ")
    steps = [re.fullmatch(r"([0-9]\+[0-9](?:\+1)?)=([0-9]+)", step) for step in way]
    return all(step and sum(map(int, step[1].split("+"))) == int(step[2]) for step in steps)


def named_sum(evidence):
    """The sum that evidence in one step says, or None.

    >>> named_sum("230+481=711 got 7 7 1 1"), named_sum("3+8=11 so 11 got 1 1")
    ('711', None)
    """
    match = re.match(r"[0-9]+\+[0-9]+=([0-9]+) got", evidence)
    return match and match[1]


def long_pays(groups, items):
    """{cell: for each item the share of true checks that go step by step, less that of those in one step}: nan if
    the judgements of an item do not have both"""
    found = {cell: [] for cell in CELLS}
    for group, item in zip(groups, items):
        checks = [check for j in group for check in checks_of(j, item)]
        long, short = ([true for way, true, _ in checks if way == wanted] for wanted in ("long", "short"))
        found[cell_of(item)].append(share(long) - share(short))
    return {cell: np.array(values) for cell, values in found.items()}


def in_training(deep):
    """Of RL's own judgements -> {domain: share of evidence that goes step by step, in each sixth of the steps},
    and long_pays"""
    rollouts = read_judgements(os.path.join(deep.config().out, "judgements-rl.jsonl"))
    item_of = {item.id: item for item in deep.training_items()}
    items = [item_of[group[0].item] for group in rollouts]

    def long_ways(some, domain):
        ways = [way for i in some if items[i].domain == domain for j in rollouts[i]
                for way, _, _ in checks_of(j, items[i])]
        return share([way == "long" for way in ways if way != "none"])
    sixths = np.array_split(np.arange(len(rollouts)), 6)
    return {domain: [long_ways(some, domain) for some in sixths] for domain in LENGTHS}, long_pays(rollouts, items)


def of_judgement(j, item):
    """{measure: a number}"""
    checks = checks_of(j, item)
    some = [(way, evidence, i) for i, (way, _, evidence) in enumerate(checks) if way != "none"]
    added = [adds_digits(evidence) for way, evidence, _ in some if way == "long" and item.domain == "sums"]
    named = [named_sum(evidence) for way, evidence, _ in some if way == "short" and item.domain == "sums"]
    given = [re.search(r"it is (-?[0-9]+)", text)[1] for text in item.responses] if named else []
    return {"greedy": tie_broken(j.scores, item.gold), "parses": j.scores is not None, "tokens": len(j.ids),
            "true": share([true for _, true, _ in checks]), "evidence": len(some) / len(checks),
            "long": share([way == "long" for way, _, _ in some]), "adds digits": share(added),
            "names a given sum": share([number in given for number in named]),
            "exact": share([is_exact(way, evidence, item, i) for way, evidence, i in some])}


def measure(deep, items, stage, votes):
    """-> {measure: a number for each item}"""
    cfg, policy, seed = deep.config(), deep.model(stage), seed_of(deep.config().seed, "study", "depth")
    greedy = deep.groups(f"{stage}, greedy", lambda: judge(policy, deep.tok, items, 1, seed, 0, shuffle=False))
    rows = [of_judgement(group[0], item) for group, item in zip(greedy, items)]
    if votes:
        groups = deep.groups(f"{stage}, votes", lambda: judge(
            policy, deep.tok, items, max(VOTES), seed, cfg.temperature))
        for row, group, item in zip(rows, groups, items):
            row["tokens of a sample"] = share([len(j.ids) for j in group])
            for k in VOTES:
                row[f"plurality of {k}"] = tie_broken(vote_plurality([j.scores for j in group[:k]]), item.gold)
    return {f"{stage}, {m}": np.array([row[m] for row in rows], float) for m in rows[0]}


def others(run, items, sizes):
    """-> {judge: accuracy on each item} of other kinds of reward models"""
    accuracies = lambda answer: {"accuracy": np.array([
        tie_broken(scores, item.gold) for scores, item in zip(answer(items, 1)[0]["answer"], items)])}
    found = {}
    for arm in ("long evidence", "short problems, long evidence"):
        deep, title = Deep(run, arm, sizes), arm.replace("long evidence", "scalar RM")
        pairs = items_of(deep.config().seed, "train", deep.arm.lengths, sizes.pairs)
        found[title] = deep.numbers("scalar RM", lambda: accuracies(scalar_rm(deep, pairs, epochs=1)))["accuracy"]
    deep = Deep(run, "long evidence", sizes)
    return {**found, "CLoud": deep.numbers("CLoud", lambda: accuracies(cloud(deep)))["accuracy"]}


def study_run(run, items, sizes):
    found = {}
    for name in ARMS:
        deep = Deep(run, name, sizes)
        learn(deep)
        votes = name == "short evidence"
        found[name] = {**measure(deep, items, "rft", False), **measure(deep, items, "rl", votes)}
    found["others"] = others(run, items, sizes)
    return found, in_training(Deep(run, "mixed", sizes))

# ----------------------------------------------------------------------------------------
# Table and figure


# The lines of the figure: arm, measure, how it looks
LINES = {"scalar RM": ("others", "scalar RM", "C7-"), "CLoud": ("others", "CLoud", "C4-"),
         "short evidence": ("short evidence", "rl, greedy", "C0o-"),
         "plurality of 8, short evidence": ("short evidence", "rl, plurality of 8", "C0^:"),
         "long evidence": ("long evidence", "rl, greedy", "C1o-"),
         "short problems, short evidence": ("short problems, short evidence", "rl, greedy", "C0x--"),
         "short problems, long evidence": ("short problems, long evidence", "rl, greedy", "C1x--")}


def draw(result):
    """Accuracy against the length of a problem, and what RL chooses"""
    figure = Figure(figsize=(15, 4.5))
    *panels, last, side = figure.subplots(1, 4, gridspec_kw={"width_ratios": [3, 3, 3, 2]})
    for ax, domain in zip(panels, LENGTHS):
        cells = [result["cells"][f"{domain}, {length}"] for length in LENGTHS[domain]]
        for label, (name, m, style) in LINES.items():
            means, halves = zip(*[cell[name][m] for cell in cells])
            ax.errorbar(LENGTHS[domain], means, halves, fmt=style, ms=5, capsize=2, lw=1, label=label)
        ax.set(xlabel="digits" if domain == "sums" else "letters", title=domain, xticks=LENGTHS[domain],
               ylabel="accuracy")
    side.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="upper left")
    side.axis("off")
    for i, (title, runs) in enumerate(result["step by step in RL of mixed"].items()):
        for run, values in enumerate(runs):
            there = [np.nan if x is None else x for x in values]
            last.plot(range(1, 7), there, color=f"C{i}", lw=1, label=title if run == 0 else None)
    last.set(title="mixed", xlabel="sixth of the steps of RL", ylabel="share of evidence that goes step by step",
             ylim=(0, 1))
    last.legend(fontsize=7)
    return figure


# Differences: what, and of which arms and measures
SHORT_PROBLEMS = [f"short problems, {way} evidence" for way in ("short", "long")]
PAIRS = {
    "long less short evidence": ("long evidence", "rl, greedy", "short evidence", "rl, greedy"),
    "long less short evidence, true checks": ("long evidence", "rl, true", "short evidence", "rl, true"),
    "RL less RFT, long evidence": ("long evidence", "rl, greedy", "long evidence", "rft, greedy"),
    "RL less RFT, exact": ("long evidence", "rl, exact", "long evidence", "rft, exact"),
    "RL less RFT, adds digits": ("long evidence", "rl, adds digits", "long evidence", "rft, adds digits"),
    "RL less RFT, mixed, step by step": ("mixed", "rl, long", "mixed", "rft, long"),
    "votes of 8 less greedy": ("short evidence", "rl, plurality of 8", "short evidence", "rl, greedy"),
    **{f"long evidence less votes of {k}": (
        "long evidence", "rl, greedy", "short evidence", f"rl, plurality of {k}") for k in VOTES},
    "mixed less short evidence": ("mixed", "rl, greedy", "short evidence", "rl, greedy"),
    "mixed less long evidence": ("mixed", "rl, greedy", "long evidence", "rl, greedy"),
    "short problems: long less short evidence": (SHORT_PROBLEMS[1], "rl, greedy", SHORT_PROBLEMS[0], "rl, greedy"),
    "short evidence: short problems less all": (SHORT_PROBLEMS[0], "rl, greedy", "short evidence", "rl, greedy"),
    "long evidence: short problems less all": (SHORT_PROBLEMS[1], "rl, greedy", "long evidence", "rl, greedy"),
    "scalar RM: short problems less all": ("others", "short problems, scalar RM", "others", "scalar RM"),
    "short evidence less the scalar RM": ("short evidence", "rl, greedy", "others", "scalar RM"),
    "CLoud less the scalar RM": ("others", "CLoud", "others", "scalar RM"),
    "long evidence less CLoud": ("long evidence", "rl, greedy", "others", "CLoud")}
COLUMNS = ["problem", "scalar RM", "CLoud", "short evidence", "plurality of 8", "long evidence", "long less short",
           "short problems: short", "short problems: long", "mixed: step by step after RFT",
           "mixed: after RL, each run", "tokens: short, long"]


def row_of(title, numbers, less):
    """The row of a table about some problems"""
    short, long, mixed, few_short, few_long, rest = (numbers[name] for name in (*ARMS, "others"))
    greedy = [of["rl, greedy"] for of in (short, long, few_short, few_long)]
    accuracies = (rest["scalar RM"], rest["CLoud"], greedy[0], short["rl, plurality of 8"], greedy[1],
                  less["long less short evidence"], *greedy[2:])
    chosen = ", ".join(study.in_words(x).split(" ")[0] for x in mixed["rl, long, each run"])
    tokens = f"{short['rl, tokens'][0]:.0f}, {long['rl, tokens'][0]:.0f}"
    return [title, *map(study.in_words, (*accuracies, mixed["rft, long"])), chosen, tokens]


def groups_of_cells():
    """{title: cells} of each row of the table"""
    groups = {f"{domain}, {length}": [(domain, length)] for domain, length in CELLS}
    for domain in LENGTHS:
        mine = [cell for cell in CELLS if cell[0] == domain]
        groups[domain] = mine
        groups[f"{domain}, longer"] = [cell for cell in mine if cell[1] not in SHORT[domain]]
    return groups


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = QUICK if quick else FULL
    items = [items_of(run.config().seed, "test", LENGTHS, sizes.test) for run in runs]
    found, training = zip(*[study_run(run, mine, sizes) for run, mine in zip(runs, items)])
    rounded = lambda x: None if np.isnan(x) else round(float(x), 3)
    result = {"cells": {}, "differences": {}, "long pays": {}, "step by step in RL of mixed": {
        domain: [[rounded(x) for x in ways[domain]] for ways, _ in training] for domain in LENGTHS}}
    rows = [COLUMNS]
    for title, cells in groups_of_cells().items():
        masks = [[cell_of(item) in cells for item in mine] for mine in items]
        queries = [[item.query for item, there in zip(mine, mask) if there] for mine, mask in zip(items, masks)]
        values = lambda name, m: [f[name][m][mask] for f, mask in zip(found, masks)]
        numbers = result["cells"][title] = {name: {m: study.number(values(name, m)) for m in of}
                                            for name, of in found[0].items()}
        numbers["mixed"]["rl, long, each run"] = [study.number([v]) for v in values("mixed", "rl, long")]
        less = result["differences"][title] = {
            name: study.difference(values(*pair[:2]), values(*pair[2:]), queries) for name, pair in PAIRS.items()}
        pays = [np.concatenate([of[cell] for cell in cells]) for _, of in training]
        result["long pays"][title] = {"all": study.number(pays), "each run": [study.number([v]) for v in pays]}
        rows.append(row_of(title, numbers, less))
    study.save("depth", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
