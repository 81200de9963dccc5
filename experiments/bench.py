"""
How fast are the sampler and the trainer, against this machine's own limit and against other programs?

    python -m experiments.bench                       # some minutes on a CPU
    python -m experiments.bench --quick               # under a minute: the same table, smaller and noisier

Contenders are measured in turn. Compare the ratios: rates differ from machine to machine and hour to hour.

- The limit is what a large float32 matrix product reaches here. A share of it counts useful work only: no
  padding. (In bfloat16, which has a limit of its own, it can be above 1.)
- Sampling needs no trained judge. Prompts are those of the toy world, and each sample is made to end where a
  simulated expert's judgement ends: real lengths, the same for all contenders.
- Hugging Face's generate and TRL's GRPO join in if they are installed (pip install trl==1.16.0
  transformers==5.24.0), with a Llama that has as many layers, channels, heads and parameters.
"""

import argparse
import contextlib
import io
import itertools
import random
import statistics
import tempfile
import time
from importlib.util import find_spec
from unittest import mock

import numpy as np
import torch

import sample
import spct
from data import pick_dtype, run_command
from data.annotators import annotate, make_corpus, make_document
from data.judgement import judgement_parts, prompt_parts
from data.tokenizer import END, PAD, Tokenizer, train_bpe
from data.world import make_items
from model import GPT, GPTConfig, Optimizer, pad_left, token_logp
from sample import draw, generate

# The models of the presets cpu and gpu: 0.7M and 2.7M parameters without embeddings.
SIZES = {"S": dict(n_layer=4, n_head=4, n_embd=128), "M": dict(n_layer=7, n_head=6, n_embd=192)}


def config(tok, size="S"):
    return GPTConfig(tok.vocab_size, spct.Config.block_size, **SIZES[size])


def seconds(contenders, rounds):
    """{name: function} -> {name: median of its seconds}. The functions are called in turn, `rounds` times."""
    times = {name: [] for name in contenders}
    for name, function in list(contenders.items()) * rounds:
        start = time.perf_counter()
        function()
        times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def show(text, *numbers_and_units):
    """One line of the table: a name, then numbers, each with its unit."""
    pairs = zip(numbers_and_units[::2], numbers_and_units[1::2])
    cells = [f"{x:10,.0f} {unit}" if x >= 100 else f"{x:10.3f} {unit}" for x, unit in pairs]
    print(f"{text:48s}{'  '.join(cells)}", flush=True)

# ----------------------------------------------------------------------------------------
# Work to do, and what it costs at least

