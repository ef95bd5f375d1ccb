"""`python -m experiments.update_readme FILE ...`: rewrite the tables of README files from committed results."""

import sys
from pathlib import Path

from jaxinterp.app.results import rewrite
from jaxinterp.errors import JaxInterpError


def main(arguments: list[str]) -> int:
    """Rewrite each README named; 2 where one has no markers or a results file is damaged."""
    if not arguments:
        print("usage: python -m experiments.update_readme README.md", file=sys.stderr)
        return 2
    try:
        for name in arguments:
            print(f"{name}: {'rewritten' if rewrite(Path(name)) else 'up to date'}")
    except (JaxInterpError, OSError) as error:
        print(f"update_readme: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
