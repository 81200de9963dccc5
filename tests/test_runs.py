"""Tables over several runs, against hand counts; the bundled judge."""

import json

import numpy as np
import pytest
import torch

from data import UserError
from data.judgement import read_judgements
from data.tokenizer import load_tokenizer, save_tokenizer
from data.world import VERIFIABLE, make_items
from experiments import runs
from model import load_model, save_model


def test_interval_over_items_is_that_of_a_mean():
    """Guards against an interval over runs that is too narrow (items pooled twice) or too wide."""
    rng = np.random.default_rng(0)
    values = [(rng.random(400) < p).astype(float) for p in (0.5, 0.6, 0.7)]
    draws = runs.by_item(values)
    error = np.sqrt(sum(v.var() / len(v) for v in values)) / 3
    assert draws.std() == pytest.approx(error, rel=0.1)
    assert draws.mean() == pytest.approx(np.mean([v.mean() for v in values]), abs=0.005)
    mean, half = runs.in_words(values, draws).split(" ±")
    assert float(mean) == pytest.approx(np.mean(values), abs=0.001)
    assert float(half) == pytest.approx(1.96 * error, rel=0.12)


def test_interval_over_queries():
    """Guards against intervals for other queries that take each item for one. 20 queries with 50 items each,
    all right or all wrong, are 20 numbers, also in two runs of the same queries. With a query for each item
    it is the interval over items, and with queries that are half right it is much narrower."""
    rng = np.random.default_rng(0)
    right = (rng.random(20) < 0.5).astype(float)
    values, queries = right.repeat(50), [str(i) for i in range(20) for _ in range(50)]
    error = np.sqrt(right.var() / 20)
    assert runs.by_query([values], [queries]).std() == pytest.approx(error, rel=0.1)
    assert runs.by_query([values] * 2, [queries] * 2).std() == pytest.approx(error, rel=0.1)
    alone = [str(i) for i in range(1000)]
    assert runs.by_query([values], [alone]).std() == pytest.approx(runs.by_item([values]).std(), rel=0.1)
    assert runs.by_query([np.tile([0.0, 1.0], 500)], [queries]).std() < 1e-9
    many = [1.0] * 900 + [0.0] * 100               # 10 queries are right 90 times each, 10 are wrong 10 times
    unequal = [str(i % 10) for i in range(900)] + [str(10 + i % 10) for i in range(100)]
    draws = runs.by_query([np.array(many)], [unequal])
    assert np.median(draws) == pytest.approx(0.9, abs=0.02)                  # of items, not .5 of queries
    assert (runs.by_query([np.ones(1000)], [unequal]) == 1).all()            # a share of the items drawn


def test_differences_are_paired():
    """Guards against an interval of two independent means. Two policies are right for nearly the same items,
    so their difference is far more certain than each of them."""
    rng = np.random.default_rng(0)
    worse = (rng.random(500) < 0.5).astype(float)
    better = worse.copy()
    better[np.flatnonzero(worse == 0)[:20]] = 1    # 20 of 500 more: the difference is .04, its error .0088
    arrays = [{"rft/greedy": worse, "rl/greedy": better}] * 2
    [head, row] = runs.difference_rows(arrays, [[str(i) for i in range(500)]] * 2)
    assert row[0] == "rl/greedy - rft/greedy" and row[1] == "+0.040" and row[4] == "+0.040, +0.040"
    low, high = map(float, row[2].split(" to "))
    assert high - low == pytest.approx(2 * 1.96 * 0.0088 / np.sqrt(2), rel=0.15)


def test_combined_interval():
    """Guards against a half-width that is multiplied by the number of runs in place of divided, or not at
    all: four independent runs with a half-width of .08 have a mean with .04."""
    assert runs.combined([[0.5, 0.42, 0.58], [0.6, 0.52, 0.68], [0.7, 0.62, 0.78], [0.6, 0.52, 0.68]]) == \
        "0.600 ±0.040"
    assert runs.combined([60.5, 61.5]) == "61"


