"""
A tool inside the critique: does a judge learn to call it, and what does that win?

The paper leaves tools to others (one is TIR-Judge, arXiv 2510.23038). Here the judge may write a call while it
checks a response. The sampler then runs one of three pure functions, and writes the result's tokens itself:

    <checks> correct:[ 230+481=]711 230+481=711 got 7 7 1 1 1 1, good 4 polite: ...

The brackets stand for two tokens that no text has (calls.py). The result, "711", was not chosen by the policy: it
carries no loss, neither in RFT nor in RL.

Two judges of each run. For "tools", the base model reads two million tokens more. In half of their judgements of
sums, sort and reverse, experts call a tool once, before their first evidence, and so do exercises of checking. RFT
and RL follow. "Control" is the same without calls, and never writes one. After RL, we also change what the tools
judge gets: it cannot call; or the result is always that of the query's own call, or a wrong one.

Measured on sums, sort and reverse: how many judgements with evidence for "correct" call; how many calls have the
arguments of the query; how much of the evidence has the (first) call's result for an answer, and how much the true
answer; and how many verdicts are true. Bound: the accuracy if all verdicts on "correct" were true there, and
totals added up. A tie is incorrect.
"""

import copy
import random
import re

import numpy as np
import torch
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import general_text, make_document
from data.judgement import correct, vote_plurality
from data.world import DOMAINS, VERIFIABLE, seed_of
from experiments import study
from experiments.calls import CALL, RUN, call_for, calls_of, chosen, judge, result_of, write
from experiments.judges import asked
from experiments.truth import share
from model import Optimizer, learning_rate, pad_left, save_model, token_logp

ARMS = ("control", "tools")
K = 8                                              # samples of a vote
EACH_RUN = ("greedy", "called", "right arguments", "follows the result", "true answers", "true verdicts")

# ----------------------------------------------------------------------------------------
# The corpus


def with_calls(document):
    """A document in which the first check of "correct" that has evidence begins with a call. (The result then
    stands there for the other responses, too.)"""
    call, found = call_for(next(part for part in document[0][0] if isinstance(part, str))), []
    for parts, learned in document:
        found.append(([], learned))
        for part in parts:
            text = part if learned and isinstance(part, str) else ""
            before, criterion, after = text.partition(" correct:")
            if call and criterion and not after.startswith((" good", " bad")):
                found[-1][0].extend([before + criterion, CALL, call, RUN])
                found += [([result_of(call)], False), ([after], True)]
                call = None
            else:
                found[-1][0].append(part)
    return found


def in_half(document, rng):
    return with_calls(document) if rng.random() < 0.5 else document

# ----------------------------------------------------------------------------------------
# RL, without loss on results


def evidence_of(j):
    """The evidence of each check of "correct" that has some -> [(response, evidence, verdict)]"""
    return [(i, evidence, good) for i, critique in enumerate(j.critiques or [])
            for name, evidence, good in critique["checks"] if name == "correct" and evidence]


def called(tok, judgements):
    """-> the share of judgements with evidence for "correct", and how many of these call a tool"""
    some = [j for j in judgements if evidence_of(j)]
    return [share([bool(evidence_of(j)) for j in judgements]), share([bool(calls_of(tok, j.ids)) for j in some])]


def reinforce(run, reference, items):
    """As spct.reinforce, but results are not learned, and do not count as tokens of the loss
    -> the policy, and of the judgements of sums, sort and reverse at each step: see called"""
    cfg, tok, curve = run.config(), run.tok, []
    policy = copy.deepcopy(reference)
    optimizer = Optimizer(policy, getattr(torch, cfg.dtype))
    for step in range(cfg.rl_steps):
        batch = [items[i % len(items)] for i in range(step * cfg.rl_items, (step + 1) * cfg.rl_items)]
        groups = judge(policy, tok, batch, cfg.group, seed_of(cfg.seed, "rl", step), shuffle=False)
        curve.append(called(tok, [j for group, item in zip(groups, batch) if item.domain in VERIFIABLE
                                  for j in group]))
        rewards = [[spct.reward(j, item) for j in group] for group, item in zip(groups, batch)]
        advantages = spct.group_advantages(torch.tensor(rewards)).flatten()                  # (P * G,)

        flat = [j for group in groups for j in group]
        masks = [[False] * len(j.prompt) + chosen(tok, j.ids) for j in flat]
        order = sorted(range(len(flat)), key=lambda i: len(masks[i]))
        tokens = sum(map(sum, masks))
        for start in range(0, len(order), 64):
            some = order[start:start + 64]
            ids, padding = pad_left([flat[i].prompt + flat[i].ids for i in some])            # (B, T), (B,)
            learned = pad_left([masks[i] for i in some], 0)[0].bool()                        # (B, T)
            adv = advantages[some].repeat_interleave(learned.sum(dim=1))                     # (N,)
            with spct.autocast(cfg):
                logp = token_logp(policy, ids, learned, padding)                             # (N,)
                with torch.no_grad():
                    logp_ref = token_logp(reference, ids, learned, padding)                  # (N,)
            loss = spct.rl_loss(logp, logp_ref, adv, cfg.beta, tokens)
            loss.backward()
        optimizer.step(learning_rate(cfg.rl_lr, step, cfg.rl_steps, warmup=5, decay=0.3))
    return policy, curve

