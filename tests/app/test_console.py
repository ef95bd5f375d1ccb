import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from jaxinterp.app import console
from jaxinterp.app.cli import Command, parse
from jaxinterp.app.keys import attributes, key_rows
from jaxinterp.app.registry import runs
from jaxinterp.errors import ConfigError


def printed(width, *rows):
    out = io.StringIO()
    console.show_table(Console(file=out, width=width), console.table_of(("run", "meaning"), rows))
    return out.getvalue()


@pytest.mark.parametrize("name", ["lr[0.1]", "clo[/red]se", "br[red]ack", "[bold]"])
def test_names_with_markup_are_printed_as_they_are(name):
    assert name in printed(80, (name, "x"))


def test_a_terminal_folds_very_long_words_and_a_pipe_has_no_padding():
    rows = [("a", "folder:/tmp/" + 40 * "x"), ("b", "5,10,15")]
    text = printed(50, *rows)
    assert max(map(len, text.splitlines())) <= 50
    assert rows[0][1] in "".join(text.split())
    lines = printed(console.WIDE, ("a", "words of a meaning"), ("b", "x")).splitlines()
    assert lines == ["run  meaning", "a    words of a meaning", "b    x"]


@pytest.mark.parametrize("width", [10, 20, 60, console.WIDE])
def test_words_are_not_broken(width):
    text = printed(width, ("coda/imagenet-long", "localization_3x3_median of all the words"))
    assert "coda/imagenet-long" in text.split()
    assert ("localization_3x3_median" in text.split()) == (width >= 60)  # the least for both, and what is between them
    if width == console.WIDE:
        assert len(text.splitlines()) == 2


def test_a_pipe_is_wide_unless_columns_say_so(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console.open_console().width == console.WIDE
    monkeypatch.setenv("COLUMNS", "70")
    assert console.open_console().width == 70


def test_a_name_that_is_not_utf8_can_be_printed(capfdbinary):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(SystemExit), console.errors_in_one_line():
        raise OSError(2, "No such file", name)
    assert capfdbinary.readouterr().err.startswith(b"jaxinterp: caf\\udce9: No such file")


def test_every_key_of_every_run_has_a_type_and_a_meaning():
    for one in {type(run.run.model): run.run for run in runs().values()}.values():
        for key, _, kind, meaning in key_rows(one):
            assert kind, key
            assert meaning, key
    rows = {key: rest for key, *rest in key_rows(runs()["coda/digits"].run)}
    assert rows["train.epochs"][1:] == ["int >= 1", "Epochs."]
    assert rows["optim.optimizer"][1] == "adam | adamw | sgd"
    assert "crop_padding" in attributes(type(runs()["coda/digits"].run.augment))


@pytest.mark.parametrize("option", ["--run-dir", "--data-dir"])
def test_an_empty_folder_is_not_the_current_one(option):
    with pytest.raises(ConfigError, match=f"^{option}: got nothing, expected a folder"):
        parse(Command, ["train", "coda/digits", option, ""], "jaxinterp")


def test_help_without_color(monkeypatch):
    program = "import sys, os; sys.stdout.isatty = lambda: True; from jaxinterp.app.cli import main; main(['--help'])"
    outputs = []
    for variables in ({"NO_COLOR": "1"}, {}):
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert ["\x1b" in output for output in outputs] == [False, True]
