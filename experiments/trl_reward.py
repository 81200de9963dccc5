"""
Our judge as the reward of another program's RL: TRL's GRPOTrainer.

    pip install trl==1.16.0 transformers==5.24.0
    python -m experiments.trl_reward               # some minutes on a CPU

A tiny Llama first learns to answer queries of the toy world, badly as well as well: its training texts are
all responses, whatever they deserve. Then comes GRPO with the bundled judge as the reward. The judge reads a
query and one response, k times, and the reward is the mean of the scores. Does it rise?
"""

import argparse
import json
import os
import string

import numpy as np
import torch

from data import UserError, new_file, run_command
from data.tokenizer import load_tokenizer
from data.world import Item, make_items, seed_of
from model import load_model
from sample import BUNDLED, check_length, judge


def reward_function(folder=BUNDLED, k=8, seed=0):
    """-> a reward function as TRL wants it: reward(prompts, completions) -> for each completion the mean of
    the scores of k judgements, or None if none of them parses (TRL leaves these out)."""
    policy = load_model(os.path.join(folder, "rl.pt"))
    tok = load_tokenizer(os.path.join(folder, "tokenizer.tiktoken"))
    calls = iter(range(2 ** 31))

    def reward(prompts, completions, **columns):
        items = [Item(f"trl-{i}", "none", prompt.strip(), [completion.strip()])
                 for i, (prompt, completion) in enumerate(zip(prompts, completions))]
        for item in items:
            check_length(tok, item, policy.cfg.block_size)
        groups = judge(policy, tok, items, k, seed_of(seed, "trl", next(calls)))
        scores = [[j.scores[0] for j in group if j.scores is not None] for group in groups]
        return [float(np.mean(mine)) if mine else None for mine in scores]

    return reward


def characters():
    """A tokenizer whose tokens are characters."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast
    names = ["<pad>", "<end>", *string.ascii_lowercase, *string.digits, *" :?+\n"]
    model = tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<pad>")
    tok = tokenizers.Tokenizer(model)
    tok.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="<end>",
                                   padding_side="left")


def speaker(tok, seed=0, steps=300):
    """A Llama of 0.5M parameters, trained on queries and any of their responses."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=160, pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id, bos_token_id=tok.eos_token_id))
    texts = [f"{item.query}\n{response}<end>" for item in make_items(seed, "train", 2000)
             for response in item.responses]
    optimizer, rng = torch.optim.AdamW(model.parameters(), 2e-3), np.random.default_rng(seed)
    for _ in range(steps):
        batch = tok([texts[i] for i in rng.integers(0, len(texts), 64)], return_tensors="pt", padding=True,
                    padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def train(out, reward, steps=60, seed=0):
    """GRPO with TRL -> the mean reward of each step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    tok = characters()
    queries = [item.query + "\n" for item in make_items(seed, "train", 4000)[2000:]]
    config = GRPOConfig(out, use_cpu=True, bf16=False, max_steps=steps, per_device_train_batch_size=128,
                        num_generations=8, max_completion_length=48, learning_rate=3e-4, beta=0.1,
                        activation_checkpointing=False, seed=seed, logging_steps=1, save_strategy="no",
                        report_to="none", disable_tqdm=True)
    start = os.path.join(out, "speaker")           # TRL loads the policy and its reference from there
    speaker(tok, seed).save_pretrained(start)
    trainer = GRPOTrainer(start, reward, config, Dataset.from_dict({"prompt": queries}), processing_class=tok)
    trainer.train()
    return [line["reward"] for line in trainer.state.log_history if "reward" in line]


def compare(rewards):
    """-> the mean of the first ten steps, of the last ten, the standard error of their difference."""
    first, last = np.array(rewards[:10], float), np.array(rewards[-10:], float)
    return first.mean(), last.mean(), np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / 10)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m experiments.trl_reward", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/trl")
    parser.add_argument("--steps", type=int, default=60, help="of GRPO, 20 or more")
    parser.add_argument("-k", type=int, default=8, help="judgements of each response")
    args = parser.parse_args(argv)
    try:
        import trl  # noqa: F401
    except ImportError:
        raise UserError("This needs TRL: pip install trl==1.16.0 transformers==5.24.0") from None
    if args.steps < 20 or args.k < 1:
        raise UserError("--steps must be 20 or more, and -k 1 or more.")
    os.makedirs(args.out, exist_ok=True)
    rewards = train(args.out, reward_function(k=args.k), args.steps)
    with new_file(os.path.join(args.out, "rewards.json")) as f:
        json.dump(rewards, f)
    first, last, error = compare(rewards)
    print(f"reward of the first ten steps {first:.2f}, of the last ten {last:.2f}, standard error of the "
          f"difference {error:.2f}")


if __name__ == "__main__":
    run_command(main)
