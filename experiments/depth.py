"""
When is longer thinking worth its tokens?

The world gets a dial: digits to add (2 to 5), letters to sort (3 to 9). A check can be written in one step, or
step by step:

    correct: 230+481=711 got 7 7 1 1 1 1, good
    correct: 0+1=1 3+8=11 2+4+1=7 so 711 got 7 7 1 1 1 1, good
    correct: sort c c d d a b, bad
    correct: c d b has b c d has c so b c d got b c, bad

The base model reads two million tokens more, about items of these two kinds. In one half of its general text's
checks, and of its experts' judgements, evidence goes step by step, and some of the general text practises sums of
single digits. RFT and RL follow: does RL take the long way, and does it do so where it pays? Three judges:

- mixed: as above;
- short evidence: never step by step, and no practice of single digits;
- short problems: as mixed, but with problems of 2 and 3 digits and of 3 to 5 letters only.

(The run's base model has read about 3 digits, and about 5 and 6 letters, before.) Beside the judges: a scalar RM,
trained on the items of the first two.
"""

import os
import random
import re
from collections import namedtuple
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import GENERAL, HINTED, HINTED_SKILLS, SKILLS, annotate, checking, general_text
from data.judgement import correct, judgement_parts, prompt_parts, read_judgements, vote_plurality
from data.tokenizer import END
from data.world import CUES, LETTERS, RATERS, Item, gold_reward, make_response, seed_of, side_by_side, split_of
from experiments import study
from experiments.baselines import scalar_rm
from experiments.truth import share
from model import GPT
from sample import judge

LENGTHS = {"sums": (2, 3, 4, 5), "sort": (3, 4, 5, 6, 7, 8, 9)}
SHORT = {"sums": (2, 3), "sort": (3, 4, 5)}
Arm = namedtuple("Arm", "lengths long")            # long: the share of evidence that goes step by step
ARMS = {"mixed": Arm(LENGTHS, 0.5), "short evidence": Arm(LENGTHS, 0.0), "short problems": Arm(SHORT, 0.5)}
CONTEXT = 448
K = 8                                              # samples of a vote

# ----------------------------------------------------------------------------------------
# Problems of any length


def problem_of(rng, domain, length):
    """-> (text of the task, problem), as make_query"""
    if domain == "sums":
        a, b = (rng.randint(10 ** (length - 1), 10 ** length - 1) for _ in range(2))
        return f"what is {a}+{b}?", (a, b)
    letters = rng.sample(LETTERS, length)
    return f"sort {' '.join(letters)}", letters


def response_of(rng, domain, problem, weights):
    """As make_response. But a wrong sum is off in any of its digits, not in the last three alone."""
    text, truth = make_response(rng, domain, problem, weights)
    if domain == "sums" and not truth["correct"][0]:
        right, was = sum(problem), re.search(r"it is -?\d+", text)[0]
        off = 10 ** rng.randrange(len(str(max(problem))))
        wrong = right + (off if rng.random() < 0.5 or off >= right else -off)
        evidence = f"{problem[0]}+{problem[1]}={right} got {side_by_side(str(right), str(wrong))}"
        text, truth = text.replace(was, f"it is {wrong}"), {**truth, "correct": (False, evidence)}
    return text, truth


def item_of(seed, split, domain, length, index):
    """An item of two responses, one of them the best. One in ten of the training split has one response."""
    id = f"{split}-{domain}{length}-{index}"
    rng = random.Random(seed_of(seed, "depth", id))
    n = 1 if split == "train" and rng.random() < 0.1 else 2
    while True:
        cue = rng.choice(list(CUES))
        task, problem = problem_of(rng, domain, length)
        if split_of(domain, cue, task) != split:
            continue
        weights = RATERS[domain][cue]
        texts, truth = zip(*[response_of(rng, domain, problem, weights) for _ in range(n)])
        gold = [gold_reward(weights, t) for t in truth]
        if len(set(texts)) == n and gold.count(max(gold)) == 1:
            return Item(id, domain, CUES[cue] + task, list(texts), gold, cue, split, list(truth))


