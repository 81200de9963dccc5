"""
A tool inside the critique: does a judge learn to call it, and what does that win?

The paper leaves tools to others (one is TIR-Judge, arXiv 2510.23038). Here the judge may write a call while it
checks a response. The sampler then runs one of three pure functions, and writes the result's tokens itself:

    <checks> correct:<hint> sum 230 481<query> 711 230+481=711 got 7 7 1 1 1 1, good 4 polite: ...

<hint> begins a call and <query> ends it: two special tokens that no judgement has otherwise. (The vocabulary has
no free one.) The result's tokens, " 711", were not chosen by the policy: they carry no loss, neither in RFT nor in
RL. Before a judgement is read, its calls are taken out again.

A call is run only if it stands after <checks>, and is one of the three functions with proper arguments. Any other
is left where it is: the judgement then has a special token too many, and does not parse. Nothing is ever executed
from text: a name is looked up, and its arguments are matched.

Two judges of each run: the base model reads a million tokens more, in which experts call a tool for the first
response where one applies, or never (the control). RFT and RL follow. Bound: all verdicts on sums, sort and
reverse are true, and nothing else changes.
"""

import copy
import random
import re

import numpy as np
import torch
from matplotlib.figure import Figure

import spct
from data import run_command
from data.annotators import GENERAL, general_text, judgement_document
from data.judgement import correct, read_judgement, vote_plurality
from data.tokenizer import CHECKS, END, HINT, PAD, QUERY, SPECIAL
from data.world import VERIFIABLE, seed_of
from experiments import study
from experiments.judges import asked
from experiments.reasons import finetune, reread
from model import Optimizer, learning_rate, pad_left, save_model, token_logp
from sample import LOOK_EVERY, ROWS, draw, uniforms

CALL, RESULT = HINT, QUERY
ARMS = {"control": False, "tools": True}
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
    """What the sampler writes after ids that end with <query>: the ids of a result. [] if that is no proper call
    among checks."""
    where = [i for i, token in enumerate(ids) if token < len(SPECIAL)][-3:]
    before, special = [ids[i] for i in where[:1]], [ids[i] for i in where[1:]]
    if before not in ([CHECKS], [RESULT]) or special != [CALL, RESULT]:
        return []
    result = result_of(tok.text(ids[where[1] + 1:-1]))
    return tok.encode([result]) if result else []


def calls_of(tok, ids):
    """The proper calls of a judgement: (start, result, end), where <hint>, the result and what follows stand."""
    found = []
    for i, token in enumerate(ids):
        if token == RESULT and (forced := forced_after(tok, ids[:i + 1])):
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
        for row in (tokens[:, t] == RESULT).nonzero()[:, 0].tolist():
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
            j.ids = ids
            try:
                j.principles, j.critiques, j.scores = read_judgement(tok, without_calls(tok, ids), j.order)
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


def with_calls(query, judgement):
    """An expert's judgement, as parts -> (parts, learned) pairs, in which the first check of "correct" that has
    evidence begins with a call. (The result then stands there for the other responses, too.)"""
    call, document = call_for(query), [([], True)]
    for part in judgement:
        before, criterion, after = part.partition(" correct:") if isinstance(part, str) else (part, "", "")
        if call and criterion and not after.startswith((" good", " bad")):
            document[-1][0].extend([before + criterion, CALL, call, RESULT])
            document += [([result_of(call)], False), ([after], True)]
            call = None
        else:
            document[-1][0].append(part)
    return document


def document(seed, index, calls):
    """As make_document. calls: do experts call tools?"""
    rng = random.Random(seed_of(seed, "document", index))
    if rng.random() < GENERAL:
        return general_text(rng)
    prompt, (judgement, _) = judgement_document(seed, index, rng)
    return [prompt, *(with_calls(prompt[0][1], judgement) if calls else [(judgement, True)])]

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
        curve.append(calls_in(tok, [group for group, item in zip(groups, batch) if item.domain in VERIFIABLE]))
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


def calls_in(tok, groups):
    """The mean number of proper calls in a judgement"""
    counts = [len(calls_of(tok, j.ids)) for group in groups for j in group]
    return float(np.mean(counts)) if counts else 0.0

# ----------------------------------------------------------------------------------------
# One run


def policies(run, arm, tokens):
    """-> {stage: name of a model}, and the curve of calls over the steps of RL"""
    cfg, items = run.config(), run.training_items()
    names = {stage: f"{arm}, {stage}" for stage in ("base", "rft", "rl")}
    base = run.model(names["base"], lambda: reread(run, lambda i: document(cfg.seed, i, ARMS[arm]), tokens))
    samples = run.groups(f"{arm}, rft", lambda: judge(base, run.tok, items, cfg.n_rft, seed_of(cfg.seed, "rft")))
    several = [item for item in items if item.n > 1]
    hinted = run.groups(f"{arm}, hinted", lambda: judge(
        base, run.tok, several, 1, seed_of(cfg.seed, "hinted"), hinted=True))
    kept = [j for group, item in zip(samples, items) for j in spct.keep(group, item)]
    kept += [j for group, item in zip(hinted, several) for j in spct.keep_hinted(group, item)]
    prompts = [spct.forget_hint(j.prompt) for j in kept]
    examples = [(prompt + j.ids, [False] * len(prompt) + chosen(run.tok, j.ids))
                for prompt, j in zip(prompts, kept)]
    rft = run.model(names["rft"], lambda: finetune(run, base, examples, general_text))

    def make():
        hard = [item for group, item in zip(samples, items) if not spct.too_easy(group, item)]
        policy, curve = reinforce(run, rft, hard)
        save_model(run.path(names["rl"] + ".pt"), policy)
        return {"calls": np.array(curve)}
    return names, run.numbers(f"{arm}, curve", make)["calls"]


