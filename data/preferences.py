"""
Preference files: JSON lines with the keys of RewardBench, so that other tools read ours and we read theirs.

    python -m data.preferences export pairs.jsonl --split test --count 500
    python -m data.preferences export four.jsonl --format best-of-n
    python -m data.preferences check pairs.jsonl

pairs (RewardBench; TRL reads them as a preference set with explicit prompts):
    id, subset, prompt, chosen, rejected, chosen_model, rejected_model, gold_chosen, gold_rejected, split, ...
best-of-n (RewardBench 2):
    id, subset, prompt, chosen [1 text], rejected [1 to 3 texts], num_correct, total_completions, ...

To be read, a line needs prompt, chosen and rejected. id, subset and split are used if they are there. `*_model`
names the criteria that a response misses ("clean" if none); `subset` is the domain.
"""

import argparse
import json
import os
import random
import re

from data import UserError, new_file, run_command
from data.world import Item, make_item, seed_of

# ----------------------------------------------------------------------------------------
# Export

def row_of(item, pair):
    """The item's best response against the others: a text each in pairs, lists of texts in best-of-n."""
    row = {"id": item.id, "subset": item.domain, "prompt": item.query, "split": item.split,
           "num_correct": 1, "total_completions": item.n}
    missed = ["-".join(name for name in item.weights if not met[name][0]) or "clean" for met in item.truth]
    for key, values in (("{}", item.responses), ("{}_model", missed), ("gold_{}", item.gold)):
        best, rest = [values[item.best]], [v for i, v in enumerate(values) if i != item.best]
        row[key.format("chosen")], row[key.format("rejected")] = (best[0], rest[0]) if pair else (best, rest)
    return row


def export(path, split, count, seed, format):
    """Write `count` items of a split, pairs (n = 2) or best-of-n (n = 2 to 4)."""
    pairs = format == "pairs"
    with new_file(path) as f:
        for i in range(count):
            item = make_item(seed, split, i, least=2, most=2 if pairs else 4)
            f.write(json.dumps(row_of(item, pairs)) + "\n")

# ----------------------------------------------------------------------------------------
# Reading

def read_row(line):
    """A line -> a dict with lists of texts as "chosen" and "rejected". ValueError says what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}), expected an object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, expected an object")
    if re.search(r"[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff), expected text that UTF-8 can hold")
    for key in ("prompt", "chosen", "rejected"):
        if key not in row:
            raise ValueError(f'no key "{key}", expected at least "prompt", "chosen" and "rejected"')
    for key, most in (("chosen", 1), ("rejected", 3)):
        if isinstance(row[key], str):
            row[key] = [row[key]]
        if not isinstance(row[key], list) or not 1 <= len(row[key]) <= most:
            raise ValueError(f'"{key}" must be a text, or a list of 1{f" to {most}" if most > 1 else ""}')
    texts = [row["prompt"], *row["chosen"], *row["rejected"]]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("the prompt or a response is empty, or not a text")
    if len(set(texts[1:])) < len(texts) - 1:
        raise ValueError("two responses are equal: no judge can tell which is better")
    if isinstance(row.get("id"), int):             # RewardBench's own files number their rows
        row["id"] = str(row["id"])
    for key in ("id", "subset", "split"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f'"{key}" is a {type(row[key]).__name__}, expected a text')
    return row


def read_items(path):
    """The items of a file. UserError shows the first ten lines that are wrong, each as file:line: reason."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Expected a file of JSON lines.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8. Expected a text file of JSON lines.") from None
    items, errors, seen = [], [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = read_row(line)
            id = row.get("id", f"line-{number}")
            if id in seen:
                raise ValueError(f'the id "{id}" was used in line {seen[id]}, expected unique ids')
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        seen[id] = number
        # The place of the chosen response follows from the id, so that it is no clue.
        responses = row["chosen"] + row["rejected"]
        order = random.Random(seed_of("place", id)).sample(range(len(responses)), len(responses))
        items.append(Item(id, row.get("subset", "none"), row["prompt"], [responses[i] for i in order],
                          [10 if i == 0 else 1 for i in order], split=row.get("split", "file")))
    if errors:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise UserError("Lines that cannot be read:\n" + "\n".join(errors[:10]) + more)
    if not items:
        raise UserError(f"{path} has no items. Expected a JSON object a line.")
    return items


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m data.preferences", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("action", choices=["export", "check"])
    parser.add_argument("file")
    parser.add_argument("--split", choices=["train", "val", "test", "ood"], default="test")
    parser.add_argument("--count", type=int, default=500, help="number of items, 500 by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the items, 0 by default")
    parser.add_argument("--format", choices=["pairs", "best-of-n"], default="pairs")
    args = parser.parse_args(argv)
    if args.action == "check":
        print(f"{len(read_items(args.file))} items, all well-formed")
        return
    if args.count < 1:
        raise UserError(f"--count {args.count}: use 1 or more.")
    if os.path.exists(args.file):
        raise UserError(f"{args.file} exists. Name another file, or delete it.")
    export(args.file, args.split, args.count, args.seed, args.format)
    print(f"{args.count} items written to {args.file}")


if __name__ == "__main__":
    run_command(main)
