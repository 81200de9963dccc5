"""Tables over several runs, against hand counts; the judge that comes along."""

import json

import numpy as np
import pytest
import torch

from data import UserError
from data.world import VERIFIABLE, make_items
from experiments import runs
from report import bootstrap
from run import load_tensors


def test_interval_over_runs_is_that_of_a_mean():
    """Guards against an interval over runs that is too narrow (items pooled twice) or too wide."""
    rng = np.random.default_rng(0)
    values = [(rng.random(400) < p).astype(float) for p in (0.5, 0.6, 0.7)]
    draws = bootstrap(values)
    error = np.sqrt(sum(v.var() / len(v) for v in values)) / 3
    assert draws.std() == pytest.approx(error, rel=0.1)
    assert draws.mean() == pytest.approx(np.mean([v.mean() for v in values]), abs=0.005)
    mean, half = runs.in_words(values, draws).split(" ±")
    assert float(mean) == pytest.approx(np.mean(values), abs=0.001)
    assert float(half) == pytest.approx(1.96 * error, rel=0.12)


def test_interval_over_queries():
    """Guards against intervals for other queries that take each item for one: 20 queries with 50 items each,
    all right or all wrong, are 20 numbers, in two runs of the same queries, too. With a query for each item
    it is the interval over items, and with queries that are half right it is much narrower."""
    rng = np.random.default_rng(0)
    right = (rng.random(20) < 0.5).astype(float)
    values, queries = right.repeat(50), [str(i) for i in range(20) for _ in range(50)]
    error = np.sqrt(right.var() / 20)
    assert runs.by_query([values], [queries]).std() == pytest.approx(error, rel=0.1)
    assert runs.by_query([values] * 2, [queries] * 2).std() == pytest.approx(error, rel=0.1)
    alone = [str(i) for i in range(1000)]
    assert runs.by_query([values], [alone]).std() == pytest.approx(bootstrap([values]).std(), rel=0.1)
    assert runs.by_query([np.tile([0.0, 1.0], 500)], [queries]).std() < 1e-9
    many = [1.0] * 900 + [0.0] * 100               # 10 queries are right 90 times each, 10 are wrong 10 times
    unequal = [str(i % 10) for i in range(900)] + [str(10 + i % 10) for i in range(100)]
    draws = runs.by_query([np.array(many)], [unequal])
    assert np.median(draws) == pytest.approx(0.9, abs=0.02)                  # of items, not .5 of queries
    assert (runs.by_query([np.ones(1000)], [unequal]) == 1).all()            # a share of the items drawn


def test_combined_interval():
    """Guards against a half-width that is multiplied by the number of runs in place of divided, or not at
    all: four independent runs with a half-width of .08 have a mean with .04."""
    assert runs.combined([[0.5, 0.42, 0.58], [0.6, 0.52, 0.68], [0.7, 0.62, 0.78], [0.6, 0.52, 0.68]]) == \
        "0.600 ±0.040"


def made_run(folder, seed, **config):
    """A run folder with results by hand: 140 items, whose greedy accuracy depends on the subset alone."""
    rng = np.random.default_rng(seed)
    subset = np.array([item.subset for item in make_items(seed, "test", 140, least=2)])
    greedy = np.where(np.isin(subset, VERIFIABLE), 0.25, 0.75)
    columns = {f"{stage}/{name}": greedy if name == "greedy" else rng.random(140)
               for stage in ("base", "rft", "rl") for name in ("greedy", "one sample", "sum@8")}
    folder.mkdir()
    np.savez_compressed(folder / "per_item.npz", subset=subset, **columns)
    stage = {name: [0.5, 0.4, 0.6] for name in runs.OTHERS} | {"ties": 0.1, "tokens": 60.0}
    cfg = {"eval_split": "test", "dtype": "float32", "seed": seed, **config}
    results = {"seed": seed, "items": 140, "config": cfg,
               "stages": dict.fromkeys(("base", "rft", "rl"), stage), "meta": {}, "machine": "m"}
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_tables_of_runs(tmp_path, capsys):
    """Guards against rows that vanish, means over the wrong subsets, runs that do not belong together."""
    a, b = made_run(tmp_path / "a", 1), made_run(tmp_path / "b", 2)
    runs.main([a, b])
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
            for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert rows["sums"][1] == "0.250 ±0.000" and rows["others"][1] == "0.750 ±0.000"
    subsets = [np.load(f"{folder}/per_item.npz")["subset"] for folder in (a, b)]
    greedy = np.mean([np.where(np.isin(s, VERIFIABLE), 0.25, 0.75).mean() for s in subsets])
    assert rows["greedy"][3].split()[0] == rows["rl/greedy"][1].split()[0] == f"{greedy:.3f}"
    assert rows["rl/greedy - rft/greedy"][1:] == ["+0.000", *["+0.000 to +0.000"] * 2, "+0.000, +0.000"]
    assert rows["one response, exact score"][1] == "0.500 ±0.071"             # .1 / sqrt(2)
    other = made_run(tmp_path / "c", 3, beta=0.5)
    for argv, message in [([], "folders"), ([str(tmp_path / "none")], "lacks results.json"),
                          ([a, a], "the same seed"), ([a, other], "differ in --beta")]:
        with pytest.raises(UserError, match=message):
            runs.main(argv)
    columns = dict(np.load(b + "/per_item.npz"))
    np.savez_compressed(b + "/per_item.npz", **{**columns, "subset": columns["subset"][::-1]})
    with pytest.raises(UserError, match="another world"):
        runs.main([a, b])
    (tmp_path / "b" / "per_item.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged"):
        runs.main([a, b])


def test_shipped_weights_are_those_of_the_run(tmp_path, monkeypatch):
    """Guards against a judge that comes along without its Meta RM or tokenizer, or in another precision."""
    monkeypatch.setattr(runs, "SHIPPED", str(tmp_path / "judge"))
    weights = {"w": torch.randn(4, 4)}
    for name in ("base", "rl", "meta-rl"):
        torch.save({"config": {"n_layer": 2}, "weights": weights}, tmp_path / f"{name}.pt")
    (tmp_path / "tokenizer.tiktoken").write_text("YQ== 13\n")
    runs.main(["--ship", str(tmp_path)])
    for name in ("base", "rl", "meta-rl"):
        saved = load_tensors(str(tmp_path / "judge" / f"{name}.pt"), "cpu")
        assert saved["config"] == {"n_layer": 2} and saved["weights"]["w"].dtype == torch.float16
        assert torch.equal(saved["weights"]["w"], weights["w"].half())
    assert (tmp_path / "judge" / "tokenizer.tiktoken").read_text() == "YQ== 13\n"
