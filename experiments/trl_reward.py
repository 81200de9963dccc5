"""
Our judge as the reward of somebody else's RL: TRL's GRPOTrainer.

    pip install trl==1.16.0 transformers==5.24.0   # the benchmark and a test know of them, too
    python -m experiments.trl_reward               # some minutes on a CPU

A tiny Llama first learns to answer queries of the world, badly as well as well: its training texts are all
responses, whatever they deserve. Then GRPO, with the judge that comes along as the reward: it reads a query
and one response, k times, and the reward is the mean of the scores. Does the reward rise? It does, most of it
soon (seed 0, 60 steps: 4.49 over the first ten, 5.29 over the last ten, standard error of the difference
.16). Without a KL penalty, with the judge of version 0.5.0, it rose to 7, and then the policy wrote what the
judge cannot read: for that there is no reward, and so nothing that called it back.
"""

import os
import string

import numpy as np
import torch

from data import Parser, UserError, command
from data.judgement import vote
from data.world import Item, make_items
from metarm import score
from run import write_json
from sample import SHIPPED, check_length, judge, load_judge, voters_of

STEPS, SPEAK, LENGTH = 60, 300, 48                 # of GRPO, of training before it; characters of a response

# ----------------------------------------------------------------------------------------
# The reward

def reward_function(folder=SHIPPED, k=8, rule="sum", seed=0):
    """-> a reward function as TRL wants it: reward(prompts, completions) -> for each completion the mean of
    the scores of k judgements, or None if none of them parses (TRL leaves these out). rule: "sum", or
    "guided": only the half that the Meta RM likes best. What is too long for the judge is a UserError."""
    policy, tok, meta = load_judge(folder, "rl", "cpu", rule == "guided")
    calls = iter(range(2 ** 31))

    def reward(prompts, completions, **columns):
        items = [Item(f"trl-{i}", "file", prompt.strip(), [completion.strip()])
                 for i, (prompt, completion) in enumerate(zip(prompts, completions))]
        for item in items:
            check_length(tok, item, policy.cfg.block_size)
        groups = judge(policy, tok, items, k, seed, f"trl {next(calls)}")
        if meta is not None:
            score(meta, sum(groups, []))
        ballots = [[j.scores for j in voters_of(group, rule) if j.scores] for group in groups]
        return [vote(b)[0] / len(b) if b else None for b in ballots]

    return reward

# ----------------------------------------------------------------------------------------
# A policy that can answer

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


def speaker(tok, seed=0, steps=SPEAK):
    """A Llama of 0.5M parameters, trained on queries and any of their responses."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=160, pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id, bos_token_id=tok.eos_token_id))
    texts = [f"{item.query}\n{response}<end>" for item in make_items(seed, "train", 2000)
             for response in item.responses]
    opt, rng = torch.optim.AdamW(model.parameters(), 2e-3), np.random.default_rng(seed)
    for _ in range(steps):
        batch = tok([texts[i] for i in rng.integers(0, len(texts), 64)], return_tensors="pt", padding=True,
                    padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        opt.step()
        opt.zero_grad()
    return model


def train(out, reward, steps=STEPS, seed=0):
    """GRPO with TRL -> the mean reward of each step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    tok = characters()
    queries = [item.query + "\n" for item in make_items(seed, "train", 2000, start=2000)]
    config = GRPOConfig(out, use_cpu=True, bf16=False, max_steps=steps, per_device_train_batch_size=128,
                        num_generations=8, max_completion_length=LENGTH, learning_rate=3e-4, beta=0.1,
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
    parser = Parser(__doc__)
    parser.add_argument("--out", default="runs/trl")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--vote", choices=["sum", "guided"], default="sum")
    parser.add_argument("-k", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        import trl  # noqa: F401
    except ImportError:
        raise UserError("this needs TRL: pip install trl==1.16.0 transformers==5.24.0") from None
    if args.steps < 20 or args.k < 1:
        raise UserError("--steps: expected 20 or more, ten for the start and ten for the end; -k: 1 or more")
    os.makedirs(args.out, exist_ok=True)
    rewards = train(args.out, reward_function(k=args.k, rule=args.vote), args.steps)
    write_json(os.path.join(args.out, "rewards.json"), rewards)
    first, last, error = compare(rewards)
    print(f"reward of the first ten steps {first:.2f}, of the last ten {last:.2f}, standard error of the "
          f"difference {error:.2f}")


if __name__ == "__main__":
    command(main)