# ----------------------------------------------------------------------------------------
# One run


def policies(run, arm, tokens):
    """-> {stage: name of a model}, and what reinforce says of its steps, (steps, 2)"""
    cfg, items, title = run.config(), run.training_items(), f"tools, {arm}"
    change = in_half if arm == "tools" else lambda document, rng: document
    base = run.model(f"{title}, base", lambda: study.reread(run, lambda index: change(
        make_document(cfg.seed, index), random.Random(seed_of("calls", index))), tokens))
    start, hard, _ = study.rft(run, title, base, items, lambda rng: change(general_text(rng), rng), judge,
                               lambda ids: chosen(run.tok, ids))

    def make():
        policy, curve = reinforce(run, start, hard)
        save_model(run.path(f"{title}, rl.pt"), policy)
        return {"steps": np.array(curve)}
    steps = run.numbers(f"{title}, steps of RL", make)["steps"]
    return {stage: f"{title}, {stage}" for stage in ("base", "rft", "rl")}, steps


def answer_in(evidence):
    """The judge's own answer to the query, as far as its evidence says it.

    >>> answer_in("230+481=711 got 7 7 1 1 1 1"), answer_in("sort c c d b"), answer_in("reverse b a to a a b b")
    ('711', 'c d', 'a b')
    """
    if sum_ := re.search(r"=(.*) got ", evidence):
        return sum_[1]
    return " ".join(evidence.split(" to ")[-1].removeprefix("sort ").split(" ")[::2])


def agrees(answer, result):
    """Is this the result? Evidence ends at the first letter that differs: then its answer is the beginning.

    >>> agrees("a b", "a b c"), agrees("b", "a b c"), agrees("711", "711"), agrees("71", "711"), agrees("", "a b")
    (True, False, True, False, False)
    """
    return answer == result or answer != "" and " " in result and result.startswith(answer)


def bound(j, item):
    """The scores of a judgement, if its verdicts on "correct" were true and totals added up. None if it does not
    parse."""
    if j.scores is None or item.domain not in VERIFIABLE:
        return j.scores
    weights, scores = dict(j.principles), []
    for critique, truth in zip(j.critiques, item.truth):
        true = {name: truth["correct"][0] if name == "correct" else good for name, _, good in critique["checks"]}
        scores.append(max(1, sum(weights.get(name, 0) for name, good in true.items() if good)))
    return scores


def of_judgements(tok, items, judgements, tool=lambda j: result_of):
    """{measure: a number for each item}. What a judgement lacks is nan."""
    rows = []
    for item, j in zip(items, judgements):
        calls = calls_of(tok, j.ids, tool(j))
        given = [(tok.text(j.ids[start + 1:result - 1]), tok.text(j.ids[result:end]).strip())
                 for start, result, end in calls]
        checks = evidence_of(j) if item.domain in VERIFIABLE else []
        answers = [answer_in(evidence) for _, evidence, _ in checks]
        true = (result_of(call_for(item.query) or "") or "").strip()
        rows.append({
            "greedy": correct(j.scores, item.gold), "parses": j.scores is not None,
            "evidence": bool(answers), "called": bool(calls) if answers else np.nan,
            "right arguments": share([call == call_for(item.query) for call, _ in given]),
            "follows the result": share([agrees(a, given[0][1]) for a in answers if given]),
            "true answers": share([agrees(a, true) for a in answers]),
            "true verdicts": share([good == item.truth[i]["correct"][0] for i, _, good in checks]),
            "bound": correct(bound(j, item), item.gold), "tokens": len(j.ids)})
    return {m: np.array([row[m] for row in rows], float) for m in rows[0]}


def wrong(result):
    """Another result: each digit is one higher, or letters move by one place.

    >>> wrong("1709"), wrong(" a b c")
    ('2810', ' b c a')
    """
    if result.isdigit():
        return result.translate(str.maketrans("0123456789", "1234567890"))
    return result[2:] + result[:2]


def other_tools(items):
    """Tools that change what the tools judge gets: see write. To see what its calls are worth."""
    right = {item.id: result_of(call_for(item.query) or "") for item in items}
    return {"no calls": lambda j: None,
            "the query's result": lambda j: lambda call: result_of(call) and right[j.item],
            "a wrong result": lambda j: lambda call: result_of(call) and wrong(result_of(call))}


