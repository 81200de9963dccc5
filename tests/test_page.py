"""report.html: nothing that is said becomes markup, and every control does what it says, in a browser."""

import json
import os
import re
import select
import shutil
import subprocess
import time

import pytest

import metarm
import page
import sample
from data.world import make_items
from run import read_json
from sample import SHIPPED, judge, load_judge

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REFERENCE = os.path.join(ROOT, "experiments", "reference", "cpu-seed1")
HOSTILE = ["</script><script>window.hacked = 1</script>", '<img src=x onerror="window.hacked = 1">',
           "\u202eabc\u2028\u2029 DATA POLICY", "x" * 10_000]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def data_of(count=4):
    """A page's data: the reference run's numbers, some items judged by what comes along, its first responses
    replaced by hostile ones in what is shown."""
    base, tok, _ = load_judge(SHIPPED, "base", "cpu")
    rl, _, _ = load_judge(SHIPPED, "rl", "cpu")
    items = make_items(0, "test", count, least=2)
    meta = load_judge(SHIPPED, "rl", "cpu", guided=True)[2]
    draw = lambda model, k, T: judge(model, tok, items, k, 0, "page", T, shuffle=T > 0)
    of_item = {name: [(greedy[0], votes) for greedy, votes in zip(draw(model, 1, 0.0), draw(model, 8, 1.0))]
               for name, model in (("base", base), ("rl", rl))}
    metarm.score(meta, sum((votes for _, votes in of_item["rl"]), []))
    found = [page.item_data(item, {name: of_item[name][i] for name in of_item}, tok)
             for i, item in enumerate(items)]
    for item, text in zip(found, HOSTILE):
        item["responses"][0] = text
    with open(os.path.join(REFERENCE, "metrics-rl.jsonl")) as f:
        curves = [json.loads(line) for line in f]
    results = read_json(os.path.join(REFERENCE, "results.json"))
    return {"title": "a <b>run</b>", "results": results, "curves": curves, "kinds": page.KINDS,
            "parameters": 1, "items": found, "of": count}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """-> path of a page, its data"""
    path, data = str(tmp_path_factory.mktemp("page") / "report.html"), data_of()
    page.write(path, data)
    return path, data


def embedded(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    return text, re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]


def test_data_stays_data(report):
    """Guards against a response that ends the script, and an address that the page could load from."""
    path, data = report
    text, inside = embedded(path)
    assert json.loads(inside) == json.loads(json.dumps(data))
    assert "<" not in inside and inside.isascii()
    with open(os.path.join(ROOT, "page.html"), encoding="utf-8") as f:
        template = f.read()
    addresses = set(re.findall(r"https?://[^\s\"<)]+", template))
    assert addresses == {"https://arxiv.org/abs/2504.02495", "http://www.w3.org/2000/svg"}   # a mere name
    assert "default-src 'none'" in text and "unsafe" not in text


def test_marks_are_those_of_the_measures():
    """Guards against a viewer that calls true what the report counts as false."""
    policy, tok, _ = load_judge(SHIPPED, "rl", "cpu")
    items = make_items(1, "test", 6, least=2)
    for item, group in zip(items, judge(policy, tok, items, 4, 0, "marks")):
        for j in group:
            shown = page.judgement_data(j, item, tok)
            if j.scores is None:
                assert "text" in shown
                continue
            marks = [{name: holds for name, _, _, holds in c["checks"]} for c in shown["critiques"]]
            true = [found.get(name, False) for found in marks for name, _ in j.principles]
            fit, checks, totals = page.faithfulness(j, item)
            assert sum(true) / len(true) == pytest.approx(checks)
            assert sum(c["adds"] for c in shown["critiques"]) / item.n == pytest.approx(totals)


def test_items_are_chosen_by_the_rule():
    """Guards against a choice that somebody could have made: the first ten of each kind, each once."""
    items = [{"stages": {"rl": {"kinds": kinds}}, "id": i} for i, kinds in
             enumerate([[0], [2]] * 15 + [[0, 3]] * 4 + [[1, 5]])]
    chosen = [item["id"] for item in page.choose(items)]
    assert chosen == [*range(20), 30, 31, 32, 33, 34]


def test_one_query(tmp_path, capsys):
    """Guards against a page for a query that lacks samples, or a flag that destroys a file."""
    path = str(tmp_path / "query.html")
    flags = ["--query", "capital of peru?", "--response", "it is lima", "--response", HOSTILE[0][:20],
             "--html", path]
    sample.main(flags)
    data = json.loads(embedded(path)[1])
    [item] = data["items"]
    assert len(item["stages"]["rl"]["samples"]) == 8 and item["gold"] is None and "results" not in data
    with pytest.raises(sample.UserError):
        sample.main(flags)


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
def test_in_a_browser(report, tmp_path):
    """Guards against a page whose controls do nothing, whose text runs, or that its own policy stops."""
    path, data = report
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
        for rule, digits in (("weighted", 2), ("plurality", 2), ("guided", 0), ("sum", 0)):
            browser.value(slide.format("vote", rule, "input"))
            for k in (1, 3, 8):                    # the slider adds votes
                browser.value(slide.format("k", k, "input"))
                expected = stage["votes"][rule][k - 1]
                assert expected is None or votes() == [f"{v:.{digits}f}" for v in expected]
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
        subset = data["items"][-1]["subset"]
        browser.value(slide.format("subset", subset, "change"))
        assert text("place") == f"1 of {sum(item['subset'] == subset for item in data['items'])}"
        browser.value(slide.format("subset", "", "change"))
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
