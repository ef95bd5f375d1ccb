"""`python -m jaxinterp.report README.md experiments/results/README.md`: rewrite their tables from committed results."""

import sys
from pathlib import Path

from jaxinterp.errors import JaxInterpError
from jaxinterp.report.tables import rewrite


def main(arguments: list[str]) -> int:
    """Rewrite each README named; 2 where one has no markers or a results file is damaged."""
    if not arguments:
        print("usage: python -m jaxinterp.report README.md", file=sys.stderr)
        return 2
    try:
        for name in arguments:
            print(f"{name}: {'rewritten' if rewrite(Path(name)) else 'up to date'}")
    except (JaxInterpError, OSError) as error:
        print(f"jaxinterp.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
