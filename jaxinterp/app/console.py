"""Output of the command: lines as they are, and mistakes in one line."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxinterp.errors import JaxInterpError
from jaxinterp.train.signals import never_lost

WIDE = 10_000
"""Columns of an output that is no terminal: nothing is broken there."""


def open_console() -> Console:
    """Return standard output: as wide as the terminal or $COLUMNS, without an end in a pipe or a file."""
    wide = not sys.stdout.isatty() and not os.environ.get("COLUMNS")
    return Console(width=WIDE if wide else None)


def show(console: Console, line: str) -> None:
    """Print a line as it is: file names are no markup, and long lines are not broken."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def table_of(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """Lay out texts in columns."""
    table = Table(*header, title=title or None, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def show_table(console: Console, table: Table) -> None:
    """Print a table whose cells are no markup; a terminal too narrow for its longest words breaks lines, not words."""
    least = Measurement.get(console, console.options.update(width=WIDE, max_width=WIDE, markup=False), table).minimum
    width, console.width = console.width, max(console.width, least)
    console.print(table, highlight=False, markup=False)
    console.width = width


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        with warned_in_one_line(), never_lost():
            yield
    except JaxInterpError as error:
        line, status = str(error), 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more is flushed to it
        raise SystemExit(141) from None
    except OSError as error:
        line, status = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    else:
        return
    print(f"jaxinterp: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(status)