def study_run(run, sizes):
    """-> {judge: {measure: a number for each item}} of greedy judgements and a vote, {arm: its steps of RL}"""
    tokens, counts = sizes
    cfg, found, steps = run.config(), {}, {}
    items = {split: run.items(split, count) for split, count in counts.items()}

    def measure(title, name, split, tool=lambda j: result_of):
        def make():
            groups = [asked(run.tok, item, 1, seed_of(cfg.seed, "study", split), False) for item in items[split]]
            return write(run.model(name), run.tok, groups, 0, tool)
        one = [group[0] for group in run.groups(f"{title}, {split}", make)]
        return {f"{split}, {m}": v for m, v in of_judgements(run.tok, items[split], one, tool).items()}

    for arm in ARMS:
        names, steps[arm] = policies(run, arm, tokens)
        for stage, name in names.items():
            found[f"{arm}, {stage}"] = {**measure(name, name, "test"), **measure(name, name, "ood")}
        rl = names["rl"]
        votes = run.groups(f"{rl}, votes", lambda: judge(
            run.model(rl), run.tok, items["test"], K, seed_of(cfg.seed, "study", "votes"), cfg.temperature))
        found[f"{arm}, rl"]["test, plurality"] = np.array([float(correct(vote_plurality(
            [j.scores for j in group]), item.gold)) for group, item in zip(votes, items["test"])])
    for title, tool in other_tools(items["test"] + items["ood"]).items():
        name = f"tools, rl, {title}"
        found[name] = {m: v for split in items for m, v in measure(
            f"tools, {name}", "tools, tools, rl", split, tool).items()}
    return found, steps

# ----------------------------------------------------------------------------------------
# Table and figure


def draw_figure(result):
    """How many judgements call, at each step of RL, and accuracy after RL: a dot is a run."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for i, steps in enumerate(result["steps of RL"]["tools"]):
        left.plot([np.nan if of is None else of for _, of in steps], "o-", ms=3, label=f"run {i + 1}")
    left.set(xlabel="step of RL (its samples of training items)", ylim=(0, 1),
             ylabel="share of judgements with evidence that call")
    left.legend()
    for i, arm in enumerate(ARMS):
        for at, domain in enumerate(VERIFIABLE):
            values = result["each run"][domain][f"{arm}, rl"]["greedy"]
            right.plot([at + 0.3 * i] * len(values), values, f"C{i}o", label=arm if at == 0 else None)
    right.set_xticks(np.arange(len(VERIFIABLE)) + 0.15, VERIFIABLE)
    right.set(ylabel="greedy accuracy after RL", ylim=(0.5, 1))
    right.legend()
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (6000, {"test": 12, "ood": 6}) if quick else (2_000_000, {"test": 1000, "ood": 600})
    found, steps = zip(*[study_run(run, sizes) for run in runs])
    items = {split: [run.items(split, count) for run in runs] for split, count in sizes[1].items()}
    of_split = lambda m, domains: [[item.domain in domains for item in mine] for mine in items[m.split(",")[0]]]
    column = lambda t, m, domains: [f[t][m][mask] for f, mask in zip(found, of_split(m, domains))]

    def less(title, other, m, domains):
        queries = [[item.query for item in mine if item.domain in domains] for mine in items[m.split(",")[0]]]
        return study.difference(column(title, m, domains), column(other, m, domains), queries)

    rounded = lambda x: None if np.isnan(x) else round(float(x), 3)
    result = {"steps of RL": {arm: [[[rounded(x) for x in step] for step in of[arm]] for of in steps]
                              for arm in ARMS}}
    # A stage of the tools judge is compared with the control's, and the judge with another tool with itself.
    other = lambda t: "tools, rl" if t.startswith("tools, rl, ") else t.replace("tools", "control")
    groups = {"all": DOMAINS, "verifiable": VERIFIABLE, **{domain: [domain] for domain in VERIFIABLE}}
    for name, domains in groups.items():
        result[name] = {t: {m: study.number(column(t, m, domains)) for m in of} for t, of in found[0].items()}
        result[f"{name}, difference"] = {t: {m: less(t, other(t), m, domains) for m in of}
                                         for t, of in found[0].items() if t != other(t)}
    result["each run"] = {domain: {title: {
        m: [rounded(share(v[~np.isnan(v)])) for v in column(title, f"test, {m}", [domain])] for m in EACH_RUN}
        for title in found[0]} for domain in VERIFIABLE}
    columns = [("all", "test"), ("verifiable", "test"), ("verifiable, difference", "test"),
               *((domain, "test") for domain in VERIFIABLE), ("verifiable", "ood")]
    of_run = lambda x: "" if x is None else f"{x:.2f}"
    rows = [["judge", *(f"{name}, {split}".removesuffix(", test") for name, split in columns),
             *(f"sums, each run: {m}" for m in EACH_RUN[1:])]]
    for title in found[0]:
        numbers = [result[name].get(title, {}).get(f"{split}, greedy") for name, split in columns]
        each = [", ".join(map(of_run, result["each run"]["sums"][title][m])).strip(", ") for m in EACH_RUN[1:]]
        rows.append([title, *map(study.in_words, numbers), *each])
    study.save("tools", runs, result, rows, draw_figure(result))


if __name__ == "__main__":
    run_command(main)