def items_of(seed, split, lengths, count):
    """`count` items, of all lengths in turn"""
    cells = [(domain, length) for domain in lengths for length in lengths[domain]]
    return [item_of(seed, split, *cells[i % len(cells)], i // len(cells)) for i in range(count)]


# ----------------------------------------------------------------------------------------
# Evidence, step by step


def adding(a, b):
    """
    >>> adding(230, 481), adding(95, 7)
    ('0+1=1 3+8=11 2+4+1=7 so 711', '5+7=12 9+0+1=10 so 102')
    """
    steps, carry, width = [], 0, max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{' '.join(steps)} so {a + b}"


def sorting(letters):
    """
    >>> sorting(["c", "d", "b"])
    'c d b has b c d has c so b c d'
    """
    steps, rest = [], list(letters)
    while len(rest) > 1:
        steps.append(f"{' '.join(rest)} has {min(rest)}")
        rest.remove(min(rest))
    return f"{' '.join(steps)} so {' '.join(sorted(letters))}"


def step_by_step(item):
    """The item, with such evidence for "correct" in its truth"""
    task, truths = item.query.removeprefix(CUES[item.cue]), []
    for response, truth in zip(item.responses, item.truth):
        met, evidence = truth["correct"]
        if item.domain == "sums":
            a, b = (int(n) for n in re.findall(r"\d+", task))
            way = adding(a, b) + " got" + evidence.split(" got")[1]
        else:
            way = f"{sorting(task.split(' ')[1:])} got{evidence.removeprefix('sort')}"
        truths.append({**truth, "correct": (met, way)})
    return replace(item, truth=truths)


# ----------------------------------------------------------------------------------------
# The corpus


def single_digits(rng):
    """A few sums of single digits, with a carry or without."""
    pairs = [(rng.randint(0, 9), rng.randint(0, 9), rng.random() < 0.4) for _ in range(6)]
    text = " ".join(f"{a}+{b}{'+1' if carry else ''}={a + b + carry}" for a, b, carry in pairs)
    return [([f" {text}", END], True)]


def random_item(rng, seed, arm):
    domain = rng.choice(list(arm.lengths))
    item = item_of(seed, "train", domain, rng.choice(arm.lengths[domain]), rng.getrandbits(40))
    return step_by_step(item) if rng.random() < arm.long else item


def general(rng, seed, arm):
    """A document of general text: practice of single digits, checks of these items, or as ever"""
    kind = rng.random()
    if arm.long and kind < 0.15:
        return single_digits(rng)
    if kind < 0.5:
        return general_text(rng)
    item = random_item(rng, seed, arm)
    return checking(rng, item.query, list(zip(item.responses, item.truth)))


def document(seed, index, arm):
    """As make_document, about these items"""
    rng = random.Random(seed_of(seed, "document", index))
    if rng.random() < GENERAL:
        return general(rng, seed, arm)
    item = random_item(rng, seed, arm)
    hint = item.best if item.n > 1 and rng.random() < HINTED else None
    skills = SKILLS if hint is None else HINTED_SKILLS
    judgement = judgement_parts(*annotate(rng, item, rng.choices(list(skills), skills.values())[0], hint))
    return [(prompt_parts(item.query, item.responses, hint), False), (judgement, True)]

# ----------------------------------------------------------------------------------------
# One run


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


def of_checks(judgement, item):
    """-> [(step by step?, is the verdict true?)] of the checks of "correct" that have evidence"""
    return [(" so " in evidence, good == truth["correct"][0])
            for critique, truth in zip(judgement.critiques or [], item.truth)
            for name, evidence, good in critique["checks"] if name == "correct" and evidence]


def training(deep):
    """Of judgements at temperature 1, in which both ways occur -> "RL, long": the share of checks that go step by
    step, (steps, cells); "before RL, short", "before RL, long": each way's share of true verdicts, (cells,)"""
    def make():
        rollouts = read_judgements(os.path.join(deep.config().out, "judgements-rl.jsonl"))
        samples, size = read_judgements(deep.path("samples, rft.jsonl")), deep.config().rl_items
        item_of_id = {item.id: item for item in deep.training_items()}
        checks = lambda groups, cell: [c for group in groups if cell_of(item_of_id[group[0].item]) == cell
                                       for j in group for c in of_checks(j, item_of_id[j.item])]
        early = {way: [share([true for long, true in checks(samples, cell) if long == (way == "long")])
                       for cell in CELLS] for way in ("short", "long")}
        steps = [rollouts[i:i + size] for i in range(0, len(rollouts), size)]
        return {"RL, long": np.array([[share([long for long, _ in checks(step, cell)]) for cell in CELLS]
                                      for step in steps]),
                **{f"before RL, {way}": np.array(values) for way, values in early.items()}}
    return deep.numbers("training", make)


def measure(deep, items):
    """-> {"stage, measure": a number for each item}"""
    cfg, found = deep.config(), {}
    for stage in ("rft", "rl"):
        policy, seed = deep.model(stage), seed_of(cfg.seed, "study", "depth")
        one = [group[0] for group in judge(policy, deep.tok, items, 1, seed, 0, shuffle=False)]
        groups = judge(policy, deep.tok, items, K, seed, cfg.temperature)
        checks = [of_checks(j, item) for j, item in zip(one, items)]
        found[f"{stage}, greedy"] = np.array([float(correct(j.scores, i.gold)) for j, i in zip(one, items)])
        found[f"{stage}, long"] = np.array([share([long for long, _ in mine]) for mine in checks])
        found[f"{stage}, true"] = np.array([share([true for _, true in mine]) for mine in checks])
        found[f"{stage}, tokens"] = np.array([float(len(j.ids)) for j in one])
        found[f"{stage}, plurality"] = np.array([float(correct(vote_plurality([j.scores for j in group]), i.gold))
                                                 for group, i in zip(groups, items)])
    return found


def study_run(run, items, sizes):
    """-> {arm: {measure: a number for each item}}, and what the training of "mixed" shows"""
    found = {}
    for name in ARMS:
        deep = Deep(run, name, sizes)
        learn(deep)
        found[name] = deep.numbers(f"measured, {len(items)}", lambda: measure(deep, items))
    mixed = Deep(run, "mixed", sizes)
    scores = scalar_rm(mixed)(items, 1)[0]["answer"]
    found["mixed"]["scalar RM"] = np.array([float(correct(s, item.gold)) for s, item in zip(scores, items)])
    return found, training(mixed)

# ----------------------------------------------------------------------------------------
# Table and figure

CELLS = [(domain, length) for domain in LENGTHS for length in LENGTHS[domain]]
Sizes = namedtuple("Sizes", "items tokens")


def cell_of(item):
    return item.domain, int(re.search(r"(\d+)-", item.id)[1])


def draw(result):
    figure = Figure(figsize=(12, 4))
    lines = [("mixed", "scalar RM"), *((name, "rl, greedy") for name in ARMS), ("mixed", "rl, plurality")]
    *panels, last = figure.subplots(1, 3)
    for ax, domain in zip(panels, LENGTHS):
        for name, m in lines:
            values = [result["cells"][f"{domain}, {length}"][name][m][0] for length in LENGTHS[domain]]
            ax.plot(LENGTHS[domain], values, "o-", ms=3, label=f"{name}: {m.removeprefix('rl, ')}")
        ax.set(xlabel=f"{domain}: digits or letters", ylabel="accuracy")
        ax.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    for i, (cell, values) in enumerate(result["long way in RL"].items()):
        last.plot([np.nan if v is None else v for v in values], color=f"C{i % 10}",
                  ls="-" if "sums" in cell else "--", label=cell)
    last.set(xlabel="step of RL, mixed", ylabel="share of checks that go step by step", ylim=(0, 1))
    last.legend(fontsize=6)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count, sizes = (11, Sizes(24, 8000)) if quick else (1100, Sizes(3000, 2_000_000))
    items = [items_of(run.config().seed, "test", LENGTHS, count) for run in runs]
    found, of_training = zip(*[study_run(run, mine, sizes) for run, mine in zip(runs, items)])
    where, queries = [[cell_of(i) for i in mine] for mine in items], [[i.query for i in mine] for mine in items]
    rounded = lambda values: [None if np.isnan(v).all() else round(float(np.nanmean(v)), 3) for v in values]
    result = {"cells": {}, "all": {}, "mixed less short evidence": {}, "mixed less short problems": {},
              "plurality less greedy": {}, "greedy less the scalar RM": None,
              "long way in RL": {f"{c[0]}, {c[1]}": rounded(np.array([t["RL, long"][:, i] for t in of_training]).T)
                                 for i, c in enumerate(CELLS)},
              "true verdicts before RL": {way: rounded(np.array([t[f"before RL, {way}"] for t in of_training]).T)
                                          for way in ("short", "long")}}
    rows = [["problem", "scalar RM", "greedy", f"plurality of {K}", "step by step: RFT", "RL", "tokens",
             "short evidence: greedy", "tokens", "short problems: greedy"]]
    for cell in CELLS:
        here = [[at == cell for at in mine] for mine in where]
        numbers = result["cells"][f"{cell[0]}, {cell[1]}"] = {name: {m: study.number(
            [f[name][m][mask] for f, mask in zip(found, here)]) for m in found[0][name]} for name in ARMS}
        mixed, short, few = (numbers[name] for name in ARMS)
        shown = (mixed["scalar RM"], mixed["rl, greedy"], mixed["rl, plurality"], mixed["rft, long"],
                 mixed["rl, long"])
        rows.append([f"{cell[0]}, {cell[1]}", *map(study.in_words, shown), f"{mixed['rl, tokens'][0]:.0f}",
                     study.in_words(short["rl, greedy"]), f"{short['rl, tokens'][0]:.0f}",
                     study.in_words(few["rl, greedy"])])
    less = lambda a, b: study.difference([f[a[0]][a[1]] for f in found], [f[b[0]][b[1]] for f in found], queries)
    for name in ARMS:
        result["all"][name] = {m: study.number([f[name][m] for f in found]) for m in found[0][name]}
        result["plurality less greedy"][name] = less((name, "rl, plurality"), (name, "rl, greedy"))
    for m in ("rl, greedy", "rl, plurality", "rl, true"):
        result["mixed less short evidence"][m] = less(("mixed", m), ("short evidence", m))
        result["mixed less short problems"][m] = less(("mixed", m), ("short problems", m))
    result["greedy less the scalar RM"] = less(("mixed", "rl, greedy"), ("mixed", "scalar RM"))
    study.save("depth", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
