"""
A tool inside the critique: does a judge learn to call it, and what does that win?

The paper leaves tools to others (one is TIR-Judge, arXiv 2510.23038). Here the judge may write a call while it
checks a response. The sampler then runs one of three pure functions, and writes the result's tokens itself:

    <checks> correct:[ sum 230 481] 711 230+481=711 got 7 7 1 1 1 1, good 4 polite: ...

The brackets stand for two tokens that no text has: the bytes 0xFE and 0xFF. The result's tokens, " 711", were not
chosen by the policy: they carry no loss, neither in RFT nor in RL. A call is run only if it stands after <checks>,
and is one of the three functions with proper arguments. Nothing is ever executed from text. Before a judgement is
read, its calls are taken out again. If one of the two tokens is left then, the judgement does not parse.

Two judges of each run. For the first, the base model reads a million tokens more, in which experts call a tool for
the first response of sums, sort and reverse, and so do exercises of checking. RFT and RL follow. The second is the
control: the same without calls. Bound: with true verdicts on sums, sort and reverse, and nothing else changed.
"""

import copy
import re

import numpy as np
import torch
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import general_text, make_document
from data.judgement import correct, read_judgement, vote_plurality
from data.tokenizer import CHECKS, END, PAD, SPECIAL
from data.world import DOMAINS, VERIFIABLE, seed_of
from experiments import study
from experiments.judges import asked
from experiments.truth import share
from model import Optimizer, learning_rate, pad_left, save_model, token_logp
from sample import LOOK_EVERY, ROWS, draw, uniforms

CALL, RUN = len(SPECIAL) + 0xFE, len(SPECIAL) + 0xFF                         # they begin and end a call
ARMS = ("control", "tools")
K = 8                                              # samples of a vote

# ----------------------------------------------------------------------------------------
# Calls


def result_of(call):
    """The result of a call, or None if it is not a proper one.

    >>> result_of(" sum 230 481"), result_of(" sort c a b"), result_of(" reverse a b c")
    (' 711', ' a b c', ' c b a')
    >>> result_of(" sum 230"), result_of(" sort"), result_of(" open a b")
    (None, None, None)
    """
    if numbers := re.fullmatch(r" sum ([0-9]{1,4}) ([0-9]{1,4})", call):
        return f" {int(numbers[1]) + int(numbers[2])}"
    if letters := re.fullmatch(r" (sort|reverse)((?: [a-z]){1,9})", call):
        given = letters[2].split()
        return " " + " ".join(sorted(given) if letters[1] == "sort" else given[::-1])
    return None


def forced_after(tok, ids):
    """What the sampler writes after ids that end with RUN: the ids of a result. [] if that is no proper call."""
    if CALL not in ids:
        return []
    start = max(i for i, token in enumerate(ids) if token == CALL)
    structure, inside = [token for token in ids[:start] if token < len(SPECIAL)], ids[start + 1:-1]
    if structure[-1:] != [CHECKS] or RUN in inside or min(inside, default=0) < len(SPECIAL):
        return []
    result = result_of(tok.text(inside))
    return tok.encode([result]) if result else []


def calls_of(tok, ids):
    """The proper calls of a judgement, (start, result, end) of each: where CALL, result, and rest begin."""
    found = []
    for i, token in enumerate(ids):
        if token == RUN and (forced := forced_after(tok, ids[:i + 1])):
            start = max(at for at in range(i) if ids[at] == CALL)
            found.append((start, i + 1, min(len(ids), i + 1 + len(forced))))
    return found


def chosen(tok, ids):
    """For each id: did the policy choose it? (It did not choose results.)"""
    forced = {i for _, result, end in calls_of(tok, ids) for i in range(result, end)}
    return [i not in forced for i in range(len(ids))]


def without_calls(tok, ids):
    inside = {i for start, _, end in calls_of(tok, ids) for i in range(start, end)}
    return [token for i, token in enumerate(ids) if i not in inside]

# ----------------------------------------------------------------------------------------
# The sampler: sample.complete, generate and judge, with results that are forced


@torch.inference_mode()
def complete(model, tok, prompts, seeds, temperature):
    ids, padding = pad_left(prompts)                                         # (B, T), (B,)
    cache = model.new_cache(padding, ids.size(1))
    x, rows = model(ids, cache=cache)[:, -1], torch.arange(len(prompts))     # (B, C), (B,)
    cache = cache.select(rows, LOOK_EVERY)
    limit = model.cfg.block_size - torch.tensor([len(prompt) for prompt in prompts])         # (B,)
    steps = int(limit.max())
    u = torch.from_numpy(np.stack([uniforms(seed, steps) for seed in seeds]))                # (B, steps)
    tokens = torch.full((len(prompts), steps), PAD)                          # (B, steps)
    done, active = [None] * len(prompts), rows
    waiting = [[] for _ in prompts]                # results, of which a row writes a token at each step
    for t in range(steps):
        tokens[:, t], _ = draw(model.logits(x), u[:, t], temperature)
        for row, forced in enumerate(waiting):
            if forced:
                tokens[row, t] = forced.pop(0)
        for row in (tokens[:, t] == RUN).nonzero()[:, 0].tolist():
            waiting[row] = forced_after(tok, tokens[row, :t + 1].tolist())
        if (t + 1) % LOOK_EVERY == 0 or t + 1 == steps:
            ended = (tokens == END).any(dim=1) | (t + 1 >= limit)            # (B,)
            for row in ended.nonzero()[:, 0].tolist():
                written = tokens[row, :limit[row]].tolist()
                done[active[row]] = written[:written.index(END) + 1] if END in written else written
            going = (~ended).nonzero()[:, 0]
            if len(going) == 0:
                return done
            active, limit, waiting = active[going], limit[going], [waiting[row] for row in going]
            tokens, u, cache = tokens[going], u[going], cache.select(going, LOOK_EVERY)
        x = model(tokens[:, t:t + 1], cache=cache)[:, -1]                    # (B, C)


