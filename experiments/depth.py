"""
When is longer thinking worth its tokens?

The world has a dial for how many serial steps a check needs: digits to add (2 to 5), letters to sort (3 to 9). A
check can be written in one step, or step by step:

    correct: 230+481=711 got 7 7 1 1 1 1, good
    correct: 0+1=1 3+8=11 2+4+1=7 so 711 got 7 7 1 1 1 1, good
    correct: sort c c d d a b, bad
    correct: c d b has b c d has c so b c d got b c, bad

The base model reads two million tokens more, of items of two responses and all lengths. Half of the experts'
checks are step by step, a few percent of the corpus, and some of the general text adds two digits. RFT and RL
follow: does RL take the long way, and does it do so where it pays? The same once more with training on short
problems alone (2 and 3 digits, 3 to 5 letters). Beside the judge: a scalar RM and CLoud, from the same items.
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
from data.annotators import (
    GENERAL,
    HINTED,
    HINTED_SKILLS,
    SKILLS,
    annotate,
    checking,
    general_text,
)
from data.judgement import correct, judgement_parts, prompt_parts, read_judgements, vote_plurality
from data.tokenizer import END
from data.world import CUES, LETTERS, RATERS, Item, gold_reward, make_response, seed_of, split_of
from experiments import study
from experiments.baselines import cloud, scalar_rm
from experiments.reasons import reread
from model import GPT
from sample import judge

LENGTHS = {"sums": (2, 3, 4, 5), "sort": (3, 4, 5, 6, 7, 8, 9)}
SHORT = {"sums": (2, 3), "sort": (3, 4, 5)}
ARMS = {"all lengths": LENGTHS, "short ones": SHORT}
CONTEXT = 448
K = 8                                              # samples of a vote
PRACTICE = 0.15                                    # share of general text that adds two digits

# ----------------------------------------------------------------------------------------
# Problems of any length


def problem_of(rng, domain, length):
    """-> (text of the task, problem), as make_query"""
    if domain == "sums":
        a, b = (rng.randint(10 ** (length - 1), 10 ** length - 1) for _ in range(2))
        return f"what is {a}+{b}?", (a, b)
    letters = rng.sample(LETTERS, length)
    return f"sort {' '.join(letters)}", letters


def item_of(seed, split, domain, length, index):
    """An item of two responses, one of them the best."""
    rng = random.Random(seed_of(seed, "depth", split, domain, length, index))
    while True:
        cue = rng.choice(list(CUES))
        task, problem = problem_of(rng, domain, length)
        if split_of(domain, cue, task) != split:
            continue
        weights = RATERS[domain][cue]
        texts, truth = zip(*[make_response(rng, domain, problem, weights) for _ in range(2)])
        gold = [gold_reward(weights, t) for t in truth]
        if gold[0] != gold[1]:
            id = f"{split}-{domain}{length}-{index}"
            return Item(id, domain, CUES[cue] + task, list(texts), gold, cue, split, list(truth))


def items_of(seed, split, lengths, count):
    """`count` items, of all lengths in turn"""
    cells = [(domain, length) for domain in lengths for length in lengths[domain]]
    return [item_of(seed, split, *cells[i % len(cells)], i // len(cells)) for i in range(count)]


def length_of(item):
    return int(re.search(r"(\d+)-", item.id)[1])

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


def is_long(judgement):
    """Are at least half of a judgement's checks of "correct" step by step?"""
    given = [evidence for c in judgement.critiques or [] for name, evidence, _ in c["checks"] if name == "correct"]
    return bool(given) and 2 * sum(" so " in (evidence or "") for evidence in given) >= len(given)

# ----------------------------------------------------------------------------------------
# The corpus


def two_digits(rng):
    """General text: a few sums of two digits, with a carry or without."""
    pairs = [(rng.randint(0, 9), rng.randint(0, 9), rng.random() < 0.4) for _ in range(6)]
    text = " ".join(f"{a}+{b}{'+1' if carry else ''}={a + b + carry}" for a, b, carry in pairs)
    return [([f" {text}", END], True)]


