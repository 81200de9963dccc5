"""
report.html: one page for a run, to be opened from disk. Its numbers, and judgements beside the truth.

    python report.py --html runs/cpu-seed0

page.html is the page without its data, which is written into it as JSON. Whatever a response or a judge says
is data there: it is shown as text and never becomes markup. Votes are counted here, with metarm.RULES; the
page only shows them.
"""

import base64
import hashlib
import json
import os
import re

from data import UserError
from data.judgement import correct, pick, read_judgements
from data.tokenizer import Tokenizer
from data.world import make_items
from metarm import RULES
from parallel import new_file
from report import adds_up, faithfulness, holds, read_lines
from run import load_tensors, read_json

HERE = os.path.dirname(os.path.abspath(__file__))
SHOWN, EACH = 8, 10                                # judgements of an item, items of a kind
KINDS = ["the vote is right, for true reasons", "the vote is right, for a wrong reason", "the vote is wrong",
         "the vote is right, greedy is not", "greedy is right, the vote is not",
         "guided and sum differ"]

# ----------------------------------------------------------------------------------------
# Data of the page

def judgement_data(j, item, tok):
    """One judgement, with each check and total marked true or false (None: there is no truth)."""
    known, weights = item.truth is not None, dict(map(tuple, j.principles or []))
    found = {"sample": j.sample, "order": j.order, "scores": j.scores, "meta": j.meta, "status": j.status,
             "mean_logp": j.mean_logp, "confidence": j.confidence, "principles": j.principles,
             "critiques": []}
    if j.scores is None:
        return {**found, "text": tok.readable(j.ids)}
    found["right"] = correct(j.scores, item.gold) if item.gold else None
    for i, critique in enumerate(j.critiques):
        checks = [[*check, holds(check, item.truth[i]) if known else None] for check in critique["checks"]]
        adds = adds_up(critique, weights, j.scores[i]) if known else None
        found["critiques"].append({**critique, "checks": checks, "adds": adds})
    return found


def votes_of(samples):
    """{rule: for k = 1, 2, ... what decides, a number a response, or None}. Guided votes need a Meta RM."""
    guided = any(j.meta is not None for j in samples)
    counts = range(1, len(samples) + 1)
    return {name: [RULES[name](samples[:k]) for k in counts] for name in RULES if guided or name != "guided"}


def kinds_of(item, greedy, samples, votes):
    """Which of KINDS a stage's judgements of an item are, as indices. For true reasons: in at least half of
    the samples that are right, all checks are true and all totals add up."""
    won = correct(votes["weighted"][-1], item.gold)
    true = [faithfulness(j, item)[1:] == (1, 1) for j in samples if correct(j.scores, item.gold)]
    reasons = won and 2 * sum(true) >= len(true) > 0
    differ = "guided" in votes and pick(votes["guided"][-1]) != pick(votes["sum"][-1])
    first = correct(greedy.scores, item.gold)
    return [i for i, is_so in enumerate([won and reasons, won and not reasons, not won, won and not first,
                                         first and not won, differ]) if is_so]


def item_data(item, stages, tok):
    """stages: {name: (greedy judgement, its sampled judgements)}"""
    found = {"id": item.id, "subset": item.subset, "query": item.query, "responses": item.responses,
             "gold": item.gold, "truth": item.truth, "weights": item.weights if item.truth else None,
             "stages": {}}
    for name, (greedy, samples) in stages.items():
        votes = votes_of(samples)
        found["stages"][name] = {
            "greedy": greedy and judgement_data(greedy, item, tok), "votes": votes,
            "samples": [judgement_data(j, item, tok) for j in samples],
            "kinds": kinds_of(item, greedy, samples, votes) if greedy and item.truth else []}
    return found


def choose(items):
    """Of each kind after RL the first items that no earlier kind has: a stated rule, nobody picks."""
    chosen = set()
    for kind in range(len(KINDS)):
        there = [i for i, item in enumerate(items)
                 if kind in item["stages"]["rl"]["kinds"] and i not in chosen]
        chosen.update(there[:EACH])
    return [items[i] for i in sorted(chosen)]


def run_data(folder):
    """All that the page of a run shows."""
    r, path = read_json(os.path.join(folder, "results.json")), lambda name: os.path.join(folder, name)
    tok = Tokenizer.load(path("tokenizer.tiktoken"))
    items = make_items(r["seed"], r["config"]["eval_split"], min(r["items"], 500), least=2)
    stages = {name: list(zip(*(read_judgements(path(f"judgements-{name}-{part}.jsonl"), len(items))
                               for part in ("greedy", "votes")))) for name in r["stages"]}
    shown = [item_data(item, {name: (greedy[0], samples[:SHOWN]) for name in stages
                              for greedy, samples in [stages[name][i]]}, tok) for i, item in enumerate(items)]
    size = sum(w.numel() for w in load_tensors(path("rl.pt"), "cpu")["weights"].values())
    return {"title": os.path.basename(os.path.normpath(folder)), "results": r, "kinds": KINDS,
            "curves": read_lines(path("metrics-rl.jsonl")), "parameters": size, "items": choose(shown),
            "of": len(items)}

# ----------------------------------------------------------------------------------------
# The page

def write(path, data):
    """Fill page.html with data. Its policy allows the page's own script and style, by their hashes alone."""
    with open(os.path.join(HERE, "page.html"), encoding="utf-8") as f:
        text = f.read()
    digest = lambda tag: base64.b64encode(hashlib.sha256(
        re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1].encode()).digest()).decode()
    policy = (f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
              f"style-src 'sha256-{digest('style')}'; base-uri 'none'; form-action 'none'")
    data = json.loads(json.dumps(data), parse_constant=lambda nan: None)     # JSON knows no NaN
    embedded = json.dumps(data).replace("<", "\\u003c")       # ASCII, and nothing in it ends a script
    with new_file(path) as f:
        f.write(text.replace("POLICY", policy, 1).replace("DATA", embedded, 1))


def of_run(folder):
    try:
        data = run_data(folder)
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}, which report.html needs: run it anew") from None
    write(os.path.join(folder, "report.html"), data)


def of_query(path, item, stage, samples, tok, rule):
    """The viewer alone, for the judgements of one query; rule: how they voted."""
    shown = item_data(item, {stage: (None, samples)}, tok)
    write(path, {"title": "One query", "kinds": KINDS, "items": [shown], "of": 1, "vote": rule})