def judge(model, tok, items, k, seed, temperature=1.0, shuffle=True, hinted=False):
    """As sample.judge. Critiques and scores are read without the calls; ids keep them. (logp stays 0.)"""
    groups = [asked(tok, item, k, seed, shuffle, hinted) for item in items]
    flat = sorted((j for group in groups for j in group), key=lambda j: -len(j.prompt))
    for start in range(0, len(flat), ROWS):
        batch = flat[start:start + ROWS]
        for j, ids in zip(batch, complete(model, tok, [j.prompt for j in batch], [j.seed for j in batch],
                                          temperature)):
            j.ids, plain = ids, without_calls(tok, ids)
            try:
                if {CALL, RUN} & set(plain):
                    raise ValueError("bad call")
                j.principles, j.critiques, j.scores = read_judgement(tok, plain, j.order)
            except ValueError as reason:
                j.status = str(reason)
    return groups

# ----------------------------------------------------------------------------------------
# The corpus


def call_for(query):
    """The call that answers a query, or None.

    >>> call_for("for my boss: what is 1+2?"), call_for("sort b a"), call_for("capital of peru?")
    (' sum 1 2', ' sort b a', None)
    """
    if numbers := re.search(r"what is (\d+)\+(\d+)\?$", query):
        return f" sum {numbers[1]} {numbers[2]}"
    letters = re.search(r"(?:sort|reverse)(?: [a-z])+$", query)
    return " " + letters[0] if letters else None


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

# ----------------------------------------------------------------------------------------
# RL, without loss on results


