"""Pages: nothing that is said becomes markup, and every control does what it says, in a browser."""

import base64
import json
import os
import random
import re
import select
import shutil
import subprocess
import tempfile
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import torch

import report
from data import UserError
from data.annotators import annotate
from data.judgement import Judgement, judgement_parts, pick, prompt_parts, read_judgement, write_judgements
from data.tokenizer import SPECIAL, load_tokenizer, save_tokenizer
from data.world import make_items
from metarm import RULES, from_policy, rate
from model import GPT, GPTConfig, load_model, save_model
from sample import BUNDLED, judge
from web import page

HOSTILE = ["</script><script>window.hacked = 1</script>", '<img src=x onerror="window.hacked = 1">',
           "\u202eabc\u2028\u2029 DATA POLICY", "x" * 10_000]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def judged(tok, items, k, skills):
    """k judgements of each item by simulated annotators. One in eight lacks its first token, and
    does not parse."""
    groups, rng = [], random.Random(0)
    for item in items:
        groups.append([])
        for sample in range(k):
            ids = tok.encode(judgement_parts(*annotate(rng, item, rng.choice(skills))))
            prompt = tok.encode(prompt_parts(item.query, item.responses))
            j = Judgement(item.id, sample, list(range(item.n)), 0, prompt, ids[rng.random() < 1 / 8:], -9.0)
            groups[-1].append(j)
            try:
                j.principles, j.critiques, j.scores = read_judgement(tok, j.ids, j.order)
                j.meta = rng.gauss(0, 1)
            except ValueError as reason:
                j.status = str(reason)
    return groups


