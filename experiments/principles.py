"""
Can principles be written before any response is seen?

The paper names this as future work: principles that are written once for each query, stored, and shared by all
judgements of its responses. Here they come from the judge's prompt without responses,

    <query> for my boss: what is 230+481? <principles>

which the judge completes with principles. A judgement then begins with stored principles, in place of its own, and
goes on with <critique>. Pre-training and RFT's general text practise this prompt, with lists that mostly overlook
the cue. RL does not. So a writer of principles is trained as well: the RL policy, fine-tuned to write for the
query alone what it writes with responses in view (samples at temperature 1). Principles come from:

- own: the judgement's own, written with the responses in view; and the mean of the principles of 8 judgements;
- most likely list: the greedy one for the query alone, by the judge itself; and the mean of 1, 4 or 16 samples at
  temperature 1, or of 16 at .5;
- one for each sample of a vote, at the temperature of the vote, .5;
- the base's, the RL policy's, the trained writer's: the mean of 16 (at 1) by these; "the next seed's" are those of
  the writer that is trained in the next run;
- another cue's: the raters' weights for the same task after another cue. A judge that follows what it is given
  must get worse;
- the raters': their own weights for this query. No writer can know more.

Means keep the three largest weights: raters have that many. (With "all criteria" they keep all. Then a judge meets
longer lists than it was trained on.) Weights are scaled to the sum 10. A query for which no list can be read
gets none, and the judgement writes its own (given: the share of items that got a stored list). Out of
distribution: unseen pairs of domain and cue. There are five, and each is shown. (Lists for somebody in a hurry may
also have an unseen length.) Ties are broken at random.
"""

import functools
import random
from collections import Counter

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import encode_document, pack
from data.judgement import PRINCIPLE, principles_text, prompt_parts, read_judgement, vote_plurality
from data.tokenizer import CRITIQUE, END, SPECIAL
from data.world import OOD_PAIRS, RATERS, seed_of
from experiments import study
from experiments.judges import asked
from report import faithfulness, tie_broken
from sample import generate, judge

K = 8                                              # samples of a vote
M = 16                                             # lists that are stored for a query

# ----------------------------------------------------------------------------------------
# Principles from the query alone


def read_principles(tok, ids):
    """{criterion: weight} of what stands before the first special token, or None if that is no list."""
    cut = next((i for i, token in enumerate(ids) if token < len(SPECIAL)), len(ids))
    matches = [PRINCIPLE.fullmatch(text) for text in tok.text(ids[:cut]).removeprefix(" ").split(", ")]
    return {m[1]: int(m[2]) for m in matches} if cut < len(ids) and all(matches) else None


def mean_principles(samples, most=3):
    """The mean of principles: its `most` largest weights, in whole numbers with the sum 10 (largest remainders).
    [] if there is no sample.

    >>> mean_principles([{"correct": 6, "polite": 4}, {"correct": 4, "polite": 5, "plain": 1}])
    [{'correct': 5, 'polite': 5}]
    >>> mean_principles([{"help": 20}]), mean_principles([])
    ([{'help': 10}], [])
    """
    total = Counter()
    for weights in samples:
        total.update({name: weight / sum(weights.values()) for name, weight in weights.items()})
    largest = sorted(total, key=total.get, reverse=True)[:most]
    kept = sum(total[name] for name in largest)
    exact = {name: 10 * total[name] / kept for name in total if name in largest}
    whole = {name: int(weight) for name, weight in exact.items()}
    rest = sorted(exact, key=lambda name: whole[name] - exact[name])         # the largest remainder first
    for name in rest[:10 - sum(whole.values())]:
        whole[name] += 1
    return [{name: weight for name, weight in whole.items() if weight}] if samples else []


def trained_writer(run):
    """The RL policy, fine-tuned to write for the query alone what it writes with responses in view"""
    def make():
        cfg, items, policy, examples = run.config(), run.training_items()[:1500], run.model("rl"), []
        groups = run.groups("principles, training", lambda: judge(
            policy, run.tok, items, 1, seed_of(cfg.seed, "principles")))
        for item, [j] in zip(items, groups):
            if j.scores:
                examples.append(encode_document(run.tok, [
                    (prompt_parts(item.query, []), False), ([principles_text(dict(j.principles)), END], True)]))
        ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "principles"))
        return spct.train_lm(cfg, "rft", policy, ids, learned, cfg.rft_lr, cfg.rft_rows, epochs=4)
    return run.model("principles", make)


