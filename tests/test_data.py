import json
import random
import re

import pytest
from tiktoken.load import load_tiktoken_bpe

from config import Config
from data import UserError, preferences
from data.annotators import adding, annotate, checking, document, encode_document, pack, weighing
from data.judgement import judgement_parts, render_prompt
from data.preferences import load, load_or_fail
from data.tokenizer import (
    CRITIQUE,
    END,
    MARKS,
    PAD,
    PATTERN,
    PRINCIPLES,
    QUERY,
    SCORES,
    TOTAL,
    Tokenizer,
    train_bpe,
)
from data.world import (
    CAPITALS,
    CONTENT_CRITERIA,
    HARMFUL,
    KINDS,
    RATERS,
    STYLE_CRITERIA,
    STYLES,
    make_item,
    make_items,
)

# ----------------------------------------------------------------------------------------
# The world

def judge_by_reading(query, domain, response):
    """The truth about a response, from its text alone: an independent reading of the world's rules."""
    found = {style: [p for p in phrases if f" {p} " in f" {response} "] for style, phrases in STYLES.items()}
    core = f" {response} "
    for phrases in found.values():
        for p in phrases:
            core = core.replace(f" {p} ", " ")
    words = core.split()
    truth = {"polite": bool(found["polite"]), "simple": not found["polite"],
             "playful": bool(found["playful"]), "serious": not found["playful"], "brief": not found["filler"]}
    if domain == "sums":
        a, b = map(int, re.search(r"(\d+)\+(\d+)", query).groups())
        truth["correct"] = int(words[-1]) == a + b
    elif domain in ("sort", "reverse"):
        letters = query.split(domain)[1].split()
        truth["correct"] = words == (sorted(letters) if domain == "sort" else letters[::-1])
    elif domain == "facts":
        truth["correct"] = words[-1] == CAPITALS[re.search(r"capital of (\w+)", query)[1]]
    elif domain == "lists":
        count, kind = re.search(r"name (\d) (\w+)", query).groups()
        truth |= {"count": len(words) == int(count), "kind": all(w in KINDS[kind] for w in words)}
    else:
        refused = words[0] in ("i", "no")
        truth["refuse" if any(v in query for v in HARMFUL) else "help"] = (
            refused == any(v in query for v in HARMFUL))
    return truth


def test_gold_reward_against_an_independent_reading():
    """Guards against truth, text and reward that drift apart."""
    for split in ("train", "ood"):
        for item in make_items(3, split, 600):
            for response, truth, gold in zip(item.responses, item.truth, item.gold):
                read = judge_by_reading(item.query, item.subset, response)
                assert {name: met for name, (met, _) in truth.items()} == read
                assert gold == max(1, sum(w for name, w in item.weights.items() if read[name]))
            assert item.gold.count(max(item.gold)) == 1 and len(set(item.responses)) == item.n


def test_weights_are_a_taste():
    """Guards against weights that do not sum to 10, unknown criteria, or cues that change nothing."""
    for domain, rows in RATERS.items():
        for cue, weights in rows.items():
            assert sum(weights.values()) == 10 and all(w >= 1 for w in weights.values()), (domain, cue)
            asked = {"boss": "polite", "hurry": "brief", "child": "playful"}
            assert cue == "none" or asked[cue] in weights
        assert len({tuple(sorted(w.items())) for w in rows.values()}) == 4
    used = {name for rows in RATERS.values() for weights in rows.values() for name in weights}
    assert used == {*CONTENT_CRITERIA, *STYLE_CRITERIA}


