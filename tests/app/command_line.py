"""The command, run within the process of a test."""

import pytest

from jaxinterp.app import cli


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = 0
    try:
        cli.main(arguments.split())
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err
