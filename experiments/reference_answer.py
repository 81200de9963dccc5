"""
What does a reference answer change? And does the judge follow a wrong one?

The paper's judge is correct for 59.8% of the tasks that can be verified, and for 91.6% with the correct answer in
its prompt. Here these tasks are sums, sort and reverse. The reference stands at the end of the query:

    for my boss: what is 230+481? the answer is 711

The paper's judge is a fine-tuned LLM, which understands such a sentence. Ours has never seen it. So the base model
first reads half a million tokens of experts' judgements with references in the prompts. RL follows, with the same
kind of prompts. (There is no RFT: the experts' texts stand in its place.) Three kinds:

- there is no reference, for comparison;
- it is always true;
- it is wrong for half of the items.

Experts check the responses, and not the reference: their evidence is always true. (They err as always: 3% of their
verdicts are wrong, and they mostly overlook the cue.) A wrong reference is the answer of a response that is
incorrect, if there is one. What the best response would be if the reference were true is therefore known: the
lure. In about half of the items it is another one than the best. A judge that picks it is misled.
"""

import random
import re
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import annotate, encode_document, pack
from data.judgement import correct, judgement_parts, pick, prompt_parts
from data.world import CONTENT, CUES, VERIFIABLE, gold_reward, make_item, seed_of
from experiments import study
from experiments.writer import without_style
from sample import judge

PROMPTS = ("no reference", "true", "wrong")                                  # at test time
TAUGHT = ("no reference", "true", "half wrong")                              # in training

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


def read(run, kind, items):
    """The base model, after experts' judgements of these items with a reference of this kind."""
    cfg, examples = run.config(), []
    for item in items:
        asked, rng = with_reference(item, cfg.seed, kind), random.Random(seed_of(cfg.seed, "expert", item.id))
        examples.append(encode_document(run.tok, [
            (prompt_parts(asked.query, asked.responses), False),
            (judgement_parts(*annotate(rng, asked, "expert")), True)]))
    ids, learned = pack(examples, cfg.block_size, seed_of(cfg.seed, "reference"))
    return spct.train_lm(cfg, "rft", run.model("base"), ids, learned, cfg.rft_lr, cfg.rft_rows)


def reinforced(run, start, kind, items):
    """RL with such prompts, from the model `start`."""
    cfg = run.config()
    asked = [with_reference(item, cfg.seed, kind) for item in items]
    rollout = lambda policy, batch, seed: judge(policy, run.tok, batch, cfg.group, seed, shuffle=False)
    return [*study.reinforce(cfg, start, asked, rollout)][-1]


def policies(run, count):
    """-> {policy: name of its model}. count: training items of RL; the next two times as many are read."""
    items, names = verifiable_items(run.config().seed, "train", 3 * count), {"RL policy": "rl"}
    for kind in TAUGHT:
        before, after = f"reference, {kind}", f"reference, {kind}, rl"
        run.model(before, lambda: read(run, kind, items[count:]))
        run.model(after, lambda: reinforced(run, run.model(before), kind, items[:count]))
        names |= {f"taught, {kind}": before, f"taught, {kind}, then RL": after}
    return names


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
    for title, name in policies(run, training_items).items():
        found[title] = run.numbers(f"reference, {title}, {len(items)}",
                                   lambda: answers(run, run.model(name), items))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw(result):
    figure = Figure(figsize=(14, 4))
    for ax, measure in zip(figure.subplots(1, 2), ("correct", "misled")):
        for i, kind in enumerate(PROMPTS):
            bars = [of[f"{kind}, {measure}"] or [0, 0] for of in result["numbers"].values()]
            ax.bar(np.arange(len(bars)) + 0.27 * (i - 1), [b[0] for b in bars], 0.25, yerr=[b[1] for b in bars],
                   label=f"reference: {kind}" if i else kind)
        ax.set_xticks(range(len(bars)), [name.replace(", ", ",\n") for name in result["numbers"]], fontsize=8)
        ax.set_ylabel("accuracy" if measure == "correct" else "picks what the wrong reference says")
    ax.legend(fontsize=8)
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    count, training_items = (9, 8) if quick else (500, 1536)
    items = [verifiable_items(run.config().seed, "test", count) for run in runs]
    queries = [[item.query for item in mine] for mine in items]
    found = [study_run(run, mine, training_items) for run, mine in zip(runs, items)]
    result = {"numbers": {}, "by domain": {}, "less no reference": {}, "true, less taught without": {},
              "no reference, less taught without": {}}
    rows = [["policy", "no reference", "true", "true less none", "wrong", "wrong less none",
             "picks the lure, no reference", "picks the lure, wrong"]]
    for name in found[0]:
        column = lambda m, of=name: [f[of][m] for f in found]
        mine = result["numbers"][name] = {m: study.number(column(m)) for m in found[0][name]}
        result["by domain"][name] = {kind: {domain: study.number([
            v[[item.domain == domain for item in its]] for v, its in zip(column(f"{kind}, correct"), items)])
            for domain in VERIFIABLE} for kind in PROMPTS}
        less = result["less no reference"][name] = {f"{kind}, {m}": study.difference(
            column(f"{kind}, {m}"), column(f"no reference, {m}"), queries) for kind in PROMPTS[1:]
            for m in ("correct", "misled")}
        if name.startswith("taught") and "no reference" not in name:         # the same training without references
            other = "taught, no reference" + (", then RL" if name.endswith("then RL") else "")
            alone = column("no reference, correct", other)
            result["true, less taught without"][name] = study.difference(
                column("true, correct"), alone, queries)
            result["no reference, less taught without"][name] = study.difference(
                column("no reference, correct"), alone, queries)
        shown = (mine["no reference, correct"], mine["true, correct"], less["true, correct"],
                 mine["wrong, correct"], less["wrong, correct"], mine["no reference, misled"],
                 mine["wrong, misled"])
        rows.append([name, *map(study.in_words, shown)])
    study.save("reference_answer", runs, result, rows, draw(result))


if __name__ == "__main__":
    run_command(main)