def reinforce(run, reference, items):
    """spct.reinforce -> the policy, and for each step the mean number of calls in a verifiable judgement"""
    cfg, tok, curve = run.config(), run.tok, []
    policy = copy.deepcopy(reference)
    optimizer = Optimizer(policy, getattr(torch, cfg.dtype))
    for step in range(cfg.rl_steps):
        batch = [items[i % len(items)] for i in range(step * cfg.rl_items, (step + 1) * cfg.rl_items)]
        groups = judge(policy, tok, batch, cfg.group, seed_of(cfg.seed, "rl", step), shuffle=False)
        curve.append(calls_in(tok, [j for group, item in zip(groups, batch) if item.domain in VERIFIABLE
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


def calls_in(tok, judgements):
    """The mean number of proper calls in a judgement. nan if there is none"""
    return float(np.mean([len(calls_of(tok, j.ids)) for j in judgements])) if judgements else np.nan

# ----------------------------------------------------------------------------------------
# One run


def policies(run, arm, tokens):
    """-> {stage: name of a model}, {"RL", "kept": calls at each step of RL, and in what RFT was trained on}"""
    cfg, items, title = run.config(), run.training_items(), f"tools, {arm}"
    change = with_calls if arm == "tools" else lambda document: document
    base = run.model(f"{title}, base", lambda: study.reread(
        run, lambda index: change(make_document(cfg.seed, index)), tokens))
    start, hard, kept = study.rft(run, title, base, items, lambda rng: change(general_text(rng)), judge,
                                  lambda ids: chosen(run.tok, ids))

    def make():
        policy, curve = reinforce(run, start, hard)
        save_model(run.path(f"{title}, rl.pt"), policy)
        domain = {item.id: item.domain for item in items}
        return {"RL": np.array(curve), "kept": np.array([calls_in(
            run.tok, [j for j in kept if domain[j.item] in VERIFIABLE])])}
    calls = run.numbers(f"{title}, calls in training", make)
    return {stage: f"{title}, {stage}" for stage in ("base", "rft", "rl")}, calls


def bound(j, item):
    """The scores of a judgement, if its verdicts on "correct" were true. None if it does not parse."""
    weight = dict(j.principles or {}).get("correct", 0)
    if j.scores is None or item.domain not in VERIFIABLE:
        return j.scores
    scores = []
    for score, critique, truth in zip(j.scores, j.critiques, item.truth):
        good = any(name == "correct" and verdict for name, _, verdict in critique["checks"])
        scores.append(score + weight * (truth["correct"][0] - good))
    return scores


def of_judgements(tok, items, judgements):
    """{measure: a number for each item}. On calls and checks of "correct": nan where there is none."""
    rows = []
    for item, j in zip(items, judgements):
        calls = [tok.text(j.ids[start + 1:result - 1]) for start, result, _ in calls_of(tok, j.ids)]
        checks = [(evidence, good, truth["correct"]) for critique, truth in zip(j.critiques or [], item.truth)
                  for name, evidence, good in critique["checks"] if name == "correct" and evidence]
        right = share([call == call_for(item.query) for call in calls])
        evidence = share([given == true for given, _, (_, true) in checks])
        rows.append({"greedy": correct(j.scores, item.gold), "calls": len(calls), "proper arguments": right,
                     "true evidence": evidence, "true evidence after them": evidence if right == 1 else np.nan,
                     "true verdicts": share([good == met for _, good, (met, _) in checks]),
                     "bound": correct(bound(j, item), item.gold), "tokens": len(j.ids)})
    return {m: np.array([row[m] for row in rows], float) for m in rows[0]}


def measure(run, name, count):
    """-> {measure: a number for each item} of greedy judgements, and of a vote"""
    cfg, model, found = run.config(), run.model(name), {}
    for split, n in (("test", count), ("ood", count // 2)):
        items, seed = run.items(split, n), seed_of(cfg.seed, "study", split)
        one = [group[0] for group in judge(model, run.tok, items, 1, seed, 0, shuffle=False)]
        found |= {f"{split}, {m}": values for m, values in of_judgements(run.tok, items, one).items()}
        votes = [vote_plurality([j.scores for j in group])
                 for group in judge(model, run.tok, items, K, seed, cfg.temperature)]
        found[f"{split}, plurality"] = np.array([float(correct(v, item.gold)) for v, item in zip(votes, items)])
    return found


def study_run(run, sizes):
    tokens, count = sizes
    found = {}
    for arm in ARMS:
        names, found[f"{arm}, calls"] = policies(run, arm, tokens)
        for stage, name in names.items():
            found[f"{arm}, {stage}"] = run.numbers(f"{name}, {count}", lambda: measure(run, name, count))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw_figure(result):
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    left.plot(np.transpose(result["calls in RL"]), "o-", ms=3)
    left.set(xlabel="step of RL", ylabel="calls in a judgement of sums, sort and reverse", ylim=(0, None))
    for i, arm in enumerate(ARMS):
        bars = [result[domain][f"{arm}, rl"]["test, greedy"] or [0, 0] for domain in VERIFIABLE]
        right.bar(np.arange(len(bars)) + 0.4 * i, [b[0] for b in bars], 0.35, yerr=[b[1] for b in bars], label=arm)
    right.set_xticks(np.arange(len(bars)) + 0.2, VERIFIABLE)
    right.set_ylabel("greedy accuracy after RL")
    right.legend()
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (6000, 12) if quick else (1_000_000, 600)
    items = {split: [run.items(split, count) for run in runs]
             for split, count in (("test", sizes[1]), ("ood", sizes[1] // 2))}
    found = [study_run(run, sizes) for run in runs]

    def column(title, m, domains):
        """A measure of each run: a number for each item of these domains"""
        return [f[title][m][[item.domain in domains for item in mine]]
                for f, mine in zip(found, items[m.split(",")[0]])]

    def less(title, other, m, domains):
        queries = [[item.query for item in mine if item.domain in domains] for mine in items[m.split(",")[0]]]
        return study.difference(column(title, m, domains), column(other, m, domains), queries)

    of_training = lambda m: np.round([f["tools, calls"][m] for f in found], 3).tolist()
    result = {"calls in RL": of_training("RL"), "calls in what RFT was trained on": of_training("kept")}
    titles = [f"{arm}, {stage}" for arm in ARMS for stage in ("base", "rft", "rl")]
    groups = {"all": DOMAINS, "verifiable": VERIFIABLE, **{domain: [domain] for domain in VERIFIABLE}}
    for name, domains in groups.items():
        result[name] = {t: {m: study.number(column(t, m, domains)) for m in found[0][t]} for t in titles}
        result[f"{name}, less the control"] = {t: {
            m: less(t, t.replace("tools", "control"), m, domains) for m in found[0][t]} for t in titles[3:]}
    rows = [["judge", "greedy", "less the control", *VERIFIABLE, "out of distribution, verifiable",
             "less the control", "calls", "proper arguments", "true evidence", "true verdicts", "bound"]]
    for title in titles:
        shown = lambda name, m, of=title: study.in_words(result[name].get(of, {}).get(m))
        rows.append([title, shown("all", "test, greedy"), shown("all, less the control", "test, greedy"),
                     *(shown(domain, "test, greedy") for domain in VERIFIABLE),
                     shown("verifiable", "ood, greedy"), shown("verifiable, less the control", "ood, greedy"),
                     *(shown("verifiable", f"test, {m}") for m in (
                         "calls", "proper arguments", "true evidence", "true verdicts")),
                     shown("all", "test, bound")])
    study.save("tools", runs, result, rows, draw_figure(result))


if __name__ == "__main__":
    run_command(main)
