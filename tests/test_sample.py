import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metarm
import sample
from data import UserError
from data.annotators import annotate
from data.judgement import Judgement, judgement_parts, prompt_parts
from data.tokenizer import CHECKS, CRITIQUE, END, HINT, RESPONSE, SCORES, TOTAL
from data.world import Item, make_item
from metarm import RULES
from sample import check_length, decide, draw, generate, judge, uniforms

# ----------------------------------------------------------------------------------------
# The sampler

PROMPTS = [(5, 6, 7), (9,) * 20, (5, 6, 7), (8, 12), (30, 31, 32, 33, 34, 35), (8, 12), (13,) * 40]


@pytest.fixture
def flat(tiny):
    """A model whose samples differ. Some of them end, others fill the context."""
    model = tiny()
    model.wte.weight.data *= 0.4
    return model


@torch.no_grad()
def slow_sample(model, prompt, seed, temperature):
    """The obvious sampler: no cache, no batch, one forward pass over everything for each token."""
    ids, room, logp = list(prompt), model.cfg.block_size - len(prompt), 0.0
    u = uniforms(seed, room)
    for t in range(room):
        logits = model.logits(model(torch.tensor([ids])))[0, -1].double()
        p = (logits / (temperature or 1)).softmax(0)
        token = int(np.searchsorted(p.cumsum(0).numpy(), u[t], side="right") if temperature else p.argmax())
        logp += float(p[token].log())
        ids.append(token)
        if token == END:
            break
    return ids[len(prompt):], logp


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
def test_sampler_equals_slow_sampler(flat, temperature):
    """Guards against every short cut at once: cache, ragged batch, shared prompts, dropped rows, END, end of
    context, and log-probabilities of another distribution than the one that was sampled."""
    for (ids, logp), prompt, seed in zip(generate(flat, PROMPTS, range(7), temperature), PROMPTS, range(7)):
        expected, expected_logp = slow_sample(flat, prompt, seed, temperature)
        assert ids == expected and logp == pytest.approx(expected_logp, abs=2e-3)


def test_samples_do_not_depend_on_their_batch(flat, monkeypatch):
    """Guards against random numbers that depend on the place in the batch, one first token for all samples of
    a prompt, and rows that are lost, cut or mixed up where some have ended."""
    prompts, seeds = PROMPTS * 4, range(100, 128)
    together = generate(flat, prompts, seeds)
    alone = [generate(flat, [p], [s])[0] for p, s in zip(prompts[:14], seeds)]
    assert [ids for ids, _ in together[:14]] == [ids for ids, _ in alone]
    sizes, complete = [], sample.complete
    monkeypatch.setattr(sample, "complete", lambda *args: sizes.append(len(args[1])) or complete(*args))
    for rows, look in ((5, 3), (28, 1), (9, 100)):
        monkeypatch.setattr(sample, "ROWS", rows)
        monkeypatch.setattr(sample, "LOOK_EVERY", look)
        in_parts = generate(flat, prompts, seeds)
        assert [ids for ids, _ in in_parts] == [ids for ids, _ in together]
        np.testing.assert_allclose(*([logp for _, logp in x] for x in (in_parts, together)), atol=1e-3)
    assert sizes == [5] * 5 + [3, 28, 9, 9, 9, 1]
    assert len({ids[0] for ids, _ in generate(flat, [(5, 6)] * 50, range(50))}) > 5


