"""The papers' claims and their verdicts, as `experiments/claims.py` wrote them."""

from typing import Any

from jaxinterp.app.registry import FOLDERS
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.run_folder import read_json

FILE = "results/claims.json"


def claims() -> list[dict[str, Any]]:
    """Return the rows of the table.

    Returns:
        Of each: row, paper, claim, source, theirs, rule, ours, seeds, command, budget, verdict, tried, known.

    Raises:
        ConfigError: the file is not there, or damaged.
    """
    path = next((folder / FILE for folder in FOLDERS if (folder / FILE).exists()), None)
    if path is None:
        raise ConfigError(f"claims: got no {FILE}, expected it in {' or '.join(map(str, FOLDERS))}")
    rows: list[dict[str, Any]] = read_json(path, "python experiments/claims.py table", "rows")["rows"]
    return rows
