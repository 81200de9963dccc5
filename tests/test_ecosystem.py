"""Other people's tools, the real ones, on our files and with our judge. Nothing else needs them. They do not
agree on a version of transformers, so that each has an environment of its own:

    pip install -r requirements.txt trl==1.16.0 transformers==5.24.0
    pip install -r requirements.txt transformers==4.51.0 datasets pandas accelerate sentencepiece protobuf
    pip install --no-deps rewardbench==0.1.4 fschat==0.2.36 trl==0.11.4
"""

import logging
import os

import numpy as np
import pytest

import data.preferences
from data.judgement import correct, vote_sum
from data.tokenizer import load_tokenizer
from model import load_model
from report import tie_broken
from sample import BUNDLED, judge

os.environ["HF_HUB_OFFLINE"] = "1"                 # nothing is downloaded


def need(name, version):
    package = pytest.importorskip(name, reason=f"{name} is not installed")
    if package.__version__ != version:
        pytest.skip(f"{name} is {package.__version__}: this is for {version}")
    return package


@pytest.fixture
def exported(tmp_path):
    """export(format) -> path of a file, its items, what the judge says of them: n sums of scores each."""
    def export(format, name="items.jsonl", count=24):
        path = str(tmp_path / name)
        data.preferences.export(path, "test", count, 0, format)
        items = data.preferences.read_items(path)
        tok = load_tokenizer(os.path.join(BUNDLED, "tokenizer.tiktoken"))
        groups = judge(load_model(os.path.join(BUNDLED, "rl.pt")), tok, items, 2, seed=0)
        sums = [vote_sum([j.scores for j in group]) for group in groups]
        return path, items, [s or [0] * item.n for item, s in zip(items, sums)]
    return export


def test_rewardbench_pairs(exported, tmp_path, monkeypatch):
    """Guards against pairs that RewardBench's loader does not take, or an accuracy that is not its own."""
    utils = need("rewardbench", "0.1.4").utils
    os.makedirs(tmp_path / "pairs" / "data")
    _, items, scores = exported("pairs", "pairs/data/filtered-00000-of-00001.jsonl")
    monkeypatch.setattr(utils, "CORE_EVAL_SET", str(tmp_path / "pairs"))
    rows, subsets = utils.load_eval_dataset(custom_dialogue_formatting=True)
    assert list(rows["id"]) == [item.id for item in items]
    assert list(subsets) == [item.domain for item in items]
    for row, item in zip(rows, items):
        assert [m["content"] for m in row["text_chosen"]] == [item.query, item.responses[item.best]]
        assert [m["content"] for m in row["text_rejected"]] == [item.query, item.responses[1 - item.best]]
    theirs = [int(s[item.best] > s[1 - item.best]) for s, item in zip(scores, items)]    # as its script does
    counts = {name: subsets.count(name) for name in set(subsets)}
    mean = {name: np.mean([t for t, s in zip(theirs, subsets) if s == name]) for name in counts}
    [total] = utils.calculate_scores_per_section(counts, {"all": list(counts)}, mean).values()
    assert total == pytest.approx(np.mean([correct(s, item.gold) for s, item in zip(scores, items)]))


def test_rewardbench_best_of_n(exported):
    """The same for best of n, where its scorer breaks ties at random."""
    utils = need("rewardbench", "0.1.4").utils
    path, items, scores = exported("best-of-n")
    rows, subsets, totals, _ = utils.load_bon_dataset_v2(path, custom_dialogue_formatting=True,
                                                         logger=logging.getLogger())
    assert list(totals) == [item.n for item in items]
    said = {(item.query, response): float(s[i]) for item, s in zip(items, scores)
            for i, response in enumerate(item.responses)}
    column = [said[row["text"][0]["content"], row["text"][1]["content"]] for row in rows]
    rows = rows.remove_columns(["text"]).add_column("text", range(len(rows))).add_column("scores", column)
    rolled = utils.reroll_and_score_dataset(rows, list(totals))
    ours = [tie_broken(s, item.gold) for s, item in zip(scores, items)]
    assert list(rolled["results"]) == pytest.approx(ours)


def test_trl_takes_our_pairs(exported, tmp_path):
    """Guards against pairs that TRL's RewardTrainer does not take as they are."""
    trl = need("trl", "1.16.0")
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from experiments.trl_reward import characters
    path, *_ = exported("pairs")
    tok = characters()
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tok.pad_token_id))
    config = trl.RewardConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, max_steps=3, report_to="none",
                              per_device_train_batch_size=4, save_strategy="no", logging_steps=1)
    rows = load_dataset("json", data_files=path, split="train")
    trainer = trl.RewardTrainer(model, config, train_dataset=rows, processing_class=tok)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and all(np.isfinite(float(loss)) for loss in losses)


@pytest.mark.slow
def test_trl_learns_from_our_judge(tmp_path):
    """Guards against a reward that TRL cannot use, or from which nothing can be learned."""
    need("trl", "1.16.0")
    from experiments.trl_reward import compare, reward_function, train
    first, last, error = compare(train(str(tmp_path), reward_function()))
    assert last > first + 2 * error