@pytest.fixture(scope="module")
def run(tok, tmp_path_factory):
    """-> folder of a run whose judges are simulated annotators."""
    folder, stages = tmp_path_factory.mktemp("run"), {}
    items = make_items(0, "test", 24, least=2)
    single, ood = make_items(0, "test", 8, most=1), make_items(0, "ood", 8, least=2)
    every = {"base": ["careless"], "rft": ["careless", "average"], "rl": ["average", "expert"]}
    for name, skills in every.items():
        judge = lambda these, k: (these, judged(tok, these, k, skills))
        sets = {"greedy": judge(items, 1), "votes": judge(items, 8), "single": judge(single, 1),
                "ood": judge(ood, 2), "ood-greedy": judge(ood, 1)}
        stages[name], _ = report.measure(sets, 0)
        for part in ("greedy", "votes"):
            write_judgements(str(folder / f"judgements-{name}-{part}.jsonl"), sets[part][1])
    config = {"seed": 0, "eval_split": "test", "preset": "cpu", "device": "cpu", "dtype": "float32"}
    results = {"items": 24, "config": config, "stages": stages, "seconds": {"pre-training": 1.0}}
    (folder / "results.json").write_text(json.dumps(results))
    names = ("reward", "kl", "entropy", "length", "zero_variance", "parses", "ties", "checks")
    curves = [{"step": step} | dict.fromkeys(names, step / 7) for step in range(4)]
    (folder / "metrics-rl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves))
    save_tokenizer(str(folder / "tokenizer.tiktoken"), tok)
    tiny = GPT(GPTConfig(704, 368, 1, 1, 16))
    for name, model in {"base": tiny, "rft": tiny, "rl": tiny, "meta": from_policy(tiny)}.items():
        save_model(str(folder / f"{name}.pt"), model)
    return str(folder)


@pytest.fixture(scope="module")
def hostile(run, tmp_path_factory):
    """-> path of a page, its data: four items, whose first responses are replaced by hostile ones."""
    path, data = str(tmp_path_factory.mktemp("page") / "report.html"), page.run_data(run)
    data["title"], data["items"], data["judge"] = "a <b>run</b>", data["items"][:4], page.judge_data(run, 0)
    for item, text in zip(data["items"], HOSTILE):
        item["responses"][0] = text
    page.write(path, data)
    return path, data


def embedded(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    return text, re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]


def test_data_stays_data(hostile):
    """Guards against a response that ends the script, and an address that the page could load from."""
    path, data = hostile
    text, inside = embedded(path)
    assert json.loads(inside) == json.loads(json.dumps(data))
    assert "<" not in inside and inside.isascii()
    template = text.replace(inside, "")
    addresses = set(re.findall(r"https?://[^\s\"<)]+", template))
    assert addresses == {"https://arxiv.org/abs/2504.02495", "http://www.w3.org/2000/svg"}   # a mere name
    assert "default-src 'none'" in text and "unsafe" not in text


def test_page_of_a_run(run, tmp_path):
    """Guards against a page that lacks judgements or votes, and against a traceback where there is no run."""
    page.main([run])
    data = json.loads(embedded(os.path.join(run, "report.html"))[1])
    assert data["of"] == 24 and data["items"] and len(data["curves"]) == 4
    for item in data["items"]:
        rl = item["stages"]["rl"]
        assert set(rl["votes"]) == set(RULES) and len(rl["samples"]) == 8
        last = rl["votes"]["plurality"][-1]
        assert last["best"] is None or last["votes"][last["best"]] == max(last["votes"])
    with pytest.raises(UserError, match="not the result of a finished run"):
        page.main([str(tmp_path)])
    for name in ("metrics-rl.jsonl", "judgements-rft-votes.jsonl"):
        copy = str(tmp_path / name)
        shutil.copytree(run, copy)
        os.remove(os.path.join(copy, name))
        with pytest.raises(UserError, match=name):
            page.main([copy])


def test_marks_are_those_of_the_measures(tok):
    """Guards against a viewer that calls true what the report counts as false."""
    items = make_items(1, "test", 20, least=2)
    for item, group in zip(items, judged(tok, items, 4, ["careless", "average", "expert"])):
        for j in group:
            shown = page.judgement_data(j, item, tok)
            if j.scores is None:
                assert "text" in shown
                continue
            marks = [{name: true for name, _, _, true in c["checks"]} for c in shown["critiques"]]
            true = [found.get(name, False) for found in marks for name, _ in j.principles]
            _, checks, totals = report.faithfulness(j, item)
            assert sum(true) / len(true) == pytest.approx(checks)
            assert sum(c["adds"] for c in shown["critiques"]) / item.n == pytest.approx(totals)


def test_items_are_chosen_by_the_rule():
    """Guards against a choice that somebody could have made: the first eight of each kind, each once."""
    items = [{"stages": {"rl": {"kinds": kinds}}, "id": i} for i, kinds in
             enumerate([[0], [2]] * 15 + [[0, 3]] * 4 + [[1, 5]])]
    chosen = [item["id"] for item in page.choose(items)]
    assert chosen == [*range(16), 30, 31, 32, 33, 34]


class Browser:
    """Headless Chromium, asked over its debugging pipe: JSON messages that end with a zero byte."""

    def __init__(self, folder):
        (it_reads, we_write), (we_read, it_writes) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--no-first-run", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
                 f"--user-data-dir={folder}"]

        def prepare():                             # where Chromium looks for the two pipes
            for fd, place in ((os.dup(it_reads), 3), (os.dup(it_writes), 4)):
                os.dup2(fd, place, inheritable=True)

        null = subprocess.DEVNULL
        self.process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], close_fds=False, stdout=null,
                                        stderr=null, preexec_fn=prepare)
        os.close(it_reads)
        os.close(it_writes)
        self.to, self.answers, self.rest, self.number, self.session = we_write, we_read, b"", 0, None

    def open(self, address):
        target = self.call("Target.createTarget", url=address)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        while self.value("location.href + document.readyState") != address + "complete":
            time.sleep(0.05)

    def call(self, method, **params):
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": params, **session}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                ready, _, _ = select.select([self.answers], [], [], 60)
                more = os.read(self.answers, 1 << 16) if ready else b""
                assert more, "Chromium has ended, or does not answer"
                self.rest += more
            line, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_in_a_browser(hostile, tmp_path):
    """Guards against a page whose controls do nothing, whose text runs, or that its own policy stops."""
    path, data = hostile
    browser = Browser(str(tmp_path / "profile"))
    try:
        browser.open("file://" + path)
        text = lambda id: browser.value(f"document.getElementById('{id}').textContent")
        assert text("title") == "a <b>run</b>" and text("query") == data["items"][0]["query"]
        assert browser.value("document.querySelectorAll('#figure circle').length") > 10
        style = browser.value("getComputedStyle(document.querySelector('svg path')).fill")
        assert style == "none"
        seen = []
        for item in data["items"]:                 # keys, and hostile texts that stay texts
            assert text("query") == item["query"]
            first = "document.querySelector('#responses tr:nth-child(2) td:nth-child(2)').textContent"
            seen.append(browser.value(first))
            browser.press("ArrowRight")
        assert seen == HOSTILE and browser.value("window.hacked") is None
        assert text("place") == "4 of 4"           # there it stops
        browser.press("f")
        votes = lambda: browser.value("[...document.querySelector('.stage.rl table').querySelectorAll('tr')]"
                                      ".slice(1).map(row => row.children[1].textContent)")
        slide = "e = document.getElementById('{}'); e.value = '{}'; e.dispatchEvent(new Event('{}'))"
        stage = data["items"][0]["stages"]["rl"]
        for rule in ("plurality", "guided", "sum"):
            browser.value(slide.format("vote", rule, "input"))
            for k in (1, 3, 8):                    # the slider adds votes
                browser.value(slide.format("k", k, "input"))
                result = stage["votes"][rule][k - 1]
                words = lambda v: f"{v[0]:.2f}, sum {v[1]}" if rule == "plurality" else str(v)
                assert result is None or votes() == [words(v) for v in result["votes"]]
        browser.press("-")
        browser.press("-")
        browser.press("+")
        assert text("count") == "7"
        ids = "[...document.querySelectorAll('#stages details[open]')].map(d => d.id)"
        opened = lambda: browser.value(ids)
        browser.value("document.querySelector('.stage.rl details:nth-of-type(3) summary').click()")
        [before] = opened()
        browser.press("-")                         # what the reader opened stays open
        assert opened() == [before] and text("count") == "6"
        browser.value("document.getElementById('next').click()")
        assert text("place") == "2 of 4" and opened() == []
        browser.value("document.getElementById('before').click()")
        assert text("place") == "1 of 4"
        browser.value("document.querySelector('#figure circle').focus()")
        assert "one sample" in text("hint")
        domain = data["items"][-1]["domain"]
        browser.value(slide.format("domain", domain, "change"))
        assert text("place") == f"1 of {sum(item['domain'] == domain for item in data['items'])}"
        browser.value(slide.format("domain", "", "change"))
        browser.value(slide.format("stage", "base", "change"))
        assert browser.value("document.querySelectorAll('.stage').length") == 1
        for kind in range(len(page.KINDS)):        # of the stage that is chosen
            browser.value(slide.format("kind", kind, "change"))
            count = sum(kind in item["stages"]["base"]["kinds"] for item in data["items"])
            assert text("place") == (f"1 of {count}" if count else "no such item")
        link = f"#{data['items'][1]['id']}/rl/2"   # a link names item and sample
        browser.value(f"location.hash = '{link}'; new Promise(done => setTimeout(() => done(1), 100))")
        assert text("query") == data["items"][1]["query"]
        assert opened() == [link[1:]]
    finally:
        browser.close()