def document(seed, index, lengths):
    """As make_document, of items in turn of all lengths"""
    rng = random.Random(seed_of(seed, "document", index))
    domain = rng.choice(list(lengths))
    item = item_of(seed, "train", domain, rng.choice(lengths[domain]), index)
    long = rng.random() < 0.5
    if rng.random() < GENERAL:
        kind = rng.random()
        if kind < PRACTICE:
            return two_digits(rng)
        if kind < 0.5:
            return general_text(rng)
        told = step_by_step(item) if long else item
        return checking(rng, item.query, list(zip(told.responses, told.truth)))
    hint = item.best if rng.random() < HINTED else None
    skills = SKILLS if hint is None else HINTED_SKILLS
    skill = rng.choices(list(skills), skills.values())[0]
    judgement = judgement_parts(*annotate(rng, step_by_step(item) if long else item, skill, hint))
    return [(prompt_parts(item.query, item.responses, hint), False), (judgement, True)]

# ----------------------------------------------------------------------------------------
# One run


class Deep(study.Run):
    """A run that has learned from items of some lengths. Its models are in a folder of their own."""

    def __init__(self, run, arm, sizes):
        self.folder = os.path.join(run.folder, "studies", f"depth, {arm}")
        self.config_of_run = {**run.config_of_run, "block_size": CONTEXT}
        self.tok, self.lengths, self.sizes, self.start = run.tok, ARMS[arm], sizes, run.model("base")
        os.makedirs(self.path(""), exist_ok=True)

    def training_items(self):
        return items_of(self.config().seed, "train", self.lengths, self.sizes.items)

    def before(self):
        """The run's base model, with a longer context"""
        model = GPT(replace(self.start.cfg, block_size=CONTEXT))
        model.load_state_dict(self.start.state_dict())
        return model


