"""
A page about a run, to be opened from disk: its numbers, its curves, and judgements beside the truth.

    python -m web.page runs/cpu-seed0              # writes runs/cpu-seed0/report.html

page.html is the page without its data, which is written into it as JSON. Whatever a response or a judge says
is data there: it is shown as text and never becomes markup. Votes are counted here, with metarm.RULES. The
page only shows them.
"""

import argparse
import base64
import hashlib
import json
import os
import re

from data import UserError, new_file, run_command
from data.judgement import correct, pick, read_judgements
from data.tokenizer import load_tokenizer
from data.world import make_items
from metarm import RULES
from model import load_model
from report import faithfulness, read_results

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
SHOWN, EACH, FIRST = 8, 10, 500     # judgements of an item, items of a kind, items among which we choose
KINDS = ["the vote is correct, for true reasons", "the vote is correct, for a false reason",
         "the vote is incorrect", "the vote is correct, greedy is not", "greedy is correct, the vote is not",
         "guided and sum differ"]

# ----------------------------------------------------------------------------------------
# Data of the page

def critique_data(critique, truth, weights, score):
    """A critique in which each check has a mark: is its verdict true? The total has one, too: is it the sum
    of the weights found good (at least 1), and the score? weights: the judgement's principles."""
    checks = [[name, evidence, good, name in truth and good == truth[name][0]]
              for name, evidence, good in critique["checks"]]
    verdicts = {name: good for name, _, good, _ in checks}
    earned = max(1, sum(weight for name, weight in weights.items() if verdicts.get(name)))
    adds = set(verdicts) == set(weights) and critique["total"] == earned == score
    return {**critique, "checks": checks, "adds": adds}


def judgement_data(j, item, tok):
    """One judgement, with marks."""
    found = {"sample": j.sample, "order": j.order, "scores": j.scores, "meta": j.meta, "status": j.status,
             "logp": j.logp / len(j.ids)}
    if j.scores is None:
        return {**found, "text": tok.readable(j.ids)}
    critiques = [critique_data(*of_response, dict(j.principles), score) for *of_response, score
                 in zip(j.critiques, item.truth, j.scores)]
    return {**found, "correct": correct(j.scores, item.gold), "principles": j.principles, "critiques": critiques}


def votes_of(samples):
    """{rule: for k = 1, 2, ... {"votes": what is compared, "best": index or None}, None if nobody votes}"""
    found = {}
    for name, rule in RULES.items():
        votes = [rule(samples[:k]) for k in range(1, len(samples) + 1)]
        found[name] = [v and {"votes": v, "best": pick(v)} for v in votes]
    return found


def kinds_of(item, greedy, samples):
    """Which of KINDS a policy's judgements of an item are, as indices. For true reasons: in at least half of
    the correct samples, all checks are true and all totals add up."""
    won = correct(RULES["plurality"](samples), item.gold)
    true = [faithfulness(j, item)[1:] == (1, 1) for j in samples if correct(j.scores, item.gold)]
    reasons = won and 2 * sum(true) >= len(true) > 0
    differ = pick(RULES["guided"](samples)) != pick(RULES["sum"](samples))
    first = correct(greedy.scores, item.gold)
    return [i for i, is_so in enumerate([won and reasons, won and not reasons, not won, won and not first,
                                         first and not won, differ]) if is_so]


def item_data(item, stages, tok):
    """stages: {policy: (its greedy judgement, its sampled judgements)}"""
    found = {"id": item.id, "domain": item.domain, "query": item.query, "responses": item.responses,
             "gold": item.gold, "truth": item.truth, "weights": item.weights, "stages": {}}
    for name, (greedy, samples) in stages.items():
        found["stages"][name] = {
            "greedy": judgement_data(greedy, item, tok), "votes": votes_of(samples),
            "samples": [judgement_data(j, item, tok) for j in samples],
            "kinds": kinds_of(item, greedy, samples)}
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
    r, path = read_results(folder), lambda name: os.path.join(folder, name)
    tok = load_tokenizer(path("tokenizer.tiktoken"))
    with open(path("metrics-rl.jsonl"), encoding="utf-8") as f:
        curves = [json.loads(line) for line in f]
    read = lambda policy, part: read_judgements(path(f"judgements-{policy}-{part}.jsonl"))
    judged = {name: list(zip(read(name, "greedy"), read(name, "votes"))) for name in r["stages"]}
    items = make_items(r["config"]["seed"], r["config"]["eval_split"], min(r["items"], FIRST), least=2)
    shown = []
    for i, item in enumerate(items):
        stages = {name: (pairs[i][0][0], pairs[i][1][:SHOWN]) for name, pairs in judged.items()}
        shown.append(item_data(item, stages, tok))
    size = sum(p.numel() for p in load_model(path("rl.pt")).parameters())
    return {"title": os.path.basename(os.path.abspath(folder)), "results": r, "kinds": KINDS,
            "curves": curves, "parameters": size, "items": choose(shown), "of": len(items)}

# ----------------------------------------------------------------------------------------
# The page

def write(path, data):
    """Fill page.html with data. Its policy allows the page's own script and style, by their hashes alone."""
    with open(TEMPLATE, encoding="utf-8") as f:
        text = f.read()
    digest = lambda tag: base64.b64encode(hashlib.sha256(
        re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1].encode()).digest()).decode()
    policy = (f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
              f"style-src 'sha256-{digest('style')}'; base-uri 'none'; form-action 'none'")
    data = json.loads(json.dumps(data), parse_constant=lambda nan: None)     # JSON knows no NaN
    embedded = json.dumps(data).replace("<", "\\u003c")       # ASCII, and nothing in it ends a script
    with new_file(path) as f:
        f.write(text.replace("POLICY", policy, 1).replace("DATA", embedded, 1))


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m web.page", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the folder of a finished run, for instance runs/cpu-seed0")
    folder = parser.parse_args(argv).folder
    try:
        data = run_data(folder)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{folder} has files that are missing or of another version ({error}). Repeat the "
                        f"run.") from None
    write(os.path.join(folder, "report.html"), data)
    print(f"The page is {os.path.join(folder, 'report.html')}. Open it in a browser.")


if __name__ == "__main__":
    run_command(main)
