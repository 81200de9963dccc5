"""
When is longer thinking worth its tokens?

The world gets a dial: digits of the numbers to add (2 to 5), letters to sort (3 to 9). Evidence is written in one
step, or step by step (lengths.py):

    correct: 230+481=711 got 7 7 1 1 1 1, good
    correct: 0+1=1 3+8=11 2+4+1=7 so 711 got 7 7 1 1 1 1, good

Each judge begins with the base model of a run, which reads two million tokens more, mostly about such items. (It
has read about sums of 3 digits and about 5 or 6 letters before, perhaps about these letters in another order.) RFT
and RL follow. Four judges:

- short evidence: experts never go step by step;
- long evidence: they always do;
- mixed: they do in half of their judgements. Then RL may choose. Its reward has no price for tokens;
- short problems: as mixed, but about 2 and 3 digits, and 3 to 6 letters. The others it has not seen.

All have practised sums of single digits. Beside them, from the base and RFT models of "mixed": a scalar RM (four
times as many items, each seen once), and CLoud, whose critiques go step by step as the RFT policy's do.

Test items have two responses. One is correct, and that decides which is better. Ties are broken at random. A check
is true if its verdict on "correct" is; a missing one is not.
"""

import os
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
from experiments.lengths import cell_of, document, general, items_of
from experiments.truth import share
from model import GPT
from report import tie_broken
from sample import judge

LENGTHS = {"sums": (2, 3, 4, 5), "sort": (3, 4, 5, 6, 7, 8, 9)}
SHORT = {"sums": (2, 3), "sort": (3, 4, 5, 6)}
CELLS = [(domain, length) for domain in LENGTHS for length in LENGTHS[domain]]
Arm = namedtuple("Arm", "lengths long")            # long: the share of evidence that goes step by step
ARMS = {"short evidence": Arm(LENGTHS, 0.0), "long evidence": Arm(LENGTHS, 1.0), "mixed": Arm(LENGTHS, 0.5),
        "short problems": Arm(SHORT, 0.5)}
CONTEXT = 448
K = 8                                              # samples of a vote
Sizes = namedtuple("Sizes", "items tokens pairs test")
FULL, QUICK = Sizes(3000, 2_000_000, 12_000, 1100), Sizes(24, 8000, 44, 11)

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
        deep, lambda index: document(cfg.seed, index, arm), deep.sizes.tokens, deep.with_longer_context()))
    policy, hard, _ = study.rft(deep, "samples", base, deep.training_items(),
                                lambda rng: general(rng, cfg.seed, arm))
    deep.model("rft", lambda: policy)
    deep.model("rl", lambda: spct.reinforce(cfg, deep.tok, policy, hard))

# ----------------------------------------------------------------------------------------
# Measures


def checks_of(judgement, item):
    """-> for each response (way, is the verdict true?) of its check of "correct". way: none, if there is no
    evidence, short or long"""
    found = []
    for i, truth in enumerate(item.truth):
        critique = judgement.critiques[i] if judgement.critiques else {"checks": []}
        checks = {name: (evidence, good) for name, evidence, good in critique["checks"]}
        evidence, good = checks.get("correct", (None, None))
        found.append(("none" if not evidence else "long" if " so " in evidence else "short",
                      good == truth["correct"][0]))
    return found


def in_training(deep):
    """Of RL's judgements: the share of checks that go step by step, (steps, cells). Of the base model's, on which
    RFT was trained: each way's share of true checks, (cells,)"""
    rollouts = read_judgements(os.path.join(deep.config().out, "judgements-rl.jsonl"))
    size, item_of = deep.config().rl_items, {item.id: item for item in deep.training_items()}

    def checks(groups, cell):
        items = [item_of[group[0].item] for group in groups]
        return [c for group, item in zip(groups, items) if cell_of(item) == cell
                for j in group for c in checks_of(j, item)]
    steps = [rollouts[i:i + size] for i in range(0, len(rollouts), size)]
    samples = read_judgements(deep.path("samples, rft.jsonl"))
    return {"steps": [[share([way == "long" for way, _ in checks(step, cell)]) for cell in CELLS]
                      for step in steps],
            **{f"true, base, {way}": [share([true for w, true in checks(samples, cell) if w == way])
                                      for cell in CELLS] for way in ("short", "long")}}


def measure(deep, items, stage):
    """-> {measure: a number for each item}"""
    cfg, policy, seed = deep.config(), deep.model(stage), seed_of(deep.config().seed, "study", "depth")
    greedy = deep.groups(f"{stage}, greedy", lambda: judge(policy, deep.tok, items, 1, seed, 0, shuffle=False))
    one = [group[0] for group in greedy]
    checks = [checks_of(j, item) for j, item in zip(one, items)]
    rows = [{"greedy": tie_broken(j.scores, item.gold), "parses": j.scores is not None, "tokens": len(j.ids),
             "true": np.mean([true for _, true in mine]), "long": np.mean([way == "long" for way, _ in mine]),
             "none": np.mean([way == "none" for way, _ in mine])} for j, item, mine in zip(one, items, checks)]
    if stage == "rl":
        votes = deep.groups("rl, votes", lambda: judge(policy, deep.tok, items, K, seed, cfg.temperature))
        for row, group, item in zip(rows, votes, items):
            row["plurality"] = tie_broken(vote_plurality([j.scores for j in group]), item.gold)
    return {f"{stage}, {m}": np.array([row[m] for row in rows], float) for m in rows[0]}