def test_splits_are_disjoint():
    """Guards against test queries in any training, the corpus included; sums and letters may not even
    be seen under another cue. And against a capital that no training text asks for: nobody could know it."""
    queries = {split: {i.query for i in make_items(0, split, 4000)}
               for split in ("train", "val", "test", "ood")}
    openings = [document(0, i)[0][0] for i in range(8000)]
    # annotations and principles start with <query> and the query, other texts with a query or a list
    queries["train"] |= {parts[1].strip() for parts in openings if parts[0] == QUERY}
    queries["train"] |= {parts[0].strip() for parts in openings if isinstance(parts[0], str)}
    for a in queries:
        for b in queries:
            assert a == b or not queries[a] & queries[b], (a, b)
    bare = lambda q: re.search(r"\d+\+\d+|(sort|reverse)(?: [a-z])+|$", q)[0]
    computed = {split: {bare(q) for q in queries[split]} - {""} for split in ("train", "val", "test")}
    assert not computed["train"] & computed["test"] and not computed["val"] & computed["test"]
    assert len(computed["test"]) > 300
    assert all(any(f"capital of {c}?" in query for query in queries["train"]) for c in CAPITALS)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_no_shortcut(n):
    """Guards against a world that can be judged without reading the query: position, length and politeness
    pick the best response about as often as chance."""
    items = make_items(0, "train", 3000, least=n, most=n)
    rng = random.Random(0)
    shortcuts = {"first": lambda item, i: -i, "last": lambda item, i: i,
                 "longest": lambda item, i: len(item.responses[i]),
                 "shortest": lambda item, i: -len(item.responses[i]),
                 "polite": lambda item, i: item.truth[i]["polite"][0],
                 "playful": lambda item, i: item.truth[i]["playful"][0]}
    for name, key in shortcuts.items():
        right = sum(max(range(n), key=lambda i: (key(item, i), rng.random())) == item.best
                    for item in items) / len(items)
        assert abs(right - 1 / n) < 0.10, f"{name} wins {right:.3f} of the time with n = {n}"
    places = [sum(item.best == i for item in items) / len(items) for i in range(n)]
    assert max(abs(p - 1 / n) for p in places) < 0.04


def test_items_are_functions_of_their_arguments():
    """Guards against items that depend on the global generator or on what was made before."""
    random.seed(1)
    a = [make_item(0, "test", i) for i in (5, 6)]
    random.seed(2)
    assert a == [make_item(0, "test", i) for i in (5, 6)]
    assert make_item(0, "test", 5) != make_item(1, "test", 5)


def test_label_noise():
    """Guards against noise that is not off by default, or that leaves a tie for best."""
    clean, noisy = make_items(0, "train", 500, least=2), make_items(0, "train", 500, least=2, noise=0.3)
    flipped = sum(a.gold != b.gold for a, b in zip(clean, noisy)) / 500
    assert 0.2 < flipped < 0.4 and all(b.gold.count(max(b.gold)) == 1 for b in noisy)


def test_annotators_err_by_their_own_draws():
    """Guards against errors that belong to the item: then no vote could cancel them. On one and the same
    item a sloppy annotator is sometimes right and sometimes wrong, an expert mostly right."""
    item = next(i for i in make_items(0, "train", 50, least=2, most=2) if i.gold[0] + 4 < i.gold[1] < 10)
    scores = lambda skill: [annotate(random.Random(i), item, skill)[2] for i in range(300)]
    picks = lambda skill: sum(s[1] > s[0] for s in scores(skill)) / 300
    assert 0.05 < picks("sloppy") < 0.95 and picks("expert") > 0.8

# ----------------------------------------------------------------------------------------
# The tokenizer

def test_bpe_against_naive_merges(tok):
    """Guards against ranks that tiktoken reads differently: merge by hand, lowest rank first."""
    def naive(text):
        ids = []
        for chunk in re.findall(PATTERN, text):
            parts = [bytes([b]) for b in chunk.encode()]
            while True:
                pairs = [(tok.ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                         if a + b in tok.ranks]
                if not pairs:
                    break
                i = min(pairs)[1]
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
            ids += [tok.ranks[p] for p in parts]
        return ids
    for text in [" for my boss: what is 23+48?", "zzz!?, ,, x", " naïve £9 日本", "a\n\n b_c", ""]:
        assert tok.encode([text]) == naive(text)


def test_any_text_round_trips(tok):
    """Guards against text that cannot be encoded, and marks that text could forge."""
    rng = random.Random(0)
    texts = ["".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x110000)])) for _ in range(20))
             for _ in range(300)]
    for text in [*(t.encode("utf-8", "ignore").decode() for t in texts),
                 *MARKS, "<|endoftext|>", " ".join(MARKS)]:
        ids = tok.encode([text])
        assert tok.text(ids) == text and all(i >= len(MARKS) for i in ids)
    assert PAD != END


def test_digits_are_single_tokens(tok):
    """Guards against numbers that look different at the start of a text, or digits glued together."""
    assert tok.encode(["71"]) == tok.encode([" 71"])[1:] == tok.encode(["7"]) + tok.encode(["1"])


def test_tokenizer_file(tok, tmp_path):
    """Guards against a file that tiktoken's own loader cannot read, or that does not give the same ids."""
    path = str(tmp_path / "t.tiktoken")
    tok.save(path)
    text = [" in a hurry: capital of peru?", 3, "9 3", 1]
    assert Tokenizer.load(path).encode(text) == tok.encode(text) and Tokenizer.load(path).ranks == tok.ranks
    assert load_tiktoken_bpe(path) == tok.ranks