def forward_flops(cfg, T, predicted):
    """Floating point operations to read a text of T tokens and predict some: 2 for each weight of a matrix,
    and 4 C a layer for each token that one attends to (2 for its score, 2 for the sum, over all heads)."""
    C = cfg.n_embd
    weights = C * (C + 2 * C // cfg.n_head) + C * C + 8 * C * C              # of a block: qkv, proj, MLP
    return cfg.n_layer * (2 * weights * T + 4 * C * T * (T + 1) / 2) + 2 * C * cfg.vocab_size * predicted


def make_work(tok, count):
    """-> prompts, lengths: where an expert's judgements of them would end."""
    items = make_items(0, "test", count, least=2)
    prompts = [tuple(tok.encode(prompt_parts(item.query, item.responses))) for item in items]
    expert = lambda i: judgement_parts(*annotate(random.Random(i), items[i], "expert"))
    return prompts, [len(tok.encode(expert(i))) for i in range(len(items))]


def scripted(lengths):
    """Let the sampler's rows end on cue: the sample with seed s writes lengths[s % N] tokens. The cue is a
    random number of 2: there the token is END, and nowhere else."""
    def uniforms(seed, count):
        u = np.random.default_rng(seed).random(count, dtype=np.float32)
        u[lengths[seed % len(lengths)] - 1:] = 2.0
        return u

    def draw_on_cue(logits, u, temperature):
        ids, logp = draw(logits, u.clamp(max=0.999), temperature)
        return torch.where(u > 1, END, torch.where(ids == END, PAD, ids)), logp

    return mock.patch.multiple(sample, uniforms=uniforms, draw=draw_on_cue)

# ----------------------------------------------------------------------------------------
# Contenders. work: prompts and lengths, as from make_work

def ours(model, work, rows=256):
    with scripted(work[1]), mock.patch.object(sample, "ROWS", rows):
        done = generate(model, work[0], range(len(work[0])))
    assert [len(ids) for ids, _ in done] == work[1]


@torch.inference_mode()
def no_cache(model, work):
    """nanoGPT's `generate`: the whole text through the model for each new token, until all have ended."""
    ids, padding = pad_left(work[0])
    for _ in range(max(work[1])):
        token, _ = draw(model.logits(model(ids, padding)[:, -1]), torch.rand(len(ids)), 1.0)
        ids = torch.cat([ids, token[:, None]], dim=1)


def llama(cfg):
    """The Llama that is like our model."""
    from transformers import LlamaConfig, LlamaForCausalLM
    width = round(8 * cfg.n_embd / 3)              # three matrices with as many parameters as our two
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.n_embd, intermediate_size=width, tie_word_embeddings=True,
        num_hidden_layers=cfg.n_layer, num_attention_heads=cfg.n_head, num_key_value_heads=1,
        max_position_embeddings=2 * cfg.block_size, pad_token_id=PAD, bos_token_id=None, eos_token_id=None))


@torch.inference_mode()
def hugging_face(model, work, batch):
    """Sample with transformers, in float32 and in batches of prompts of similar length."""
    from transformers import StoppingCriteriaList
    work = sorted(zip(*work), key=lambda pair: len(pair[0]))
    for start in range(0, len(work), batch):
        prompts, lengths = zip(*work[start:start + batch])
        ids, _ = pad_left(prompts)
        end = ids.size(1) + torch.tensor(lengths)
        ended = lambda ids, scores, **_: ids.size(1) >= end                  # (B,)
        model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), do_sample=True, top_k=0, top_p=1.0,
                       max_new_tokens=max(lengths), stopping_criteria=StoppingCriteriaList([ended]))


def rl_step(tok, length, **settings):
    """Seconds of a step of spct.reinforce, with samples of `length` tokens: the last of three."""
    ends, update = [], Optimizer.step

    def timed(self, lr):
        ends.append(time.perf_counter())
        return update(self, lr)

    rewards = itertools.cycle([1.0, -1.0])         # without a trained policy there would be nothing to learn
    with tempfile.TemporaryDirectory() as folder, scripted([length]), \
            mock.patch.object(Optimizer, "step", timed), \
            mock.patch.object(spct, "reward", lambda j, item: next(rewards)), \
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cfg = spct.Config(device="cpu", out=folder, rl_steps=3, **settings)
        spct.reinforce(cfg, tok, GPT(config(tok)), make_items(0, "train", cfg.rl_items))
    return ends[-1] - ends[-2]


def trl_step(cfg, prompts, group, length):
    """The same of TRL, `group` samples of each prompt, without a reference model."""
    import tokenizers
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    vocab = {f"t{i}": i for i in range(cfg.vocab_size)}    # each token is a word: it reads the same prompts
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=f"t{PAD}"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token=f"t{PAD}", eos_token=f"t{END}", padding_side="left")
    tok = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    ends, clock = [], TrainerCallback()
    clock.on_step_end = lambda *args, **kwargs: ends.append(time.perf_counter())
    rows = Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in prompt) for prompt in prompts] * 3})
    reward = lambda completions, **rest: [float(i % 2) for i in range(len(completions))]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = GRPOConfig(folder, use_cpu=True, bf16=False, max_steps=3, num_generations=group,
                              per_device_train_batch_size=len(prompts) * group, max_completion_length=length,
                              generation_kwargs={"min_new_tokens": length}, beta=0.0, save_strategy="no",
                              activation_checkpointing=False, report_to="none", disable_tqdm=True)
        GRPOTrainer(llama(cfg), reward, settings, rows, processing_class=tok, callbacks=[clock]).train()
    return ends[-1] - ends[-2]

