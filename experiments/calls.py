"""
Calls of tools in a judgement, and a sampler that answers them (for tools.py).

A call begins with the token CALL, and ends with RUN. No text has these tokens: they are the bytes 0xFE and 0xFF.
The result follows, and the sampler writes its tokens itself. A call is run only if it stands after <checks>, and
is a sum, or sort or reverse with letters. Nothing is ever executed from text. Before a judgement is read, its
calls are taken out again, with their results. If CALL or RUN is left then, the judgement does not parse.
"""

import re

import numpy as np
import torch

from data.judgement import read_judgement
from data.tokenizer import CHECKS, END, PAD, SPECIAL
from experiments.judges import asked
from model import pad_left
from sample import LOOK_EVERY, ROWS, draw, uniforms

CALL, RUN = len(SPECIAL) + 0xFE, len(SPECIAL) + 0xFF


def result_of(call):
    """The result of a call, or None if this is no proper call.

    >>> result_of(" 230+481="), result_of(" sort c a b"), result_of(" reverse a b c")
    ('711', ' a b c', ' c b a')
    >>> result_of(" 230+="), result_of(" sort"), result_of(" open a b")
    (None, None, None)
    """
    if numbers := re.fullmatch(r" ([0-9]{1,4})\+([0-9]{1,4})=", call):
        return str(int(numbers[1]) + int(numbers[2]))
    if letters := re.fullmatch(r" (sort|reverse)((?: [a-z]){1,9})", call):
        given = letters[2].split()
        return " " + " ".join(sorted(given) if letters[1] == "sort" else given[::-1])
    return None


def call_for(query):
    """The call that answers a query, or None.

    >>> call_for("for my boss: what is 1+2?"), call_for("sort b a"), call_for("capital of peru?")
    (' 1+2=', ' sort b a', None)
    """
    if numbers := re.search(r"what is (\d+\+\d+)\?$", query):
        return f" {numbers[1]}="
    letters = re.search(r"(?:sort|reverse)(?: [a-z])+$", query)
    return " " + letters[0] if letters else None


def forced_after(tok, ids, tool=result_of):
    """What the sampler writes after ids that end with RUN: the ids of a result. [] if that is no proper call."""
    if CALL not in ids:
        return []
    start = max(i for i, token in enumerate(ids) if token == CALL)
    structure, inside = [token for token in ids[:start] if token < len(SPECIAL)], ids[start + 1:-1]
    if structure[-1:] != [CHECKS] or RUN in inside or min(inside, default=0) < len(SPECIAL):
        return []
    result = tool(tok.text(inside))
    return tok.encode([result]) if result else []


def calls_of(tok, ids, tool=result_of):
    """The calls of a judgement, (start, result, end) of each: where CALL, the result, and what follows begin."""
    found = []
    for i, token in enumerate(ids):
        if token == RUN and (forced := forced_after(tok, ids[:i + 1], tool)):
            start = max(at for at in range(i) if ids[at] == CALL)
            found.append((start, i + 1, min(len(ids), i + 1 + len(forced))))
    return found


def chosen(tok, ids):
    """For each id: did the policy choose it? (It did not choose results.)"""
    forced = {i for _, result, end in calls_of(tok, ids) for i in range(result, end)}
    return [i not in forced for i in range(len(ids))]


def without_calls(tok, ids, tool=result_of):
    """The ids without calls and their results."""
    inside = {i for start, _, end in calls_of(tok, ids, tool) for i in range(start, end)}
    return [token for i, token in enumerate(ids) if i not in inside]

# ----------------------------------------------------------------------------------------
# The sampler: sample.complete and sample.judge, but calls are answered (on the CPU)


@torch.inference_mode()
def complete(model, tok, batch, temperature, tools):
    """tools: for each judgement of the batch a function of a call -> its result. None: it cannot call."""
    prompts = [j.prompt for j in batch]
    ids, padding = pad_left(prompts)                                         # (B, T), (B,)
    cache = model.new_cache(padding, ids.size(1))
    x, rows = model(ids, cache=cache)[:, -1], torch.arange(len(prompts))     # (B, C), (B,)
    cache = cache.select(rows, LOOK_EVERY)
    limit = model.cfg.block_size - torch.tensor([len(prompt) for prompt in prompts])         # (B,)
    steps = int(limit.max())
    u = torch.from_numpy(np.stack([uniforms(j.seed, steps) for j in batch]))                 # (B, steps)
    tokens = torch.full((len(prompts), steps), PAD)                          # (B, steps)
    done, active = [None] * len(prompts), rows
    waiting = [[] for _ in prompts]                # results, of which a row writes a token at each step
    for t in range(steps):
        logits = model.logits(x)                                             # (B, V)
        without = [row for row, i in enumerate(active.tolist()) if tools[i] is None]
        logits[without, CALL] = -torch.inf
        tokens[:, t], _ = draw(logits, u[:, t], temperature)
        # A row that waits for a result writes its next token in place of the one that was sampled.
        for row, forced in enumerate(waiting):
            if forced:
                tokens[row, t] = forced.pop(0)
        for row in (tokens[:, t] == RUN).nonzero()[:, 0].tolist():
            waiting[row] = forced_after(tok, tokens[row, :t + 1].tolist(), tools[active[row]])
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


def write(model, tok, groups, temperature, tool=lambda j: result_of):
    """Write the judgements of groups. tool(judgement) -> its tool, as for complete. Critiques and scores are read
    without the calls; ids keep them. (logp stays 0.)"""
    flat = sorted((j for group in groups for j in group), key=lambda j: -len(j.prompt))
    for start in range(0, len(flat), ROWS):
        batch = flat[start:start + ROWS]
        tools = [tool(j) for j in batch]
        for j, mine, ids in zip(batch, tools, complete(model, tok, batch, temperature, tools)):
            j.ids, plain = ids, without_calls(tok, ids, mine)
            try:
                if {CALL, RUN} & set(plain):
                    raise ValueError("bad call")
                j.principles, j.critiques, j.scores = read_judgement(tok, plain, j.order)
            except ValueError as reason:
                j.status = str(reason)
    return groups


def judge(model, tok, items, k, seed, temperature=1.0, shuffle=True, hinted=False):
    """As sample.judge, but the judge may call, and log-probabilities are not kept."""
    return write(model, tok, [asked(tok, item, k, seed, shuffle, hinted) for item in items], temperature)