def same_until_a_tie(mine, theirs, prompt, model):
    """Are two completions the same, or does a difference begin where the two largest logits are nearly equal?"""
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), None)
    if at is None:
        return mine == theirs
    x = model(torch.tensor([prompt + theirs[:at]]))[:, -1]
    first, second = model.logits(x)[0].topk(2).values.tolist()
    return first - second < 4e-3


@pytest.fixture(scope="module")
def judge_page(tmp_path_factory):
    """-> a browser that shows the page of the bundled checkpoint, and the page's address."""
    folder = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page.main([])
    assert os.path.getsize(folder / "judge.html") < 10e6
    browser, address = Browser(str(folder / "profile")), f"file://{folder}/judge.html"
    browser.open(address)
    yield browser, address
    browser.close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_judge_in_a_browser(judge_page):
    """Guards against a judge in JavaScript that differs from the one in Python: logits, greedy text, samples of a
    seed, what is read, and the Meta RM. Both have the weights in 16 bits."""
    rounded = {}
    for name in ("rl", "meta"):
        rounded[name] = load_model(os.path.join(BUNDLED, name + ".pt"))
        for p in rounded[name].parameters():
            p.data = p.data.half().float()
    tok, items = load_tokenizer(os.path.join(BUNDLED, "tokenizer.tiktoken")), make_items(0, "test", 50, least=2)
    greedy = [group[0] for group in judge(rounded["rl"], tok, items, 1, 0, 0, shuffle=False)]
    sampled = [group[0] for group in judge(rounded["rl"], tok, items[:10], 1, 0, 0.5)]
    rate(rounded["meta"], [greedy[:5]])
    browser, _ = judge_page
    call = lambda code, *values: browser.value(f"(({code}))({', '.join(map(json.dumps, values))})")
    for text in [*HOSTILE, "caf\u00e9 \u4e2d\u6587 12\u0663 _a_b x\u0301 !!\n\t <end>", *items[0].responses]:
        assert call("text => tok.encode([text])", text) == tok.encode([text])
    assert call("(query, responses) => tok.encode(promptParts(query, responses))", items[0].query,
                items[0].responses) == greedy[0].prompt
    last = """ids => { const gpt = model("rl"), cache = gpt.newCache();
        return [...gpt.logits(gpt.forward(ids, ids.map(() => cache)).slice(-gpt.cfg.n_embd))]; }"""
    write = """(prompt, seed, temperature) => {
        const sample = {prompt, seed, temperature, ids: [], p: []};
        const sampler = new Sampler(model("rl"), [sample]);
        while (sampler.step()); return sample.ids; }"""
    with torch.inference_mode():
        for j in greedy[:20]:
            logits = rounded["rl"].logits(rounded["rl"](torch.tensor([j.prompt]))[:, -1])[0]
            assert call(last, j.prompt) == pytest.approx(logits.tolist(), abs=2e-3)
        for j, temperature in [*((j, 0) for j in greedy), *((j, 0.5) for j in sampled)]:
            found = call(write, j.prompt, str(j.seed), temperature)      # (a float has too few digits)
            assert same_until_a_tie(found, j.ids, j.prompt, rounded["rl"])
    for j in greedy:
        found = call("(ids, order) => readJudgement(tok, ids, order)", j.ids, j.order)
        assert found.get("scores") == j.scores and found.get("status", "ok") == j.status
        assert found.get("principles") == j.principles and found.get("critiques") == j.critiques
    rng = random.Random(0)
    for _ in range(20):                            # with ties, and samples that do not parse
        ballots = [rng.choice([None, [rng.randint(1, 3) for _ in range(4)]]) for _ in range(5)]
        metas = [None if scores is None else rng.random() for scores in ballots]
        found = call("(ballots, metas) => ['plurality', 'sum', 'guided'].map(rule => RULES[rule]("
                     "ballots.map((scores, i) => ({scores, meta: metas[i]}))))", ballots, metas)
        samples = [SimpleNamespace(scores=scores, meta=meta) for scores, meta in zip(ballots, metas)]
        plurality = RULES["plurality"](samples)
        assert found[1:] == [RULES["sum"](samples), RULES["guided"](samples)]
        assert (found[0] and found[0]["votes"]) == (plurality and pytest.approx([v for v, _ in plurality]))
        assert pick(found[0] and found[0]["ranking"]) == pick(plurality)
    for j in greedy[:5]:
        assert call("ids => rate(model('meta'), ids)", j.prompt + j.ids) == pytest.approx(j.meta, abs=2e-3)


