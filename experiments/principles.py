"""
Can principles be written before any response is seen?

The paper names this as future work: principles that are written once for each query, stored, and shared by all
judgements of its responses. Here they come from the judge's prompt without responses,

    <query> for my boss: what is 230+481? <principles>

which the judge completes with principles and <end>, an exercise of pre-training and of RFT's general text. (RL
has no such prompts. What is no list of principles is left out.) A judgement then begins with stored principles, in
place of its own, and goes on with <critique>. They come from:

- own: the judgement's own, written with the responses in view;
- greedy: the most likely ones for the query alone;
- one for each sample: of a vote, each sample has others;
- mean, most frequent: of 32 samples for the query;
- the RL policy's, another seed's: the mean of 32 by another judge, to see whether they can be handed on;
- the raters' own weights, which are the bound.
"""

import functools
from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from data import run_command
from data.judgement import (
    PRINCIPLE,
    correct,
    principles_text,
    prompt_parts,
    read_judgement,
    vote_plurality,
)
from data.tokenizer import CRITIQUE, END, SPECIAL
from data.world import seed_of
from experiments import study
from experiments.judges import asked
from sample import generate

K = 8                                              # samples of a vote
SOURCES = {"base": ("own", "mean", "the RL policy's", "the raters'"),
           "rft": ("own", "mean", "the RL policy's", "the raters'"),
           "rl": ("own", "greedy", "one for each sample", "mean", "most frequent", "another seed's",
                  "the raters'")}

# ----------------------------------------------------------------------------------------
# Principles from the query alone


def read_principles(tok, ids):
    """{criterion: weight} of a completion, or None if it is not exactly principles and <end>."""
    matches = [PRINCIPLE.fullmatch(text) for text in tok.text(ids[:-1]).removeprefix(" ").split(", ")]
    if ids[-1:] != [END] or min(ids[:-1], default=0) < len(SPECIAL) or not all(matches):
        return None
    return {m[1]: int(m[2]) for m in matches}


def mean_principles(samples):
    """The mean of principles, in whole numbers with the sum 10 (largest remainders). [] if there is no sample.

    >>> mean_principles([{"correct": 6, "polite": 4}, {"correct": 4, "polite": 5, "plain": 1}])
    [{'correct': 5, 'polite': 5}]
    >>> mean_principles([{"help": 20}]), mean_principles([])
    ([{'help': 10}], [])
    """
    total = Counter()
    for weights in samples:
        total.update({name: weight / sum(weights.values()) for name, weight in weights.items()})
    exact = {name: 10 * share / len(samples) for name, share in total.items()}
    whole = {name: int(weight) for name, weight in exact.items()}
    rest = sorted(exact, key=lambda name: whole[name] - exact[name])         # the largest remainder first
    for name in rest[:10 - sum(whole.values())]:
        whole[name] += 1
    return [{name: weight for name, weight in whole.items() if weight}] if samples else []


def most_frequent(samples):
    """
    >>> most_frequent([{"help": 10}, {"help": 9, "plain": 1}, {"help": 10}]), most_frequent([])
    ([{'help': 10}], [])
    """
    counts = Counter(tuple(weights.items()) for weights in samples)
    return [dict(weights) for weights, _ in counts.most_common(1)]


@functools.cache
def stored(writer, name, run, split, count, m):
    """{query: the principles of m samples that parse}, for the queries of a run's items. A policy of the run
    `writer` writes them. m = 0: the greedy ones."""
    seed, many = seed_of(run.config().seed, "study", name), max(1, m)
    queries = sorted({item.query for item in run.items(split, count)})
    prompts = [tuple(writer.tok.encode(prompt_parts(query, []))) for query in queries for _ in range(many)]
    seeds = [seed_of(seed, "principles", query, i) for query in queries for i in range(many)]
    done = [read_principles(writer.tok, ids)
            for ids, _ in generate(writer.model(name), prompts, seeds, float(m > 0))]
    return {query: [found for found in done[i * many:(i + 1) * many] if found] for i, query in enumerate(queries)}

# ----------------------------------------------------------------------------------------
# Judging by given principles


def judge_by(run, policy, items, stores, k, seed, temperature):
    """As sample.judge, but judgements begin with given principles. stores: for each item a list of {criterion:
    weight}, of which the samples take one each, in turn. If it is empty, they write their own."""
    groups = [asked(run.tok, item, k, seed, temperature > 0) for item in items]
    given = [run.tok.encode([principles_text(store[j.sample % len(store)]), CRITIQUE]) if store else []
             for group, store in zip(groups, stores) for j in group]
    flat = [j for group in groups for j in group]
    done = generate(policy, [tuple(j.prompt + begin) for j, begin in zip(flat, given)], [j.seed for j in flat],
                    temperature)
    for j, begin, (ids, logp) in zip(flat, given, done):
        j.ids, j.logp = begin + ids, logp
        try:
            j.principles, j.critiques, j.scores = read_judgement(run.tok, j.ids, j.order)
        except ValueError as reason:
            j.status = str(reason)
    return groups