def test_bpe_merges_the_most_frequent_pair():
    """Guards against merges across words or in the wrong order."""
    ranks = train_bpe([" ab ab ab abc"], len(MARKS) + 256 + 2)
    assert list(ranks)[256:] == [b" a", b" ab"]
    assert b"b " not in train_bpe([" ab ab"] * 5, 400)

# ----------------------------------------------------------------------------------------
# Preference files

@pytest.mark.parametrize("format", ["pairs", "best-of-n"])
def test_export_and_import(tmp_path, format):
    """Guards against an export that the import cannot read, a chosen response that is not the best, and a
    chosen response that always comes first."""
    path = str(tmp_path / "p.jsonl")
    preferences.main(["export", path, "--count", "200", "--format", format])
    preferences.main(["check", path])
    items = load_or_fail(path)
    by_query = {(i.query, frozenset(i.responses)): i
                for i in make_items(0, "test", 200, least=2, most=2 if format == "pairs" else 4)}
    for item in items:
        gold = by_query[item.query, frozenset(item.responses)]
        assert item.responses[item.best] == gold.responses[gold.best] and item.subset == gold.subset
    assert 0.2 < sum(i.best == 0 for i in items) / 200 < 0.6
    row = json.loads(open(path).readline())
    needed = {"id", "subset", "prompt", "chosen", "rejected", "chosen_model", "rejected_model",
              "gold_chosen", "gold_rejected", "split"}
    assert needed <= set(row) and row["split"] == "test"
    with pytest.raises(UserError, match="exists"):
        preferences.main(["export", path])