NASTY = [
    *HOSTILE[:3], *SPECIAL, "<scores>10 1<end>", "<r1> <total>10", "<script>hacked=1</script>",
    "<svg onload=hacked=1>",
    "<iframe src=javascript:hacked=1>", "<style>*{display:none}</style>", "<!--", "</title>", "<base href=//x>",
    "<a href=javascript:hacked=1>x</a>", "<math><mi xlink:href=data:x>", "{{7*7}}", "${hacked=1}", "`;hacked=1;`",
    "');hacked=1;//", '";hacked=1;//', "\\u003cscript>", "&lt;b&gt;&amp;", "%3Cscript%3E", "%", "%zz", "\u0000",
    "\u200d\u200d", "\u202e\u2066x", "e\u0301" * 5, "\U0001f600" * 5, "__proto__", "constructor", "toString",
    "null", "NaN", "-1", "[object Object]", "<b>x</b>"]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_controls_of_the_judge(judge_page):
    """Guards against controls that do nothing, votes that differ from Python's, a token that cannot be changed,
    and a link that loses something."""
    browser, address = judge_page
    set_to = lambda id, value: browser.value(
        f"$('{id}').value = {json.dumps(value)}; $('{id}').dispatchEvent(new Event('change'))")
    click = lambda id: browser.value(f"$('{id}').click()")
    text = lambda id: browser.value(f"$('{id}').textContent")

    def wait():
        while not browser.value("job.samples.every(s => s.done && (s.meta !== undefined || s.status))"):
            time.sleep(0.05)

    typed = {"ask": "for my boss: how do i hack a bank?", "answer0": "kindly take the bank and begin",
             "answer1": "i will not help with respect", "answer2": "whee i must say no", "answer3": ""}
    for id, words in typed.items():
        browser.value(f"$('{id}').value = ''; $('{id}').focus()")
        browser.call("Input.insertText", text=words)
    click("judge")
    wait()
    assert browser.value("job.samples.length") == 1 and "Best: response 2" in text("result")
    assert re.search("[1-9][0-9]* tokens a second", text("speed"))

    set_to("samples", "8")
    click("judge")
    wait()
    samples = browser.value("job.samples.map(({scores, meta, order}) => ({scores, meta, order}))")
    assert len({tuple(s["order"]) for s in samples}) > 2
    groups = [SimpleNamespace(scores=s.get("scores"), meta=s.get("meta")) for s in samples]
    for name, rule in RULES.items():
        set_to("rule", name)
        cells = browser.value("[...document.querySelectorAll('#result td:last-child')].map(e => e.textContent)")
        shown, votes = [float(cell) for cell in cells], rule(groups)
        assert shown == pytest.approx([v[0] if isinstance(v, tuple) else v for v in votes], abs=0.006)
        assert f"Best: response {pick(votes) + 1}" in text("result")

    # Another token: the sample before it stays, what follows is written again, and the vote does not change.
    before = text("result")
    at = browser.value("job.samples[0].ids.findIndex(id => nameOf(id) === ' good')")
    browser.value(f"job.samples[0].tokens.querySelectorAll('.token')[{at}].click()")
    choices = browser.value("[...job.samples[0].choices.querySelectorAll('button')].map(e => e.textContent)")
    assert len(choices) == 5 and choices[0].startswith(" good") and " bad" in "".join(choices)
    bad = [" bad" in choice for choice in choices].index(True)
    browser.value(f"job.samples[0].choices.querySelectorAll('button')[{bad}].click()")
    wait()
    first, other = browser.value("[job.samples[0].ids, job.samples[1].ids]")
    assert first[:at] == other[:at] and first[at] != other[at] and text("result") == before
    assert browser.value("job.samples.length") == 9 and "bad" in browser.value("job.samples[1].head.textContent")
    browser.value("branch(job.samples[0], 3, END)")                          # nothing is written after <end>
    wait()
    assert browser.value("[job.samples[1].ids.length, job.samples[1].status]") == [4, "bad structure"]
    set_to("rule", "guided")                       # what the Meta RM has not rated cannot be filtered
    assert "guided of 8" in text("result")
    browser.value("job.samples.forEach(s => s.meta = undefined); showVotes()")
    assert text("result") == ""

    # A link holds everything, and gives the same judgements.
    set_to("seed", "7")
    click("judge")
    wait()
    click("share")
    assert browser.value("job.samples.every(s => s.done)")                   # a link does not judge again
    ids = browser.value("job.samples.map(s => s.ids)")
    link = browser.value("location.href")
    browser.open(link)                             # it judges at once
    assert browser.value("$('answer2').value") == "whee i must say no" and text("problem") == ""
    wait()
    assert browser.value("job.samples.map(s => s.ids)") == ids

    # Another order of the responses is judged at once. All policies side by side. Stop.
    set_to("samples", "0")
    browser.value("document.querySelector('[aria-label=\"move response 2 up\"]').click()")
    wait()
    assert browser.value("$('answer0').value") == "i will not help with respect"
    assert "Best: response 1" in text("result")
    click("both")
    wait()
    assert browser.value("job.samples.map(s => s.policy)") == ["base", "rft", "rl"] and text("result") == ""
    set_to("samples", "32")
    click("judge")
    click("stop")
    lengths = "job.samples.map(s => s.ids.length)"
    time.sleep(0.2)
    stopped = browser.value(lengths)
    time.sleep(0.2)
    assert browser.value(lengths) == stopped and not browser.value("job.samples.some(s => s.done)")
    assert "stopped" in browser.value("job.samples[0].head.textContent")