def study_run(run, items, sizes):
    found, training = {}, {}
    for name in ARMS:
        deep = Deep(run, name, sizes)
        learn(deep)
        found[name] = {**measure(deep, items, "rft"), **measure(deep, items, "rl")}
        training[name] = in_training(deep)
    deep = Deep(run, "mixed", sizes)
    pairs = items_of(deep.config().seed, "train", LENGTHS, sizes.pairs)
    accuracies = lambda answer: {"accuracy": np.array([
        tie_broken(scores, item.gold) for scores, item in zip(answer(items, 1)[0]["answer"], items)])}
    scalar = deep.numbers("scalar RM", lambda: accuracies(scalar_rm(deep, pairs, epochs=1)))
    critic = deep.numbers("CLoud", lambda: accuracies(cloud(deep)))
    found["others"] = {"scalar RM": scalar["accuracy"], "CLoud": critic["accuracy"]}
    return found, training

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    """Accuracy against tokens: short evidence, long evidence, and a vote with short evidence, for each length.
    And what RL chooses."""
    figure = Figure(figsize=(13, 4))
    *panels, last = figure.subplots(1, 3)
    for ax, domain in zip(panels, LENGTHS):
        for i, length in enumerate(LENGTHS[domain]):
            cell = result["cells"][f"{domain}, {length}"]
            short, long = cell["short evidence"], cell["long evidence"]
            tokens = [of["rl, tokens"][0] for of in (long, short)] + [K * short["rl, tokens"][0]]
            accuracy = [long["rl, greedy"][0], short["rl, greedy"][0], short["rl, plurality"][0]]
            ax.plot(tokens, accuracy, color=f"C{i}", label=length)
            for marker, x, y in zip("so^", tokens, accuracy):
                ax.plot(x, y, marker, color=f"C{i}")
        ax.set(xlabel=f"{domain}: tokens", ylabel="accuracy", xscale="log")
        ax.legend(fontsize=7, title="digits" if domain == "sums" else "letters")
    panels[0].set_title("o short evidence, □ long, △ eight votes with short", fontsize=9)
    for i, (cell, values) in enumerate(result["step by step in RL of mixed"].items()):
        there = [np.nan if v is None else v for v in values]
        last.plot(there, color=f"C{i % 10}", ls="-" if "sums" in cell else "--", label=cell)
    last.set(xlabel="step of RL, mixed", ylabel="share of checks that go step by step", ylim=(0, 1))
    last.legend(fontsize=6)
    return figure


# Differences between arms: what, and of which arms and measures
PAIRS = {
    "long less short evidence": ("long evidence", "rl, greedy", "short evidence", "rl, greedy"),
    "long less short evidence, true checks": ("long evidence", "rl, true", "short evidence", "rl, true"),
    "votes less greedy, short evidence": ("short evidence", "rl, plurality", "short evidence", "rl, greedy"),
    "long evidence less votes with short": ("long evidence", "rl, greedy", "short evidence", "rl, plurality"),
    "mixed less short evidence": ("mixed", "rl, greedy", "short evidence", "rl, greedy"),
    "mixed less short problems": ("mixed", "rl, greedy", "short problems", "rl, greedy"),
    "short evidence less the scalar RM": ("short evidence", "rl, greedy", "others", "scalar RM"),
    "CLoud less the scalar RM": ("others", "CLoud", "others", "scalar RM")}


def row_of(title, numbers, less):
    """The row of a table about some problems"""
    short, long, mixed, few, others = (numbers[name] for name in (*ARMS, "others"))
    shown = (others["scalar RM"], others["CLoud"], short["rl, greedy"], short["rl, plurality"], long["rl, greedy"],
             less["long less short evidence"], mixed["rl, greedy"], few["rl, greedy"], mixed["rft, long"])
    tokens = f"{short['rl, tokens'][0]:.0f}, {long['rl, tokens'][0]:.0f}"
    return [title, *map(study.in_words, shown), ", ".join(f"{v:.2f}" for v in mixed["rl, long, each run"]), tokens]


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = QUICK if quick else FULL
    items = [items_of(run.config().seed, "test", LENGTHS, sizes.test) for run in runs]
    found, training = zip(*[study_run(run, mine, sizes) for run, mine in zip(runs, items)])
    names = [f"{domain}, {length}" for domain, length in CELLS]
    groups = dict(zip(names, ([cell] for cell in CELLS)))
    groups |= {domain: [cell for cell in CELLS if cell[0] == domain] for domain in LENGTHS}
    mean = lambda m: np.ma.masked_invalid([t["mixed"][m] for t in training]).mean(axis=0).round(3)
    result = {"cells": {}, "differences": {},
              "step by step in RL of mixed": dict(zip(names, mean("steps").T.tolist())),
              "true checks of the base model of mixed": {
                  way: dict(zip(names, mean(f"true, base, {way}").tolist())) for way in ("short", "long")}}
    rows = [["problem", "scalar RM", "CLoud", "short evidence", f"plurality of {K}", "long evidence",
             "long less short", "mixed", "short problems", "mixed: step by step after RFT", "after RL, each run",
             "tokens: short, long"]]
    for title, cells in groups.items():
        masks = [[cell_of(item) in cells for item in mine] for mine in items]
        queries = [[item.query for item, there in zip(mine, mask) if there] for mine, mask in zip(items, masks)]
        values = lambda name, m: [f[name][m][mask] for f, mask in zip(found, masks)]
        numbers = result["cells"][title] = {name: {m: study.number(values(name, m)) for m in of}
                                            for name, of in found[0].items()}
        numbers["mixed"]["rl, long, each run"] = [round(float(v.mean()), 3) for v in values("mixed", "rl, long")]
        less = result["differences"][title] = {
            name: study.difference(values(*pair[:2]), values(*pair[2:]), queries) for name, pair in PAIRS.items()}
        rows.append(row_of(title, numbers, less))
    study.save("depth", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
