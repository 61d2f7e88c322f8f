"""`make accuracy`: predictions beside published measurements; rows go to analysis/results/accuracy.csv as well."""

from pathlib import Path

from analysis.accuracy import accuracy
from grace_opt.provenance import append_rows

RESULTS = Path(__file__).parent / "results" / "accuracy.csv"


def main() -> None:
    """Compare all that is present and keep the rows."""
    append_rows(RESULTS, [dict(row) for row in accuracy("outputs/accuracy")])


if __name__ == "__main__":
    main()
