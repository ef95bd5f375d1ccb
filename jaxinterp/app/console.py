"""Output of the command: lines as they are, and mistakes in one line."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tyro
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.recipe.overrides import in_one_line
from jaxinterp.train.signals import never_lost

WIDE = 10_000
"""Columns of an output that is no terminal: nothing is broken there."""
PADDING = 2
"""Columns of a terminal between two of a table."""
FOLDED = 16
"""Columns down to which a column of a table, but the first, may fold words where a terminal is too narrow."""


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
    """Print a table whose cells are no markup: in a terminal as wide as that, elsewhere a line a row, without padding.

    A terminal that is too narrow breaks lines; if it is too narrow for the longest words too, these fold, but for those
    of the first column.
    """
    if console.width >= WIDE:
        with console.capture() as text:
            console.print(table, highlight=False, markup=False)
        for line in text.get().splitlines():
            show(console, line.rstrip())
        return
    whole, words = _lengths(table)
    widths, room = list(whole), console.width - PADDING * (len(whole) - 1)
    for least in (words, [words[0], *(min(FOLDED, one) for one in words[1:])]):
        while sum(widths) > room and (wide := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.overflow = width, "fold"
    before, console.width = console.width, max(console.width, sum(widths) + PADDING * (len(widths) - 1))
    console.print(table, highlight=False, markup=False)
    console.width = before


def fits(console: Console, table: Table) -> bool:
    """Whether the console is so wide that no line of a table is broken."""
    return sum(_lengths(table)[0]) + PADDING * (len(table.columns) - 1) <= console.width


def _lengths(table: Table) -> tuple[list[int], list[int]]:
    """Return the length of each column's longest text, and of its longest word."""
    texts = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    words = [" ".join(column).split() for column in texts]
    whole, least = ([max(map(cell_len, column), default=0) for column in kind] for kind in (texts, words))
    return whole, least


def command_of(kind: Any, words: Sequence[str] | None, prog: str, description: str | None, *options: Any) -> Any:
    """Return the command that words ask for; leave after help.

    Args:
        kind: of command, as `tyro.cli` takes it.
        words: the words; of the command line if None.
        prog: the name of the program.
        description: what help begins with.
        options: of tyro.

    Raises:
        ConfigError: a word is no option or has no such value.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, description=description, args=words, config=options)
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(in_one_line(box.getvalue())) from None
        raise


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