@functools.cache
def stored(writer, name, queries, m, temperature):
    """m lists for each query, which a policy of the run `writer` writes
    -> {query: its lists, None for one that cannot be read}, and the mean number of tokens of a list"""
    policy = trained_writer(writer) if name == "principles" else writer.model(name)
    seed = seed_of(writer.config().seed, "study", name)
    prompts = [tuple(writer.tok.encode(prompt_parts(query, []))) for query in queries for _ in range(m)]
    seeds = [seed_of(seed, "principles", query, i) for query in queries for i in range(m)]
    done = [ids for ids, _ in generate(policy, prompts, seeds, temperature)]
    read = [read_principles(writer.tok, ids) for ids in done]
    ends = [next((i + 1 for i, token in enumerate(ids) if token < len(SPECIAL)), len(ids)) for ids in done]
    return {query: read[i * m:(i + 1) * m] for i, query in enumerate(queries)}, float(np.mean(ends))

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

# source: (whose lists, of which policy, how many, at which temperature). No policy: the judge itself writes them.
SOURCES = {
    "most likely list": ("mine", None, 1, 0.0),
    "mean of 1": ("mine", None, 1, 1.0),
    "mean of 4": ("mine", None, 4, 1.0),
    "mean of 16": ("mine", None, M, 1.0),
    "mean of 16 at .5": ("mine", None, M, 0.5),
    "mean of 16, all criteria": ("mine", None, M, 1.0),
    "the base's": ("mine", "base", M, 1.0),
    "the RL policy's": ("mine", "rl", M, 1.0),
    "the trained writer's": ("mine", "principles", M, 1.0),
    "the trained writer's most likely list": ("mine", "principles", 1, 0.0),
    "the next seed's": ("other", "principles", M, 1.0)}
FEW = ("own", "mean of 16", "the RL policy's", "the trained writer's", "another cue's", "the raters'")
JUDGES = {"base": FEW, "rft": FEW, "rl": (
    "own", "own, mean of 8", "one for each sample", *(source for source in SOURCES if source != "the RL policy's"),
    "another cue's", "the raters'")}
VOTING = ("own", "mean of 16", "one for each sample", "the trained writer's")         # of the RL policy
# What others are compared with
REFERENCES = ("own", "most likely list", "mean of 16", "another cue's", "the trained writer's")


def items_of(run, split, count):
    return [item for item in run.items(split, count) if split != "ood" or (item.domain, item.cue) in OOD_PAIRS]


def another_cue(item):
    """The raters' weights for another cue, one whose weights differ."""
    others = [weights for weights in RATERS[item.domain].values() if weights != item.weights]
    return random.Random(seed_of("another cue", item.query)).choice(others)


def stores_from(source, name, runs, items):
    """-> for each item the principles that the judge `name` is given (see judge_by), and the mean number of tokens
    that were written for them. runs: {"mine", "other"}"""
    run, queries = runs["mine"], tuple(sorted({item.query for item in items}))
    if source == "own":
        return [[] for _ in items], 0.0
    if source in ("another cue's", "the raters'"):
        return [[another_cue(item) if source == "another cue's" else item.weights] for item in items], 0.0
    if source == "own, mean of 8":
        groups = judge_by(run, run.model(name), items, [[]] * len(items), K, run.config().seed, 1.0)
        return ([mean_principles([dict(j.principles) for j in group if j.scores]) for group in groups],
                float(np.mean([sum(len(j.ids) for j in group) for group in groups])))
    if source == "one for each sample":
        lists, tokens = stored(run, name, queries, K, run.config().temperature)
        scaled = {query: [mean_principles([found])[0] for found in some if found] for query, some in lists.items()}
        return [scaled[item.query] for item in items], K * tokens
    whose, policy, m, temperature = SOURCES[source]
    many = M if temperature else m                 # always M samples: a mean of fewer takes the first ones
    lists, tokens = stored(runs[whose], policy or name, queries, many, temperature)
    most = 99 if source.endswith("all criteria") else 3
    return [mean_principles([found for found in lists[item.query][:m] if found], most)
            for item in items], m * tokens


def agreement(weights, item):
    """The share of the raters' weights that principles {criterion: weight} have: 1 if they are equal."""
    whole = sum(weights.values())
    return sum(min(weight, 10 * weights.get(name, 0) / whole) for name, weight in item.weights.items()) / 10


def of_judgement(run, j, item, store):
    """{measure: a number}. principle tokens: those that the judgement wrote itself. adds up: the share of totals
    that are the sum of the weights that were found good"""
    begun = j.ids.index(CRITIQUE) + 1 if CRITIQUE in j.ids else len(j.ids)
    weights = store[0] if store else dict(j.principles) if j.scores else None
    return {"greedy": tie_broken(j.scores, item.gold), "given": bool(store), "parses": bool(j.scores),
            "agreement": agreement(weights, item) if weights else np.nan,
            "criteria": len(weights) if weights else np.nan,
            "adds up": faithfulness(j, item)[2] if j.scores else np.nan,
            "principle tokens": 0 if store else begun, "critique tokens": len(j.ids) - begun}