# ----------------------------------------------------------------------------------------
# One run


def stores_from(source, name, run, other, split, count):
    """-> for each item the principles that the judge `name` is given (see judge_by). other: another seed's run"""
    items = run.items(split, count)
    if source in ("own", "the raters'"):
        return [[item.weights] if source == "the raters'" else [] for item in items]
    writer, policy = {"the RL policy's": (run, "rl"), "another seed's": (other, "rl")}.get(source, (run, name))
    samples = stored(writer, policy, run, split, count, 0 if source == "greedy" else 32)
    choose = {"greedy": list, "one for each sample": lambda found: found[:K],
              "most frequent": most_frequent}.get(source, mean_principles)
    return [choose(samples[item.query]) for item in items]


def agreement(weights, item):
    """The share of the raters' weights that principles {criterion: weight} have: 1 if they are equal."""
    return sum(min(weight, weights.get(name, 0)) for name, weight in item.weights.items()) / 10


def measure(run, other, name, source, count):
    """-> {measure: a number for each item} of a judge with principles from a source"""
    cfg, policy, found = run.config(), run.model(name), {}
    for split, n in (("test", count), ("ood", count // 2)):
        items, seed = run.items(split, n), seed_of(cfg.seed, "study", split)
        stores = stores_from(source, name, run, other, split, n)
        one = [group[0] for group in judge_by(run, policy, items, stores, 1, seed, 0)]
        groups = judge_by(run, policy, items, stores, K, seed, cfg.temperature)
        begun = [len(run.tok.encode([principles_text(store[0]), CRITIQUE])) if store else 0 for store in stores]
        found |= {f"{split}, greedy": [correct(j.scores, item.gold) for j, item in zip(one, items)],
                  f"{split}, plurality": [correct(vote_plurality([j.scores for j in group]), item.gold)
                                          for group, item in zip(groups, items)],
                  f"{split}, agreement": [agreement(dict(j.principles), item) if j.scores else np.nan
                                          for j, item in zip(one, items)],
                  f"{split}, given": [bool(store) for store in stores],
                  f"{split}, tokens": [len(j.ids) - length for j, length in zip(one, begun)]}
    return {m: np.array(values, float) for m, values in found.items()}


def study_run(run, other, count):
    found = {}
    for name, sources in SOURCES.items():
        for source in sources:
            if source != "another seed's" or other is not run:
                found[f"{name}, {source}"] = run.numbers(f"principles, {name}, {source}, {count}", lambda: measure(
                    run, other, name, source, count))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure

SHOWN = ("test, greedy", "test, plurality", "ood, greedy", "ood, plurality")


def draw(numbers):
    figure = Figure(figsize=(8, 5))
    ax = figure.subplots()
    for i, measure in enumerate(SHOWN):
        values = [of[measure] for of in numbers.values()]
        ax.barh(np.arange(len(values)) + 0.2 * i, [v[0] for v in values], 0.18, xerr=[v[1] for v in values],
                label=measure)
    ax.set_yticks(np.arange(len(numbers)) + 0.3, list(numbers))
    ax.set_xlabel("accuracy")
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count = 8 if quick else 600
    queries = {split: [[item.query for item in run.items(split, n)] for run in runs]
               for split, n in (("test", count), ("ood", count // 2))}
    found = [study_run(run, runs[(i + 1) % len(runs)], count) for i, run in enumerate(runs)]
    column = lambda title, m: [f[title][m] for f in found]
    numbers = {title: {m: study.number(column(title, m)) for m in found[0][title]} for title in found[0]}
    result = {"numbers": numbers, "less own": {}}
    rows = [["judge, principles", "greedy", "less own", f"plurality of {K}", "less own",
             "out of distribution, greedy", "less own", "agreement with the raters", "tokens"]]
    for title, of in result["numbers"].items():
        own = title.split(", ")[0] + ", own"
        less = result["less own"][title] = {m: study.difference(
            column(title, m), column(own, m), queries[m.split(",")[0]]) for m in SHOWN}
        shown = lambda m: "" if title == own else study.in_words(less[m])
        rows.append([title, study.in_words(of["test, greedy"]), shown("test, greedy"),
                     study.in_words(of["test, plurality"]), shown("test, plurality"),
                     study.in_words(of["ood, greedy"]), shown("ood, greedy"),
                     study.in_words(of["test, agreement"]), f"{of['test, tokens'][0]:.0f}"])
    study.save("principles", runs, result, rows, draw(result["numbers"]))


if __name__ == "__main__":
    run_command(main)