# ----------------------------------------------------------------------------------------
# The table

def bench_sampling(tok, limit, quick):
    """Tokens a second and share of the limit, by the number of rows; then the others."""
    work, model = make_work(tok, 64 if quick else 2048), GPT(config(tok))
    rounds, batch, best = (1, 16, 32) if quick else (3, 256, 256)
    counts = {1: 4, 32: 64} if quick else {1: 16, 32: 256, 256: 2048, 768: 2048}         # rows: samples
    some = {rows: [part[:count] for part in work] for rows, count in counts.items()}
    ours(model, some[32])                          # warm up
    times = seconds({rows: lambda rows=rows: ours(model, some[rows], rows) for rows in some}, rounds)
    for rows, s in times.items():                  # END is written, and not read
        flops = sum(forward_flops(model.cfg, len(prompt) + n - 1, n) for prompt, n in zip(*some[rows]))
        show(f"sampling, {rows} rows", sum(some[rows][1]) / s, "tokens/s", flops / s / limit, "of the limit")
    few = [part[:batch] for part in work]
    times = seconds({"ours": lambda: ours(model, few), "loop": lambda: no_cache(model, few)}, 1)
    show("loop without a cache", times["loop"] / times["ours"], "times slower than ours")
    if find_spec("transformers"):
        other = llama(model.cfg).eval()
        theirs = lambda: hugging_face(other, work, 2 * batch)
        times = seconds({"ours": lambda: ours(model, work, best), "theirs": theirs}, rounds)
        show("Hugging Face's generate", times["theirs"] / times["ours"], "times slower than ours")


def bench_training(tok, limit, quick):
    """Whole pre-training steps on real rows, optimizer included."""
    dtype = getattr(torch, pick_dtype("cpu"))
    ids, mask = make_corpus(tok, 0, 3_000, spct.Config.block_size)
    x, learned = torch.from_numpy(ids[:7].astype(np.int64)), torch.from_numpy(mask[:7])
    tokens = (x != PAD).sum(dim=1).tolist()        # of each row
    for size in SIZES:
        model = GPT(config(tok, size))
        optimizer = Optimizer(model, dtype)

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = -token_logp(model, x, learned).mean()
            loss.backward()
            optimizer.step(1e-3)

        seconds({size: step}, 2)                   # warm up
        s = seconds({size: step}, 2 if quick else 15)[size]
        flops = 3 * sum(forward_flops(model.cfg, n, int(row.sum())) for n, row in zip(tokens, learned))
        show(f"training, size {size}, {str(dtype).removeprefix('torch.')}", sum(tokens) / s, "tokens/s",
             flops / s / limit, "of the limit")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, smaller and noisier")
    quick = parser.parse_args(argv).quick
    tok = Tokenizer(train_bpe([part for i in range(2000) for parts, _ in make_document(0, i) for part in parts
                               if isinstance(part, str)], 704))
    a = torch.randn(2048, 2048)
    limit = 2 * 2048 ** 3 / seconds({"product": lambda: a @ a}, 9)["product"]
    show(f"matrix product, float32, {torch.get_num_threads()} threads", limit / 1e9, "GFLOP/s")
    bench_sampling(tok, limit, quick)
    bench_training(tok, limit, quick)
    items, group, length = (4, 4, 32) if quick else (32, 8, 112)
    mine = rl_step(tok, length, rl_items=items, group=group, dtype="float32")
    show(f"an RL step, {items} items x {group}, float32", mine, "s", items * group / mine, "samples/s")
    if find_spec("trl"):
        theirs = trl_step(config(tok), make_work(tok, items)[0], group, length)
        show("TRL, without a reference model (ours has one)", theirs / mine, "times as long as ours")


if __name__ == "__main__":
    run_command(main)
