import json
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.app.registry import runs
from jaxinterp.coda.family import CoDAModel
from jaxinterp.errors import ConfigError
from jaxinterp.files import write_arrays
from jaxinterp.recipe.overrides import override
from jaxinterp.recipe.run_folder import MAX_LINES, read_arrays, read_config, read_lines, read_name, write_config


@pytest.mark.parametrize("name", sorted(runs()))
def test_every_named_run_survives_writing_reading_and_overriding(name: str, tmp_path: Path) -> None:
    run = runs()[name].run.with_seed(7)
    write_config(tmp_path, name, run)
    assert (read_name(tmp_path), read_config(tmp_path, type(run.model))) == (name, run)
    assert override(run, ["train.seed=7"]) == run


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model": {}, "color": 1}, "color"),
        ({"model": {}, "train": {"epochs": 1, "batch_size": 1, "epoch": 3}}, r"train\.epoch: got 3"),
        ({"model": {"temperature": "hot"}}, r"model\.temperature"),
        ({"model": {}, "train": {"epochs": 0, "batch_size": 1}}, r"train\.epochs"),
        ({"model": {}, "train": {"epochs": 1.5, "batch_size": 1}}, r"train\.epochs"),
        ({"model": {}, "augment": {"flip": 1}}, r"augment\.flip"),
        ({"model": {}, "data": {"name": "mnits"}}, r"data\.name"),
        ({}, "model"),
        ([], "content"),
        (None, "content"),
    ],
)
def test_a_damaged_configuration_names_file_and_field(config: object, field: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"run": "coda/digits", "config": config}))
    with pytest.raises(ConfigError, match=rf"config\.json: .*{field}"):
        read_config(tmp_path, CoDAModel)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_that_is_no_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path, CoDAModel)


def test_a_long_log_is_thinned_and_keeps_its_last_line(tmp_path: Path) -> None:
    path, records = tmp_path / "metrics.jsonl", [{"epoch": i} for i in range(1, 5 * MAX_LINES)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_lines(path, "x") == [*records[::5], records[-1]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:7]))
    assert read_lines(path, "x") == records[:7]
    for damage in ("{", "[]\n", "\n"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records[:7]) + damage)
        with pytest.raises(ConfigError, match=r"metrics\.jsonl: got .*, expected what `x` writes"):
            read_lines(path, "x")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_damaged_arrays_are_named_with_the_command_that_makes_them(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "maps.npz"
    write_arrays(path, {"a": np.arange(100.0)})
    np.testing.assert_array_equal(read_arrays(path, "x")["a"], np.arange(100.0))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"maps\.npz: got .*, expected what `x` writes"):
        read_arrays(path, "x")