def made_run(folder, seed, **config):
    """A run folder with results by hand: 140 items, whose greedy accuracy depends on the domain alone."""
    rng = np.random.default_rng(seed)
    domains = [item.domain for item in make_items(seed, "test", 140, least=2)]
    greedy = np.where(np.isin(domains, VERIFIABLE), 0.25, 0.75)
    columns = {f"{policy}/{name}": greedy if name == "greedy" else rng.random(140)
               for policy in ("base", "rft", "rl") for name in ("greedy", "one sample", "sum@8")}
    folder.mkdir()
    np.savez_compressed(folder / "per_item.npz", **columns)
    stage = dict.fromkeys(("greedy", "one sample", "sum@8", "one response"), [0.5, 0.4, 0.6])
    by_domain = {name: {"items": domains.count(name)} for name in set(domains)}
    stages = dict.fromkeys(("base", "rft", "rl"), {**stage, "tokens": 60.0, "by domain": by_domain})
    cfg = {"eval_split": "test", "seed": seed, **config}
    results = {"items": 140, "config": cfg, "stages": stages, "seconds": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder), greedy.mean()


def test_tables_of_runs(tmp_path, capsys):
    """Guards against rows that vanish, means over the wrong domains, runs that do not belong together."""
    (a, mean_a), (b, mean_b) = made_run(tmp_path / "a", 1), made_run(tmp_path / "b", 2)
    runs.main([a, b])
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
            for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert rows["sums"][1] == "0.250 ±0.000" and rows["others"][1] == "0.750 ±0.000"
    assert rows["greedy"][3].split()[0] == rows["greedy"][4].split()[0] == f"{(mean_a + mean_b) / 2:.3f}"
    assert rows["rl/greedy - rft/greedy"][1:] == ["+0.000", *["+0.000 to +0.000"] * 2, "+0.000, +0.000"]
    assert rows["one response"][1] == "0.500 ±0.071" and rows["tokens"][3] == "60"       # .1 / sqrt(2)
    other, _ = made_run(tmp_path / "c", 3, beta=0.5)
    for argv, message in [([], "Give run folders"), ([str(tmp_path / "none")], "not the result"),
                          ([a, a], "the same seed"), ([a, other], "differ in --beta")]:
        with pytest.raises(UserError, match=message):
            runs.main(argv)
    path = tmp_path / "b" / "results.json"
    path.write_text(path.read_text().replace('"sums"', '"subtractions"'))
    with pytest.raises(UserError, match="another world"):
        runs.main([a, b])
    (tmp_path / "b" / "per_item.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="per_item.npz cannot be read"):
        runs.main([a, b])


def test_bundled_weights_are_those_of_the_run(tmp_path, tiny, tok, monkeypatch):
    """Guards against a bundled judge without its Meta RM or tokenizer, in another precision, or with a
    tour of another judge."""
    monkeypatch.setattr(runs, "BUNDLED", str(tmp_path / "judge"))
    model = tiny(tok.vocab_size, 368)
    for name in ("base", "rft", "rl", "meta"):
        save_model(str(tmp_path / f"{name}.pt"), model)
    save_tokenizer(str(tmp_path / "tokenizer.tiktoken"), tok)
    runs.main(["--ship", str(tmp_path)])
    for name in ("base", "rft", "rl", "meta"):
        saved = torch.load(tmp_path / "judge" / f"{name}.pt", weights_only=True)
        assert all(w.dtype == torch.float16 for w in saved["weights"].values())
        shipped = load_model(str(tmp_path / "judge" / f"{name}.pt"))
        assert shipped.wte.weight.dtype == torch.float32 and shipped.cfg == model.cfg
        for ours, theirs in zip(model.parameters(), shipped.parameters()):
            assert torch.equal(ours.half().float(), theirs)
    assert load_tokenizer(str(tmp_path / "judge" / "tokenizer.tiktoken")).ranks == tok.ranks
    [judgements] = read_judgements(str(tmp_path / "judge" / "tour.jsonl"))
    assert [j.sample for j in judgements] == [0, 0, 0, *range(3), *range(4), *range(8)]