def test_draw_follows_the_softmax():
    """Guards against an off-by-one in the inverse CDF: on an even grid of u, counts are the probabilities."""
    logits, N = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]), 20_000
    u = (torch.arange(N) + 0.5) / N
    for temperature in (1.0, 0.5):
        ids, logp = draw(logits.expand(N, 5), u, temperature)
        p = np.exp(logits.numpy() / temperature)
        p /= p.sum()
        assert np.abs(np.bincount(ids, minlength=5) / N - p).max() < 2 / N + 1e-6
        np.testing.assert_allclose(logp.exp().numpy(), p[ids], rtol=1e-4)
    ids, logp = draw(logits[None], u[:1], 0)
    assert ids.tolist() == [4] and logp.item() == pytest.approx(logits.log_softmax(0)[4].item())
    assert draw(logits[None], torch.tensor([1.0]), 1.0)[0].tolist() == [4]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draw_never_takes_a_hopeless_token(temperature):
    """Guards against a u that is not scaled, or the wrong way: the cumulative sum is rounded, and a u above
    its end would take the last token however unlikely. The largest u must yield the last likely token."""
    logits = torch.randn(500, 704, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    logits[:, 640:] = -100.0                       # hopeless, the last token among them
    assert ((logits / temperature).softmax(-1).cumsum(-1)[:, -1] < 1).any()  # else there is nothing to see
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    ids, logp = draw(logits, torch.full((500,), largest), temperature)
    assert (ids == 639).all() and logp.exp().min() > 1e-6


def test_uniforms():
    """Guards against random numbers that are shared, that change with their count, or are not uniform."""
    u = uniforms(2 ** 62 + 1, 10_000)
    assert u.dtype == np.float32 and 0 <= u.min() and u.max() < 1
    assert np.abs(np.histogram(u, 10, (0, 1))[0] - 1000).max() < 150
    assert (uniforms(2 ** 62 + 1, 10) == u[:10]).all() and not (uniforms(3, 10) == uniforms(4, 10)).any()

# ----------------------------------------------------------------------------------------
# Judging

ITEM = Item("x", "s", "which?", ["two", "seven", "four", "nine"], [2, 7, 4, 9])
POINTS = {"two": 2, "seven": 7, "four": 4, "nine": 9}


@pytest.fixture
def mock(tok, monkeypatch):
    """In place of the model a judge that scores each response by its text. It does not end where mock.fails
    of the seed. mock.calls: what it was given."""
    state = SimpleNamespace(fails=lambda seed: False, calls=[])

    def judged(model, prompts, seeds, temperature):
        state.calls.append((prompts, seeds, temperature))
        out = []
        for prompt, seed in zip(prompts, seeds):
            cut = [i for i, t in enumerate(prompt) if t in RESPONSE] + [len(prompt) - 1]
            places = [str(POINTS[tok.text(prompt[a + 1:b]).strip()]) for a, b in zip(cut, cut[1:])]
            critiques = [x for r, s in zip(RESPONSE, places) for x in (r, CHECKS, " looks fine", TOTAL, s)]
            parts = [" a 10", CRITIQUE, *critiques, SCORES, " ".join(places), END]
            out.append((tok.encode(parts[:-1] if state.fails(seed) else parts), -1.5))
        return out
    monkeypatch.setattr(sample, "generate", judged)
    return state


def test_judge(tok, tiny, mock):
    """Guards against scores that stay with the place when the responses are shuffled, one order or one seed
    for all samples, hints at another response, and orders from the global generator."""
    random.seed(1)
    [group] = judge(tiny(), tok, [ITEM], 240, 7)
    random.seed(2)
    assert judge(tiny(), tok, [ITEM], 240, 7) == [group] and mock.calls[0][2] == 1.0
    orders = [tuple(j.order) for j in group]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24 and min(counts) > 2 and [j.sample for j in group] == list(range(240))
    assert mock.calls[0][1] == [j.seed for j in group] and len({j.seed for j in group}) == 240
    assert mock.calls[0][0] == [tuple(j.prompt) for j in group]
    for j in group:
        assert j.scores == [c["total"] for c in j.critiques] == [2, 7, 4, 9] and j.principles == [["a", 10]]
        assert j.prompt == tok.encode(prompt_parts("which?", [ITEM.responses[i] for i in j.order]))
        assert (j.item, j.status, j.logp, j.meta) == ("x", "ok", -1.5, None) and j.ids[-1] == END
    for j in judge(tiny(), tok, [ITEM], 20, 7, hinted=True)[0]:
        told = tok.readable(j.prompt)
        assert told.count("<hint>") == told.count(" nine<hint>") == 1 and j.scores == [2, 7, 4, 9]
    other = Item("y", "s", "who?", ["four", "two"], [4, 2])
    plain = judge(tiny(), tok, [ITEM], 3, 0, 0.5, shuffle=False)[0]
    mock.fails = lambda seed: seed == plain[1].seed
    both = judge(tiny(), tok, [other, ITEM], 3, 0, 0.5, shuffle=False)
    assert mock.calls[-1][2] == 0.5 and all(j.order == [0, 1, 2, 3] and HINT not in j.prompt for j in plain)
    assert [j.seed for j in both[1]] == [j.seed for j in plain] != [j.seed for j in both[0]]
    assert [(j.status, j.scores) for j in both[1]] == [
        ("ok", [2, 7, 4, 9]), ("no end", None), ("ok", [2, 7, 4, 9])]
    assert [j.scores for j in both[0]] == [[4, 2]] * 3
    assert {j.seed for j in judge(tiny(), tok, [ITEM], 3, 1)[0]}.isdisjoint(j.seed for j in plain)


def test_decide():
    """Guards against a best response that is named although the vote ties or nobody voted, and a share of
    those that parse in place of all samples."""
    made = lambda *ballots: [Judgement("x", 0, [0, 1], 0, [], [1], 0.0, scores=scores, meta=float(i))
                             for i, scores in enumerate(ballots)]
    for rule in RULES.values():
        assert decide(made([5, 5]), rule)["best"] is None and decide(made([5, 5]), rule)["agree"] == 0
        assert decide(made(None), rule) == {"best": None, "votes": None, "agree": 0.0}
    mixed = made([9, 1], [4, 5], None, [3, 3], [6, 2], [1, 9])
    for name, best, votes in (("sum", 0, [23, 20]), ("plurality", 0, [(2.5, 23), (2.5, 20)]),
                              ("guided", 1, [10, 14])):
        assert decide(mixed, RULES[name]) == {"best": best, "votes": votes, "agree": 0.3333}
    assert decide(made([7]), RULES["plurality"]) == {"best": 0, "votes": [(1.0, 7)], "agree": 1.0}


def test_what_may_not_fit_is_refused(tok):
    """Guards against items that are accepted although their judgements are cut off: no careful judgement is
    longer than the room that is asked for. Items of the world must all fit."""
    for i in range(200):
        item = make_item(0, "ood" if i % 2 else "test", i)
        size = len(tok.encode([*prompt_parts(item.query, item.responses),
                               *judgement_parts(*annotate(random.Random(i), item, "expert"))]))
        with pytest.raises(UserError, match=f"{item.id} is too long"):
            check_length(tok, item, size - 1)
        check_length(tok, item, 368)
    item = Item("x", "s", "zq " * 2 + "zq", ["zq zq", "zq"])
    tokens = len(tok.encode(prompt_parts(item.query, item.responses))) + len(tok.encode([" zq zq", " zq"]))
    with pytest.raises(UserError, match=f"x is too long: it may need {tokens + 135} tokens.* context has 99"):
        check_length(tok, item, 99)
    check_length(tok, item, tokens + 135)

# ----------------------------------------------------------------------------------------
# The command line

def run(folder, *args):
    sample.main(["--run", folder, "--device", "cpu", *args])


QUESTION = ["--query", "which? 🎉", *[x for text in ITEM.responses for x in ("--response", text)]]


def test_a_query(folder, mock, capsys):
    """Guards against a vote, a share or a score that is shown beside another response."""
    run(folder, *QUESTION, "-k", "4")
    assert capsys.readouterr().out == "query       which? 🎉\nprinciples  a 10\n" + "".join(
        f"response {i + 1}  {text}\n            looks fine\n            score {POINTS[text]}\n"
        for i, text in enumerate(ITEM.responses)) + "\nThat was judgement 1 of 4\n" + "".join(
        f"response {i + 1}  {100 * (i == 3):3}% of the votes, sum of scores {4 * POINTS[text]}\n"
        for i, text in enumerate(ITEM.responses)) + "best        response 4; 100% of the samples pick it\n"
    assert mock.calls[0][2] == 0.5
    seeds = mock.calls[0][1]
    mock.fails = lambda seed: seed == seeds[0]
    run(folder, *QUESTION, "-k", "4", "--vote", "sum", "--temperature", "0")
    told = capsys.readouterr().out
    assert "\nThat was judgement 2 of 4; 1 do not parse and do not vote\nresponse 1  sum of scores 6\n" in told
    assert told.endswith("best        response 4; 75% of the samples pick it\n") and mock.calls[-1][2] == 0
    mock.fails = lambda seed: False
    run(folder, *QUESTION[:4])                     # one response: nothing to choose from
    assert "best " not in capsys.readouterr().out
    run(folder, *QUESTION[:4], "--response", "two")
    assert capsys.readouterr().out.endswith("best        none, it is a tie\n")
    mock.fails = lambda seed: True
    run(folder, *QUESTION)
    assert "No judgement parses: the judge knows the toy world only" in capsys.readouterr().out


def test_a_query_as_json(folder, mock, capsys, monkeypatch):
    """Guards against JSON that lacks what was sampled, a seed or a policy that is not used, and a guided vote
    without the Meta RM."""
    loaded, load = [], sample.load_model
    monkeypatch.setattr(sample, "load_model", lambda path, *rest: loaded.append(path) or load(path, *rest))
    monkeypatch.setattr(metarm, "rate", lambda model, groups: [setattr(j, "meta", 1.0) for j in groups[0]])
    for vote, votes in (("sum", [4, 14, 8, 18]), ("plurality", [[0, 4], [0, 14], [0, 8], [2, 18]]),
                        ("guided", [2, 7, 4, 9])):
        run(folder, *QUESTION, "-k", "2", "--json", "--seed", "5", "--vote", vote, "--policy", "base")
        told = json.loads(capsys.readouterr().out)
        assert told["votes"] == votes and (told["best"], told["agree"], told["id"]) == (3, 1.0, "the query")
        assert (told["query"], told["responses"]) == ("which? 🎉", ITEM.responses)
        assert [j["scores"] for j in told["judgements"]] == [[2, 7, 4, 9]] * 2
        assert [j["meta"] for j in told["judgements"]] == [1.0 if vote == "guided" else None] * 2
    assert [path[-7:] for path in loaded] == ["base.pt"] * 3 + ["meta.pt"]
    run(folder, *QUESTION, "-k", "2", "--json", "--seed", "6")
    assert mock.calls[-1][1] != mock.calls[-2][1] == mock.calls[0][1] and loaded[-1].endswith("/rl.pt")


def test_a_file(folder, mock, capsys, tmp_path):
    """Guards against an accuracy that counts the items of another domain, and JSON of other items."""
    rows = [{"prompt": "q", "chosen": c, "rejected": r, "subset": s} for c, r, s in (
        ("nine", ["two", "four"], "good"), ("two", "nine", "bad"), ("nine", "two", "bad"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    run(folder, "--data", str(path), "-k", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["domain", "items", "one", "sample", "plurality", "of", "3"]
    shown = {line.split()[0]: line.split() for line in lines if line}
    assert [shown[d][1] for d in ("bad", "good", "all")] == ["2", "1", "3"]
    for domain, accuracy in (("bad", 0.5), ("good", 1), ("all", 2 / 3)):
        assert float(shown[domain][2]) == pytest.approx(accuracy, abs=0.006)
    run(folder, "--data", str(path), "-k", "1", "--json")
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["line-1", "line-2", "line-3"]


def test_the_bundled_judge(capsys):
    """Guards against a bundled checkpoint that the code cannot load, or whose words it no longer knows."""
    sample.main(["--query", "for my boss: what is 230+481?", "--response", "it is 611", "--response",
                 "it is 711 kindly", "--device", "cpu", "--json", "--vote", "guided"])
    told = json.loads(capsys.readouterr().out)
    assert told["best"] == 1 and all(j["status"] == "ok" and j["meta"] for j in told["judgements"])


@pytest.mark.parametrize("args, message", [
    ([*QUESTION, "-k", "0"], "-k must be"), ([*QUESTION, "--temperature", "-1"], "--temperature 0, or 0.01"),
    ([*QUESTION, "--temperature", "nan"], "-k must be"), ([*QUESTION, "--temperature", "inf"], "-k must be"),
    ([*QUESTION, "--temperature", "1e-38"], "or 0.01"),
    ([], "Give either --data"), ([*QUESTION, "--data", "x"], "Give either --data"),
    (["--data", "x", "--response", "a"], "Give either --data"), (["--query", "a"], "1 to 4 times, not 0"),
    ([*QUESTION, "--response", "a"], "1 to 4 times, not 5 times"), (["--data", "none"], "none: No such file"),
    (["--query", "\udc80", "--response", "a"], "UTF-8"), (["--query", "a", "--response", "\udc80"], "UTF-8"),
    (["--query", "a " * 400, "--response", "a"], "the query is too long"),
    ([*QUESTION, "--device", "mps"], "--device mps is not available"),
    ([*QUESTION, "--run", "none"], "none/token")])
def test_command_lines_that_are_refused(folder, monkeypatch, args, message):
    """Guards against a traceback, or a run that starts, where a flag or a file is wrong."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        run(folder, *args)


def test_consoles(folder, shell):
    """Guards against tracebacks on a console without emojis, for a reader that leaves early, and for wrong
    flags."""
    ask = f'python sample.py --device cpu --run {folder} -k 2 --query "🎉 1+1?" --response a --response b'
    done = shell(ask, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and b"query       ? 1+1?" in done.stdout and b"Traceback" not in done.stderr
    done = shell(ask + " --policy none.pt")
    assert done.returncode == 2 and b"invalid choice" in done.stderr
    done = shell(ask.replace(folder, folder + "/none"))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"error: ")
    done = shell(ask + " --json > >(true); exit $?")       # like `| head -1`, but sure to be gone
    assert (done.returncode, done.stderr) == (1, b"")