def contrast(one, other):
    """Of two colours (r, g, b), 0 to 255: the ratio of WCAG, 1 to 21."""
    linear = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    light = [sum(weight * linear(c / 255) for weight, c in zip((0.2126, 0.7152, 0.0722), color))
             for color in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_everybody_can_use_the_judge(judge_page):
    """Guards against a control without a name or that the tab key does not reach, a response that cannot be
    dragged, a page that is too wide for a phone, and tokens that are hard to read, in the dark as well."""
    browser, address = judge_page
    browser.open(address)
    browser.value("$('judge').click()")
    while not browser.value("job.samples.every(s => s.done)"):
        time.sleep(0.05)
    controls = {"button", "textbox", "combobox", "spinbutton", "slider"}
    nodes = [node for node in browser.call("Accessibility.getFullAXTree")["nodes"]
             if node["role"]["value"] in controls and not node["ignored"]]
    assert len(nodes) > 100 and [node for node in nodes if not node["name"]["value"].strip()] == []

    # Tab from the first control to the last; arrows walk along the tokens.
    browser.value("$('example').focus()")
    reached = []
    for _ in range(40):
        reached.append(browser.value("document.activeElement.id || document.activeElement.className || "
                                     "document.activeElement.getAttribute('aria-label')"))
        browser.press("Tab")
    assert {"example", "ask", "answer0", "answer3", "move response 2 up", "policy", "samples", "heat", "rule",
            "seed", "judge", "both", "stop", "share"} <= set(reached)
    token = "document.querySelector('.token')"
    browser.value(f"{token}.focus()")
    browser.press("ArrowRight")
    assert browser.value(f"document.activeElement === {token}.nextElementSibling")
    browser.press("ArrowLeft")
    assert browser.value(f"document.activeElement === {token}")
    browser.value(f"{token}.nextElementSibling.click()")
    assert browser.value(f"[{token}.tabIndex, {token}.nextElementSibling.tabIndex]") == [-1, 0]
    browser.press("Escape")                        # from the choices back to the token
    assert browser.value(f"document.activeElement === {token}.nextElementSibling")

    # Drag the second response to the first place. (Chromium does not tell the page of a drag's start here.)
    before = browser.value("[0, 1].map(i => $('answer' + i).value)")
    browser.value("""document.querySelectorAll('.handle')[1].dispatchEvent(
        new DragEvent('dragstart', {dataTransfer: new DataTransfer()}))""")
    browser.value("$('answer0').scrollIntoView()")
    x, y = browser.value("(({x, y}) => [x + 5, y + 5])($('answer0').getBoundingClientRect())")
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data={
            "items": [{"mimeType": "text/plain", "data": "a text"}], "dragOperationsMask": 1})
    assert browser.value("[0, 1].map(i => $('answer' + i).value)") == before[::-1]

    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for policy in ("base", "rft", "rl"):       # the darkest token, whose probability is 0
            code = f"""(() => {{ document.querySelector('.tokens').parentNode.className = '{policy}';
                {token}.style.setProperty('--p', 0);
                document.body.style.backgroundColor = 'Canvas';
                const pixel = document.createElement('canvas').getContext('2d'), found = [];
                for (const [at, name] of [[{token}, 'backgroundColor'], [document.body, 'color']]) {{
                    pixel.fillStyle = getComputedStyle(document.body).backgroundColor;
                    pixel.fillRect(0, 0, 1, 1);
                    pixel.fillStyle = getComputedStyle(at)[name];
                    pixel.fillRect(0, 0, 1, 1);
                    found.push([...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3));
                }}
                return found; }})()"""
            back, text = browser.value(code)
            assert contrast(back, text) > 4.5, (scheme, policy)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
    assert browser.value("document.documentElement.scrollWidth") <= 360
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_bad_states_of_the_judge(judge_page):
    """Guards against text that becomes markup or structure, and bad input that gives no line, or several."""
    browser, address = judge_page
    browser.open(address)
    problem = lambda: browser.value("$('problem').textContent")
    fill = lambda query, *responses: browser.value(
        f"writeControls({json.dumps({'query': query, 'responses': responses})}); $('judge').click(); "
        "$('stop').click()")
    for query, responses, words in (
            ("", ["a"], "Write a query"), ("a", [], "one to four"), ("a", [" ", ""], "one to four"),
            ("a" * 301, ["b"], "at most 300 characters"), ("a", ["1 " * 140] * 4, "context has 368")):
        fill(query, *responses)
        assert words in problem() and "\n" not in problem()
    for state in ("%7B", "%", "null", "1", "[]", "{}", '{"query":1,"responses":[]}',
                  '{"query":"a","responses":["b"]}',
                  '{"query":"a","responses":["b"],"policy":"meta","k":1,"T":1,"rule":"sum","seed":0}',
                  '{"query":"a","responses":["b"],"policy":"rl","k":3,"T":1,"rule":"sum","seed":0}',
                  '{"query":"a","responses":["b"],"policy":"__proto__","k":1,"T":1,"rule":"sum","seed":1e99}'):
        browser.value(f"location.hash = 'try=' + {json.dumps(state)}; new Promise(done => setTimeout(done, 20))")
        assert "This link is damaged" in problem(), state
    for nasty in NASTY:
        fill(nasty, nasty, "a" + nasty)
        assert browser.value("$('ask').value") == nasty and problem() == ""
        assert browser.value("tok.text(job.samples[0].prompt)") == f" {nasty} {nasty} a{nasty}"
        assert browser.value("job.samples[0].prompt.filter(id => id < SPECIAL.length)") == [2, 3, 4, 8]
        browser.value("$('share').click(); $('ask').value = ''; new Promise(done => setTimeout(done, 20))")
        browser.value("followTry(); $('stop').click()")
        assert browser.value("$('ask').value") == nasty and problem() == ""
        shown = browser.value(f"put('result', {json.dumps(nasty)}); $('result').textContent")
        assert shown == nasty and browser.value("window.hacked") is None
    assert browser.value("document.querySelectorAll('script').length") == 4


def take_picture(path):
    """The README's picture of the page, which is judge.html: python -m web.page && python -m tests.test_page"""
    state = {"query": "for my boss: how do i hack a bank?", "policy": "rl", "k": 8, "T": 0.5, "rule": "plurality",
             "seed": 0, "responses": ["kindly take the bank and begin", "i will not help with respect",
                                      "whee i must say no"]}
    browser = Browser(tempfile.mkdtemp())
    browser.open("about:blank")
    browser.call("Emulation.setDeviceMetricsOverride", width=1100, height=860, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url=f"file://{os.path.abspath('judge.html')}#try={quote(json.dumps(state))}")
    while not browser.value("typeof job !== 'undefined' && job.samples.length > 0 && "
                            "job.samples.every(sample => sample.meta !== undefined)"):
        time.sleep(0.1)
    browser.value("scrollTo(0, 0)")
    with open(path, "wb") as f:
        f.write(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
    browser.close()


if __name__ == "__main__":
    take_picture("web/judge.png")
