"""Output of the command: lines as they are, and mistakes in one line."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from rich.console import Console

from jaxinterp.errors import JaxInterpError


def show(console: Console, line: str) -> None:
    """Print a line as it is: file names are no markup, and long lines are not broken."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def warned_in_one_line() -> Iterator[None]:
    """Print a warning as what it says, without the place in the source."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **named: f"jaxinterp: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print a mistake that the user can mend as one line on stderr, and leave with status 2."""
    try:
        with warned_in_one_line():
            yield
    except JaxInterpError as error:
        line, status = str(error), 2
    except OSError as error:
        line, status = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    else:
        return
    print(f"jaxinterp: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(status)
