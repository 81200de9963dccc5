"""
Preference files: JSON lines in the keys of RewardBench, so that other tools read ours and we read theirs.

    python -m data.preferences export pairs.jsonl --split test --count 500
    python -m data.preferences export four.jsonl --format best-of-n
    python -m data.preferences check pairs.jsonl

pairs (RewardBench; TRL reads them as an explicit-prompt preference set):
    id, subset, prompt, chosen, rejected, chosen_model, rejected_model, gold_chosen, gold_rejected, split, ...
best-of-n (RewardBench 2):
    id, subset, prompt, chosen [1 text], rejected [1 to 3 texts], num_correct, total_completions, ...

Needed on import: prompt, chosen, rejected; id, subset and split are read if they are there, all else is for
other tools. `*_model` names the criteria that the response misses ("clean" if none).
"""

import json
import random
import re

from data import Parser, UserError, check_new, command
from data.world import Item, make_item, seed_of
from parallel import new_file

# ----------------------------------------------------------------------------------------
# Export

def row_of(item, pair):
    """The item's best response against the others: one text each in pairs, lists of texts in best-of-n."""
    row = {"id": item.id, "subset": item.subset, "prompt": item.query, "split": item.split,
           "num_correct": 1, "total_completions": item.n}
    for key, values in (("{}", item.responses), ("{}_model", item.made_by), ("gold_{}", item.gold)):
        best, rest = [values[item.best]], [v for i, v in enumerate(values) if i != item.best]
        row[key.format("chosen")], row[key.format("rejected")] = (best[0], rest[0]) if pair else (best, rest)
    return row


def export(path, split, count, seed, format):
    """Write `count` items of a split, pairs (n = 2) or best-of-n (n = 2..4)."""
    pairs = format == "pairs"
    with new_file(path) as f:
        for i in range(count):
            item = make_item(seed, split, i, least=2, most=2 if pairs else 4)
            f.write(json.dumps(row_of(item, pairs)) + "\n")

# ----------------------------------------------------------------------------------------
# Import

def read_row(line):
    """One line -> (dict, None) or (None, what is wrong and what was expected)."""
    try:
        row = json.loads(line)
        text = json.dumps(row, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({error}), expected one object a line"
    if re.search(r"[\ud800-\udfff]", text):
        return None, "half of a surrogate pair (\\ud800 to \\udfff), expected text that UTF-8 can hold"
    if not isinstance(row, dict):
        return None, f"a JSON {type(row).__name__}, expected an object"
    for key in ("prompt", "chosen", "rejected"):
        if key not in row:
            return None, f'no key "{key}", expected at least "prompt", "chosen" and "rejected"'
    if not isinstance(row["prompt"], str):
        return None, f'"prompt" is a {type(row["prompt"]).__name__}, expected a string'
    for key, most in (("chosen", 1), ("rejected", 3)):
        texts = [row[key]] if isinstance(row[key], str) else row[key]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            return None, f'"{key}" is no text, expected a string or a list of strings'
        if not 1 <= len(texts) <= most:
            expected = "exactly 1" if most == 1 else f"1 to {most}"
            return None, f'"{key}" has {len(texts)} texts, expected {expected}'
        row[key] = texts
    if isinstance(row.get("id"), int):             # RewardBench's own files number their rows
        row["id"] = str(row["id"])
    for key in ("id", "subset", "split"):
        if not isinstance(row.get(key, ""), str):
            return None, f'"{key}" is a {type(row[key]).__name__}, expected a string'
    return row, None


def load(path):
    """-> (items, errors). The place of the chosen response is drawn from the line's id, so that it is
    no clue; errors are 'file:line: what is wrong, what was expected'."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")           # JSON may hold the other line ends that splitlines() knows
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a file of JSON lines") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8, expected a text file of JSON lines") from None
    items, errors, seen = [], [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, error = read_row(line)
        id = row.get("id", f"line-{number}") if row else None
        if row and id in seen:
            error = f'the id "{id}" was used in line {seen[id]}, expected unique ids'
        if error:
            errors.append(f"{path}:{number}: {error}")
            continue
        seen[id] = number
        responses = row["chosen"] + row["rejected"]
        order = random.Random(seed_of("place", id)).sample(range(len(responses)), len(responses))
        items.append(Item(id, row.get("subset", "none"), row["prompt"], [responses[i] for i in order],
                          [10 if i == 0 else 1 for i in order], split=row.get("split", "file")))
    return items, errors


def load_or_fail(path):
    """The items of a file without any malformed line; else a UserError that shows the first few."""
    items, errors = load(path)
    if errors:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise UserError("malformed lines\n" + "\n".join(errors[:10]) + more)
    if not items:
        raise UserError(f"{path}: no items, expected one JSON object a line")
    return items


def main(argv):
    parser = Parser(__doc__, prog="python -m data.preferences")
    parser.add_argument("action", choices=["export", "check"])
    parser.add_argument("file")
    parser.add_argument("--split", choices=["train", "val", "test", "ood"], default="test")
    parser.add_argument("--count", type=int, default=500, help="number of items")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--format", choices=["pairs", "best-of-n"], default="pairs")
    args = parser.parse_args(argv)
    if args.action == "export":
        if args.count < 1:
            raise UserError(f"--count {args.count}: expected 1 or more")
        check_new(args.file)
        export(args.file, args.split, args.count, args.seed, args.format)
        print(f"{args.count} items written to {args.file}")
    else:
        print(f"{len(load_or_fail(args.file))} items, all well-formed")


if __name__ == "__main__":
    command(main)