def learn(deep):
    """Reading, RFT and RL. They make base, rft and rl.pt, and keep RL's rollouts."""
    cfg, tok, items = deep.config(), deep.tok, deep.training_items()
    base = deep.model("base", lambda: reread(deep, lambda index: document(cfg.seed, index, deep.lengths),
                                             deep.sizes.tokens, deep.before()))
    samples = deep.groups("rft-samples", lambda: judge(base, tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    hinted = deep.groups("hinted", lambda: judge(base, tok, items, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    kept = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    kept += [j for group, item in zip(hinted, items) for j in spct.keep_hinted(group, item)]
    rft = deep.model("rft", lambda: spct.finetune(cfg, tok, base, kept))
    hard = [item for group, item in zip(samples, items) if not spct.too_easy(group, item)]
    deep.model("rl", lambda: spct.reinforce(cfg, tok, rft, hard))


def long_way(deep):
    """The share of rollouts that go step by step: (steps of RL, domains and lengths), nan where there are none"""
    def make():
        cells = [(domain, length) for domain in deep.lengths for length in deep.lengths[domain]]
        groups = read_judgements(os.path.join(deep.config().out, "judgements-rl.jsonl"))
        size, rows = deep.config().rl_items, []
        for start in range(0, len(groups), size):
            found = {cell: [] for cell in cells}
            for group in groups[start:start + size]:
                domain, length = re.match(r"train-([a-z]+)(\d+)-", group[0].item).groups()
                found[domain, int(length)] += [is_long(j) for j in group]
            rows.append([np.mean(values) if values else np.nan for values in found.values()])
        return {"long": np.array(rows)}
    return deep.numbers("long way", make)["long"]


def measure(deep, items):
    """-> {"system, measure": a number for each item}, of the scalar RM, CLoud and the judge"""
    cfg, found = deep.config(), {}
    for name, make in (("scalar RM", scalar_rm), ("CLoud", cloud)):
        scores = make(deep)(items, 1)[0]["answer"]
        found[name] = np.array([float(correct(s, item.gold)) for s, item in zip(scores, items)])
    for stage in ("rft", "rl"):
        policy, seed = deep.model(stage), seed_of(cfg.seed, "study", "depth")
        one = [group[0] for group in judge(policy, deep.tok, items, 1, seed, 0, shuffle=False)]
        groups = judge(policy, deep.tok, items, K, seed, cfg.temperature)
        found[f"{stage}, greedy"] = np.array([float(correct(j.scores, i.gold)) for j, i in zip(one, items)])
        found[f"{stage}, long"] = np.array([float(is_long(j)) for j in one])
        found[f"{stage}, tokens"] = np.array([float(len(j.ids)) for j in one])
        found[f"{stage}, plurality"] = np.array([float(correct(vote_plurality([j.scores for j in group]), i.gold))
                                                 for group, i in zip(groups, items)])
    return found


def study_run(run, items, sizes):
    """-> {arm: {measure: a number for each item}}, {arm: the share of the long way in RL}"""
    found, curves = {}, {}
    for arm in ARMS:
        deep = Deep(run, arm, sizes)
        learn(deep)
        found[arm] = deep.numbers(f"measured, {len(items)}", lambda: measure(deep, items))
        curves[arm] = long_way(deep)
    return found, curves

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result, curves):
    figure = Figure(figsize=(12, 4))
    systems = {"scalar RM": "scalar RM", "CLoud": "CLoud", "rl, greedy": "GRM", "rl, plurality": f"GRM, {K} votes"}
    *panels, last = figure.subplots(1, 3)
    for ax, domain in zip(panels, LENGTHS):
        for i, (measure, label) in enumerate(systems.items()):
            for arm, style in zip(ARMS, ("-", "--")):
                values = [result["cells"][f"{domain} {length}"][arm][measure][0] for length in LENGTHS[domain]]
                ax.plot(LENGTHS[domain], values, style, color=f"C{i}", label=label if style == "-" else None)
        ax.set(xlabel=f"{domain}: serial steps (dashed: trained on short ones)", ylabel="accuracy")
        ax.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    for i, (cell, values) in enumerate(curves.items()):
        last.plot(values, color=f"C{i % 10}", ls="-" if "sums" in cell else "--", label=cell)
    last.set(xlabel="step of RL, all lengths", ylabel="share that goes step by step", ylim=(0, 1))
    last.legend(fontsize=6)
    return figure


Sizes = namedtuple("Sizes", "items tokens")


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count, sizes = (11, Sizes(24, 8000)) if quick else (1100, Sizes(2200, 2_000_000))
    items = [items_of(run.config().seed, "test", LENGTHS, count) for run in runs]
    found, curves = zip(*[study_run(run, mine, sizes) for run, mine in zip(runs, items)])
    cells = [(domain, length) for domain in LENGTHS for length in LENGTHS[domain]]
    where = [[(item.domain, length_of(item)) for item in mine] for mine in items]
    of_cell = lambda values, cell: [v[[at == cell for at in mine]] for v, mine in zip(values, where)]
    queries = [[item.query for item in its] for its in items]
    result = {"cells": {}, "all": {}, "plurality less greedy": {}, "greedy less the scalar RM": {}}
    shown = ("scalar RM", "CLoud", "rl, greedy", "rl, plurality", "rft, long", "rl, long", "rl, tokens")
    rows = [["problem", "scalar RM", "CLoud", "greedy", f"plurality of {K}", "step by step: RFT", "RL", "tokens",
             "trained on short ones: greedy"]]
    for domain, length in cells:
        cell = result["cells"][f"{domain} {length}"] = {arm: {m: study.number(of_cell(
            [f[arm][m] for f in found], (domain, length))) for m in found[0][arm]} for arm in ARMS}
        here = cell["all lengths"]
        rows.append([f"{domain}, {length}", *(study.in_words(here[m]) for m in shown[:-1]),
                     f"{here['rl, tokens'][0]:.0f}", study.in_words(cell["short ones"]["rl, greedy"])])
    for arm in ARMS:
        column = lambda m: [f[arm][m] for f in found]
        result["all"][arm] = {m: study.number(column(m)) for m in found[0][arm]}
        less = lambda a, b: study.difference(column(a), column(b), queries)
        result["plurality less greedy"][arm] = less("rl, plurality", "rl, greedy")
        result["greedy less the scalar RM"][arm] = less("rl, greedy", "scalar RM")
    shares = np.array([c["all lengths"] for c in curves])                    # (runs, steps, cells)
    result["long way in RL"] = {f"{domain} {length}": [
        None if np.isnan(step).all() else round(float(np.nanmean(step)), 3) for step in shares[:, :, i].T]
        for i, (domain, length) in enumerate(cells)}
    study.save("depth", runs, result, rows, draw(result, result["long way in RL"]))


if __name__ == "__main__":
    run_command(main)