def bound(j, item):
    """The scores of a judgement, if its verdicts on "correct" were true. None if it does not parse."""
    if j.scores is None:
        return None
    scores = []
    for critique, truth in zip(j.critiques, item.truth):
        good = {name: is_good for name, _, is_good in critique["checks"]}
        if "correct" in truth:
            good["correct"] = truth["correct"][0]
        scores.append(max(1, sum(weight for name, weight in j.principles if good.get(name))))
    return scores


def measure(run, name, count):
    """-> {measure: a number for each item}"""
    cfg, model, found = run.config(), run.model(name), {}
    for split, n in (("test", count), ("ood", count // 2)):
        items, seed = run.items(split, n), seed_of(cfg.seed, "study", split)
        one = [group[0] for group in judge(model, run.tok, items, 1, seed, 0, shuffle=False)]
        found[f"{split}, greedy"] = np.array([float(correct(j.scores, item.gold)) for j, item in zip(one, items)])
        found[f"{split}, calls"] = np.array([float(len(calls_of(run.tok, j.ids))) for j in one])
        found[f"{split}, bound"] = np.array([float(correct(bound(j, item), item.gold))
                                             for j, item in zip(one, items)])
    items = run.items("test", count)
    groups = judge(model, run.tok, items, K, seed_of(cfg.seed, "study", "votes"), cfg.temperature)
    found["plurality"] = np.array([float(correct(vote_plurality([j.scores for j in group]), item.gold))
                                   for group, item in zip(groups, items)])
    return found


def study_run(run, sizes):
    tokens, count = sizes
    found = {}
    for arm in ARMS:
        names, curve = policies(run, arm, tokens)
        found[f"{arm}, curve"] = curve
        for stage, name in names.items():
            found[f"{arm}, {stage}"] = run.numbers(f"{name}, {count}", lambda: measure(run, name, count))
    return found

# ----------------------------------------------------------------------------------------
# Table and figure


def draw_figure(result):
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    left.plot(result["calls in RL"], "o-", ms=3)
    left.set(xlabel="step of RL", ylabel="calls in a judgement of sums, sort and reverse", ylim=(0, None))
    for i, arm in enumerate(ARMS):
        of = result["by domain"][f"{arm}, rl"]
        right.bar(np.arange(len(of)) + 0.4 * i, [v[0] if v else 0 for v in of.values()], 0.35, label=arm,
                  yerr=[v[1] if v else 0 for v in of.values()])
    right.set_xticks(np.arange(len(of)) + 0.2, list(of))
    right.set_ylabel("greedy accuracy after RL")
    right.legend()
    return figure


def main(argv):
    runs, quick = study.start(argv, __doc__)
    sizes = (6000, 12) if quick else (1_000_000, 600)
    items = [run.items("test", sizes[1]) for run in runs]
    queries = [[item.query for item in mine] for mine in items]
    found = [study_run(run, sizes) for run in runs]
    column = lambda title, m: [f[title][m] for f in found]
    of_domains = lambda values, names: [v[[item.domain in names for item in its]] for v, its in zip(values, items)]
    result = {"numbers": {}, "by domain": {}, "less the control": {}, "less the greedy judgement": {},
              "calls in RL": np.mean([f["tools, curve"] for f in found], axis=0).round(3).tolist()}
    rows = [["judge", "greedy", "less the control", f"plurality of {K}", *VERIFIABLE, "out of distribution",
             "calls in verifiable items", "bound"]]
    for arm in ARMS:
        for stage in ("base", "rft", "rl"):
            title = f"{arm}, {stage}"
            mine = result["numbers"][title] = {m: study.number(column(title, m)) for m in found[0][title]}
            mine["calls, verifiable"] = study.number(of_domains(column(title, "test, calls"), VERIFIABLE))
            by = result["by domain"][title] = {domain: study.number(of_domains(
                column(title, "test, greedy"), [domain])) for domain in VERIFIABLE}
            less = result["less the control"][title] = {m: study.difference(
                column(title, m), column(f"control, {stage}", m), queries) for m in ("test, greedy", "plurality")}
            result["less the greedy judgement"][title] = study.difference(
                column(title, "test, bound"), column(title, "test, greedy"), queries)
            rows.append([title, study.in_words(mine["test, greedy"]),
                         study.in_words(less["test, greedy"]) if arm == "tools" else "",
                         study.in_words(mine["plurality"]), *map(study.in_words, by.values()),
                         study.in_words(mine["ood, greedy"]), study.in_words(mine["calls, verifiable"]),
                         study.in_words(mine["test, bound"])])
    study.save("tools", runs, result, rows, draw_figure(result))


if __name__ == "__main__":
    run_command(main)
