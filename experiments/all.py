"""
All studies, one after the other, and experiments/RESULTS.md from what they found; its first chapter is of the
reference runs, which lie beside it.

    python -m experiments.all           # twelve hours on two cores; what is done already is not repeated
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

STUDIES = [baselines, votes, ablations, scaling, truth]
HERE = os.path.dirname(os.path.abspath(__file__))


def chapter(module, results):
    """One study's part of RESULTS.md: its question, what was seen, its figure, its tables, how it was run."""
    question, rest = module.__doc__.strip().split("\n\n", 1)
    hours = results["seconds"] / 3600
    made = (f"`python -m experiments.{module.NAME}`, summed up on {results['date']}, commit "
            f"{results['commit']}; seeds {', '.join(map(str, results['seeds']))}; {hours:.1f} hours of work "
            f"in all its runs; {results['machine']}.")
    figure = f"![{module.NAME}](reference/{module.NAME}.png)"
    title = "## " + question.replace("\n", " ")
    return "\n\n".join([title, rest, module.FINDINGS.strip(), figure, results["text"], made])


def default_runs():
    """The chapter of the default runs: tables over seeds, how to read them."""
    title, rest = runs.__doc__.strip().split("\n\n", 1)
    return "\n\n".join(["## " + title, rest, runs.FINDINGS.strip(),
                        "![accuracy against the number of votes](reference/cpu-seed1/votes.png)",
                        runs.tables(sorted(glob.glob(os.path.join(HERE, "reference", "cpu-seed*"))))])


def write_results():
    """RESULTS.md, and the figures and numbers beside it, from the folders of the runs and the studies."""
    parts = ["# Results",
             "Written by `python -m experiments.all`: the default runs, then for each study its question, "
             "what was seen, its figure, its tables. \"Noise\": the 95% interval of a difference contains 0.",
             default_runs()]
    for module in STUDIES:
        results, reference = f"runs/{module.NAME}/results.json", os.path.join(HERE, "reference")
        parts.append(chapter(module, read_json(results)))
        shutil.copy(f"runs/{module.NAME}/{module.NAME}.png", reference)
        shutil.copy(results, os.path.join(reference, f"{module.NAME}.json"))
    with new_file(os.path.join(HERE, "RESULTS.md")) as f:
        f.write("\n\n".join(parts) + "\n")


def main(argv):
    for module in STUDIES:
        study.main(module, argv)
    if not argv:
        write_results()


if __name__ == "__main__":
    command(main)