def measure(runs, name, source, counts):
    """-> {measure: a number for each item} of a judge with principles from a source. stored tokens: written once
    for its query"""
    run, found = runs["mine"], {}
    cfg, policy = run.config(), run.model(name)
    for split, count in counts.items():
        items, seed = items_of(run, split, count), seed_of(cfg.seed, "study", split)
        stores, tokens = stores_from(source, name, runs, items)
        one = [group[0] for group in judge_by(run, policy, items, stores, 1, seed, 0)]
        rows = [of_judgement(run, j, item, store) for j, item, store in zip(one, items, stores)]
        found |= {f"{split}, {m}": [row[m] for row in rows] for m in rows[0]}
        found[f"{split}, stored tokens"] = [tokens] * len(items)
        if name == "rl" and source in VOTING and split == "test":
            groups = judge_by(run, policy, items, stores, K, seed, cfg.temperature)
            found["test, plurality"] = [tie_broken(vote_plurality([j.scores for j in group]), item.gold)
                                        for group, item in zip(groups, items)]
    return {m: np.array(values, float) for m, values in found.items()}


def study_run(run, other, counts):
    found, runs = {}, {"mine": run, "other": other}
    for name, sources in JUDGES.items():
        for source in sources:
            title = f"principles, {name}, {source}, {other.config().seed}"
            found[f"{name}, {source}"] = run.numbers(title, lambda: measure(runs, name, source, counts))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    """What each source of principles changes, less the judge's own: a bar is an interval, a dot is a run."""
    figure = Figure(figsize=(12, 5))
    for ax, name in zip(figure.subplots(1, len(JUDGES)), JUDGES):
        titles = [f"{name}, {source}" for source in JUDGES[name] if source != "own"]
        for i, (split, label) in enumerate((("test", "test"), ("ood", "out of distribution"))):
            for row, title in enumerate(titles):
                mean, low, high, low_, high_, *each = result["less own"][title][f"{split}, greedy"]
                at = row + 0.3 * i
                ax.plot([min(low, low_), max(high, high_)], [at, at], color=f"C{i}", lw=5, alpha=0.3)
                ax.plot(each, [at] * len(each), ".", color=f"C{i}", label=label if row == 0 else None)
        ax.set_yticks(np.arange(len(titles)) + 0.15, [title.split(", ", 1)[1] for title in titles], fontsize=7)
        ax.axvline(0, color="gray", lw=0.5)
        ax.set(title=f"{name} judges", xlabel="greedy accuracy, less own principles", xlim=(-0.45, 0.3))
        ax.invert_yaxis()
        ax.legend(fontsize=7)
    return figure


def row_of(title, result):
    """The row of the table about a judge and its principles"""
    of, less = result["numbers"][title], {} if title.endswith(", own") else result["less own"][title]
    shown = (of["test, greedy"], less.get("test, greedy"), of.get("test, plurality"), of["ood, greedy"],
             less.get("ood, greedy"), of["test, agreement"])
    tokens = [f"{of[f'test, {m} tokens'][0]:.0f}" for m in ("stored", "principle", "critique")]
    return [title, *map(study.in_words, shown), f"{of['test, criteria'][0]:.1f}", ", ".join(tokens)]


def main(argv):
    runs, quick = study.start(argv, __doc__)
    counts = {"test": 8, "ood": 24} if quick else {"test": 600, "ood": 1200}
    items = {split: [items_of(run, split, count) for run in runs] for split, count in counts.items()}
    found = [study_run(run, runs[(i + 1) % len(runs)], counts) for i, run in enumerate(runs)]
    column = lambda title, m: [f[title][m] for f in found]
    numbers = {title: {m: study.number(column(title, m)) for m in of} for title, of in found[0].items()}
    result = {"numbers": numbers}
    for reference in REFERENCES:
        result[f"less {reference}"] = {title: {m: study.difference(
            column(title, m), column(f"{title.split(', ')[0]}, {reference}", m),
            [[item.query for item in mine] for mine in items[m.split(",")[0]]])
            for m in ("test, greedy", "ood, greedy", "test, plurality")
            if m in found[0][title] and m in found[0][f"{title.split(', ')[0]}, {reference}"]}
            for title in numbers if f"{title.split(', ')[0]}, {reference}" in numbers}
    result["unseen pairs, greedy"] = {title: {
        ", ".join(pair): study.number([values[[(item.domain, item.cue) == pair for item in mine]]
                                       for values, mine in zip(column(title, "ood, greedy"), items["ood"])])
        for pair in sorted(OOD_PAIRS)} for title in numbers}
    rows = [["judge, principles", "greedy", "less own", f"plurality of {K}", "out of distribution", "less own",
             "agreement with the raters", "criteria", "tokens: stored for a query, own principles, critique"]]
    rows += [row_of(title, result) for title in numbers]
    study.save("principles", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
