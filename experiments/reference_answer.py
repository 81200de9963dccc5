"""
What does a reference answer change? And does the judge follow a wrong one?

The paper's judge is correct for 59.8% of the tasks that can be verified, and for 91.6% with the correct answer in
its prompt. Here these tasks are sums, sort and reverse. The reference stands at the end of the query:

    for my boss: what is 230+481? the answer is 711

The paper's judge is a fine-tuned LLM, which understands such a sentence. Ours has never seen it. So RL goes on
from the run's RL policy, for as many steps again, with each of three prompts:

- no reference, to see what more RL does by itself;
- the true reference;
- a reference that is wrong for half of the items. Then it pays to check the reference, too.

A wrong reference is the answer of a response that is incorrect, if there is one. What the best response would be
if the reference were true is therefore known, and so is how often a judge picks it.
"""

import random
import re
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from data import run_command
from data.judgement import correct, pick
from data.world import CONTENT, CUES, VERIFIABLE, gold_reward, make_item, seed_of
from experiments import study
from experiments.writer import without_style
from sample import judge

PROMPTS = ("no reference", "true", "wrong")                                  # at test time
POLICIES = {"the RL policy": None, "more RL, no reference": "no reference", "more RL, true references": "true",
            "more RL, half are wrong": "half wrong"}                         # and what it is trained with

# ----------------------------------------------------------------------------------------
# References


def verifiable_items(seed, split, count):
    """The first `count` items of sums, sort and reverse."""
    found, index = [], 0
    while len(found) < count:
        item = make_item(seed, split, index, least=2)
        found += [item] if item.domain in VERIFIABLE else []
        index += 1
    return found


def answer_of(item, rng, is_correct):
    """An answer to the item's query: "it is 711", or sorted letters."""
    task = item.query.removeprefix(CUES[item.cue])
    problem = [int(n) for n in re.findall(r"\d+", task)] if item.domain == "sums" else task.split(" ")[1:]
    return CONTENT[item.domain](rng, problem, {"correct": is_correct})[0]


def reference_of(item, seed, kind):
    """The reference as a response would give it. kind: true, or wrong."""
    rng = random.Random(seed_of(seed, "reference", item.id, kind))
    if kind == "true":
        return answer_of(item, rng, True)
    given = [without_style(text)[0] for text, truth in zip(item.responses, item.truth) if not truth["correct"][0]]
    return rng.choice(given) if given else answer_of(item, rng, False)


def with_reference(item, seed, kind):
    """The item with a reference in its query. kind: no reference, true, wrong, or half wrong."""
    if kind == "half wrong":
        kind = random.Random(seed_of(seed, "half", item.id)).choice(["true", "wrong"])
    if kind == "no reference":
        return item
    answer = reference_of(item, seed, kind).removeprefix("it is ")
    return replace(item, query=f"{item.query} the answer is {answer}")


def best_if_true(item, reference):
    """The index of the best response, if the reference were true. None if there is none."""
    truths = [{**truth, "correct": (without_style(text)[0] == reference, "")}
              for text, truth in zip(item.responses, item.truth)]
    return pick([gold_reward(item.weights, truth) for truth in truths])

# ----------------------------------------------------------------------------------------
# One run


def train(run, kind, count):
    """RL goes on with such prompts -> the policy."""
    cfg = run.config()
    items = [with_reference(item, cfg.seed, kind) for item in verifiable_items(cfg.seed, "train", count)]
    rollout = lambda policy, batch, seed: judge(policy, run.tok, batch, cfg.group, seed, shuffle=False)
    return [*study.reinforce(run.config(seed=seed_of(cfg.seed, "more")), run.model("rl"), items, rollout)][-1]


def answers(run, policy, items):
    """-> {"prompt, measure": a number for each item}, of greedy judgements. "misled": does it pick what would be
    the best response if the wrong reference were true? (nan if that is the best one anyway.)"""
    seed, found = run.config().seed, {}
    lure = [best_if_true(item, reference_of(item, seed, "wrong")) for item in items]
    for kind in PROMPTS:
        asked = [with_reference(item, seed, kind) for item in items]
        groups = judge(policy, run.tok, asked, 1, seed_of(seed, "study", "reference"), 0, shuffle=False)
        scores = [group[0].scores for group in groups]
        found[f"{kind}, correct"] = np.array([float(correct(s, item.gold)) for s, item in zip(scores, items)])
        found[f"{kind}, misled"] = np.array([
            np.nan if wrong in (None, item.best) else float(pick(s) == wrong)
            for s, item, wrong in zip(scores, items, lure)])
    return found


def study_run(run, items, training_items):
    found = {}
    for name, kind in POLICIES.items():
        policy = run.model(f"reference, {kind}" if kind else "rl", lambda: train(run, kind, training_items))
        found[name] = run.numbers(f"reference, {name}, {len(items)}", lambda: answers(run, policy, items))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    figure = Figure(figsize=(10, 4))
    for ax, measure in zip(figure.subplots(1, 2), ("correct", "misled")):
        for i, kind in enumerate(PROMPTS):
            bars = [of[f"{kind}, {measure}"] or [0, 0] for of in result["numbers"].values()]
            ax.bar(np.arange(len(bars)) + 0.27 * (i - 1), [b[0] for b in bars], 0.25, yerr=[b[1] for b in bars],
                   label=f"reference: {kind}" if i else kind)
        ax.set_xticks(range(len(POLICIES)), [name.replace(", ", ",\n") for name in POLICIES], fontsize=8)
        ax.set_ylabel("accuracy" if measure == "correct" else "picks what the wrong reference says")
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count, training_items = (9, 8) if quick else (500, 1536)
    items = [verifiable_items(run.config().seed, "test", count) for run in runs]
    queries = [[item.query for item in mine] for mine in items]
    found = [study_run(run, mine, training_items) for run, mine in zip(runs, items)]
    result = {"numbers": {}, "by domain": {}, "less no reference": {}}
    rows = [["policy", "reference", "accuracy", "less no reference", *VERIFIABLE, "misled"]]
    for name in POLICIES:
        column = lambda m: [f[name][m] for f in found]
        mine = result["numbers"][name] = {m: study.number(column(m)) for m in found[0][name]}
        of = result["by domain"][name] = {kind: {domain: study.number([
            v[[item.domain == domain for item in its]] for v, its in zip(column(f"{kind}, correct"), items)])
            for domain in VERIFIABLE} for kind in PROMPTS}
        less = result["less no reference"][name] = {f"{kind}, {m}": study.difference(
            column(f"{kind}, {m}"), column(f"no reference, {m}"), queries) for kind in PROMPTS[1:]
            for m in ("correct", "misled")}
        for kind in PROMPTS:
            rows.append([name, kind.replace("no reference", "none"), study.in_words(mine[f"{kind}, correct"]),
                         study.in_words(less.get(f"{kind}, correct")), *map(study.in_words, of[kind].values()),
                         study.in_words(mine[f"{kind}, misled"])])
    study.save("reference_answer", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