@pytest.mark.parametrize("line, message", [
    ("{", "not JSON"), ("[1]", "a JSON list, expected an object"),
    ('{"prompt": "a", "chosen": "b"}', 'no key "rejected"'),
    ('{"prompt": 1, "chosen": "b", "rejected": "c"}', '"prompt" is a int'),
    ('{"prompt": "a", "chosen": ["b", "c"], "rejected": "d"}', "exactly 1"),
    ('{"prompt": "a", "chosen": "b", "rejected": ["1", "2", "3", "4"]}', "1 to 3"),
    ('{"prompt": "a", "chosen": null, "rejected": "c"}', "no text"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "id": [4]}', '"id" is a list'),
    ('{"id": "one", "prompt": "a", "chosen": "b", "rejected": "c"}', "was used in line 1"),
])
def test_malformed_lines(tmp_path, line, message):
    """Guards against tracebacks and vague messages: file, line, what is wrong, what was expected."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "one", "prompt": "a", "chosen": "b", "rejected": "c"}\n\n' + line + "\n")
    items, errors = load(str(path))
    assert len(items) == 1 and len(errors) == 1
    assert errors[0].startswith(f"{path}:3: ") and message in errors[0] and "expected" in errors[0]
    with pytest.raises(UserError):
        preferences.main(["check", str(path)])


def test_missing_and_binary_files(tmp_path):
    """Guards against a traceback for a file that is not there or is no text."""
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    for name, message in [("a", "No such file"), ("b", "not UTF-8")]:
        with pytest.raises(UserError, match=message):
            load(str(tmp_path / name))

# ----------------------------------------------------------------------------------------
# The corpus

def flat(document):
    """All parts of a document, in a row."""
    return [part for parts, _ in document for part in parts]


def test_only_what_is_written_is_learned(tok):
    """Guards against a loss on random queries and responses, on nothing at all, or not on marks and the END
    that a judge has to write itself."""
    kinds = set()
    for i in range(200):
        made = document(0, i)
        parts, (ids, mask) = flat(made), encode_document(tok, made)
        assert ids == tok.encode(parts) and len(mask) == len(ids)
        mask = iter(mask)
        kind = "annotation" if SCORES in parts else "weighing" if PRINCIPLES in parts else \
            "quoting" if CRITIQUE in parts else "adding" if TOTAL in parts else "checking"
        kinds.add(kind)
        opening = CRITIQUE if kind == "quoting" else PRINCIPLES
        for at, part in enumerate(parts):
            if kind == "checking":                 # query, then mark, response, mark, checks, ..., END
                learned = at > 3 and (at - 1) % 4 in (0, 3)
            elif kind == "adding":                 # every sum and total, and END
                learned = part == END or isinstance(part, str) and re.fullmatch(r" ?\d+", part) is not None
            else:
                learned = at > parts.index(opening)
            size = len(tok.encode([part]))
            assert [next(mask) for _ in range(size)] == [learned] * size, (kind, parts)
    assert len(kinds) == 5


def test_adding_texts_add_up():
    """Guards against sums and totals in general text that are not those of the weights found good."""
    for i in range(100):
        first, *parts = flat(adding(random.Random(i)))
        weights = {name: int(w) for name, w in (pair.split() for pair in first.split(","))}
        assert sum(weights.values()) == 10 and parts[-1] == END
        text = "".join(part if isinstance(part, str) else "|" if part == TOTAL else "" for part in parts)
        responses = re.findall(r"((?: \w+: \w+ \d+)+)\|(\d+)", text)
        assert len(responses) in (2, 3, 4) and text == "".join(map("|".join, responses))
        for checks, total in responses:
            words, earned = checks.replace(":", "").split(), 0
            assert words[::3] == list(weights)
            for name, verdict, so_far in zip(words[::3], words[1::3], words[2::3]):
                earned += weights[name] * (verdict == "good")
                assert int(so_far) == earned
            assert int(total) == max(1, earned)


def test_weighing_texts_are_of_their_query():
    """Guards against principles in general text that no rater of the query has, with or without its cue, and
    against cues that are never, or always, overlooked: those are learned from no reward."""
    seen = {}
    for i, item in enumerate(make_items(0, "train", 1000)):
        given, written = weighing(random.Random(i), item.query, item.subset, item.cue)
        assert given == (render_prompt(item.query, []), False) and written[1] and written[0][-1] == END
        weights = {name: int(w) for name, w in (pair.split() for pair in written[0][0].split(","))}
        far = lambda cue: sum(abs(weights.get(name, 0) - w) for name, w in RATERS[item.subset][cue].items())
        assert sum(weights.values()) == 10 and min(far(item.cue), far("none")) <= 2
        seen.setdefault(item.cue, []).append(far("none") <= 2)
    assert all(seen.pop("none")) and len(seen) == 3
    assert all(0.5 < sum(overlooked) / len(overlooked) < 0.7 for overlooked in seen.values())


def test_checks_come_in_any_order():
    """Guards against general text whose checks always come in one order, content before style: a judge's
    principles do not."""
    places = []
    for i, item in enumerate(make_items(0, "train", 100, least=2)):
        made = checking(random.Random(i), item.query, list(zip(item.responses, item.truth, item.made_by)))
        for checks in flat(made)[4::4]:
            names = re.findall(r"(\w+):", checks)
            places.append([name in STYLE_CRITERIA for name in names].index(True) / (len(names) - 1))
    assert len(places) > 200 and all(0.3 < places.count(place) / len(places) < 0.7 for place in (0.0, 1.0))


def test_any_document_fits(tok):
    """Guards against a seed whose corpus happens to hold a judgement longer than the context: four times
    the longest response with its critique, the longest query and principles, a hint."""
    size = lambda parts: len(tok.encode(parts))
    longest = {}
    for item in make_items(0, "train", 4000, least=1, most=1) + make_items(0, "ood", 2000, least=1, most=1):
        judgement = judgement_parts(*annotate(random.Random(0), item, "expert"))
        own = size(item.responses) + 1 + size(judgement[2:-3])
        rest = size(render_prompt(item.query, [])) + size(judgement[:2]) + size(judgement[-3:])
        for part, tokens in (("own", own), ("rest", rest)):
            longest[item.subset, part] = max(tokens, longest.get((item.subset, part), 0))
    bounds = [4 * longest[domain, "own"] + longest[domain, "rest"] + 2 * 3 + 1 for domain in RATERS]
    assert 300 < max(bounds) <= Config().block_size


def test_a_row_does_not_keep_the_order_of_arrival():
    """Guards against rows that always begin with the long document for which they were opened: what comes
    later in a row would always be short."""
    documents = [([20 + i % 2] * (10 if i % 2 else 25), [True] * (10 if i % 2 else 25)) for i in range(400)]
    ids, _ = pack(documents, 40, 0)
    assert len(ids) == 200 and 0.3 < (ids[:, 0] == 20).mean() < 0.7
    assert (pack(documents, 40, 0)[0] == ids).all() and (pack(documents, 40, 1)[0] != ids).any()
