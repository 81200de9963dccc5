"""
All studies, one after the other, and experiments/RESULTS.md from what they found; its first chapter is of the
reference runs, which lie beside it.

    python -m experiments.all           # twelve hours of one core; what is done already is not repeated
    python -m experiments.all baselines  # one study; the chapters of the others stay as they are
    python -m experiments.all --seeds 1  # one seed's share of the work: RESULTS.md stays as it is
    python -m experiments.all --quick  # minutes: the numbers mean nothing, RESULTS.md stays as it is
"""

import glob
import os
import shutil

from data import command
from experiments import ablations, baselines, runs, scaling, study, truth, votes
from parallel import new_file
from run import read_json

STUDIES = {module.NAME: module for module in (baselines, votes, ablations, scaling, truth)}
REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference")


def chapter(module, results):
    """One study's part of RESULTS.md: its question, what was seen, its figure, its tables, how it was run."""
    question, rest = module.__doc__.strip().split("\n\n", 1)
    hours = results["seconds"] / 3600
    made = (f"`python -m experiments.{module.NAME}`: seeds {', '.join(map(str, results['seeds']))}; "
            f"{hours:.1f} hours of work in all its runs, those shared with other studies, too; summed up on "
            f"{results['date']}, commit {results['commit']}, {results['machine']}.")
    figure = f"![{module.NAME}](reference/{module.NAME}.png)"
    title = "## " + question.replace("\n", " ")
    return "\n\n".join([title, rest, module.FINDINGS.strip(), figure, results["text"], made])


def default_runs():
    """The chapter of the default runs: tables over seeds, how to read them."""
    title, rest = runs.__doc__.strip().split("\n\n", 1)
    return "\n\n".join(["## " + title, rest, runs.FINDINGS.strip(),
                        "![accuracy against the number of votes](reference/cpu-seed1/votes.png)",
                        runs.tables(sorted(glob.glob(os.path.join(REFERENCE, "cpu-seed*"))))])


def write_results(names):
    """RESULTS.md from what lies in reference/, where the results of the studies `names` go first."""
    for name in names:
        shutil.copy(f"runs/{name}/{name}.png", REFERENCE)
        shutil.copy(f"runs/{name}/results.json", os.path.join(REFERENCE, f"{name}.json"))
    parts = ["# Results",
             "Written by `python -m experiments.all`: the default runs, then for each study its question, "
             "what was seen, its figure, its tables. \"Noise\": the 95% interval of a difference contains 0; "
             "\"seeds disagree\": it does not, but single seeds differ in sign. The studies' base runs are "
             "other trainings of seeds 1 to 3 than the default runs: their figures are a little different.",
             default_runs()]
    for name, module in STUDIES.items():
        kept = os.path.join(REFERENCE, f"{name}.json")
        parts += [chapter(module, read_json(kept))] if os.path.exists(kept) else []
    with new_file(os.path.join(os.path.dirname(REFERENCE), "RESULTS.md")) as f:
        f.write("\n\n".join(parts) + "\n")


def main(argv):
    names = [name for name in STUDIES if name in argv] or list(STUDIES)
    flags = [text for text in argv if text not in STUDIES]
    for name in names:
        study.main(STUDIES[name], flags)
    if not flags:
        write_results(names)


if __name__ == "__main__":
    command(main)
