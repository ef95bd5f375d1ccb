"""The program that measures how layers move with the image: laws built in hold, maps are fitted to other layers."""

from functools import cache

import pytest
from rich.console import Console

from experiments import equivariance
from jaxinterp.app import stages
from jaxinterp.app.publish import results_file
from jaxinterp.app.registry import family_of, run_in, runs
from jaxinterp.app.results import read_results
from jaxinterp.errors import ConfigError

CHANGES = {
    "digits": {"group": "d4", "invariants": ("sorted",), "per_class": 8, "templates": 20},
    "digits-p4": {"features": (4, 10), "sides": (3, 6)},
    "digits-alexnet": {},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")

    @cache
    def folder(name):
        run = runs()[f"glassbox/{name}"].run
        run = family_of(run).smoke(run).replace(data={"max_images": 160}, model=CHANGES[name])
        stages.train(f"glassbox/{name}", run, root / name)
        return root / name

    return folder


def measured(folders, results):
    console = Console(record=True, width=200)
    equivariance.Program(tuple(folders), results=results, images=160, support=1)(console)
    files = [results_file(results, *run_in(folder)[::2], "equivariance_") for folder in folders]
    written = [read_results(file) for file in files]
    assert all("data.max_images=160" in one.overrides for one in written)
    metrics = [{name: m.mean for name, m in one.metrics.items()} for one in written]
    return console.export_text(), metrics


def test_what_is_built_in_holds(trained, tmp_path):
    text, (p4, box) = measured([trained("digits-p4"), trained("digits")], tmp_path / "results")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[1:6] == [
        "layers: block_0, block_1",
        "1 of 4: h-flip",
        "2 of 4: v-flip",
        "3 of 4: turn",
        "4 of 4: scale",
    ]
    header, *rows = lines[12:]  # after a line for each run, for its layers, and for each motion
    assert header.split() == ["network", "layer", "upright", "h-flip", "v-flip", "turn", "scale"]
    (block,) = (row for row in rows if row.split()[0] == "`block_0`")
    law = block[header.index("turn") :].split(" / ")
    assert float(law[0]) == pytest.approx(p4["block_0 turn residual"], rel=0.5)
    assert float(law[2].split()[0]) == pytest.approx(p4["block_0 turn uncompensated"], abs=0.006)
    assert p4["turn accuracy"] == p4["accuracy"]
    assert all(p4[f"block_{i} turn residual"] < 1e-5 < 0.05 < p4[f"block_{i} turn uncompensated"] for i in range(2))
    assert 0.01 < p4["block_0 h-flip residual"] < p4["block_0 h-flip constant"]  # p4 has no mirrors: the map is fitted
    for motion in ("h-flip", "v-flip", "turn"):
        assert box[f"representation/orbit {motion} residual"] < 1e-5
        assert box[f"{motion} accuracy"] == box["accuracy"]


@pytest.mark.slow
def test_every_layer_of_an_ordinary_network_is_measured(trained, tmp_path):
    text, (alex,) = measured([trained("digits-alexnet")], tmp_path / "results")
    assert "conv_4" in text
    for i in range(5):
        assert 0 < alex[f"conv_{i} v-flip residual"] < 2 * alex[f"conv_{i} v-flip constant"]
        assert 0 < alex[f"conv_{i} v-flip constant"] <= 1


def test_no_folder_raises(tmp_path, capsys):
    with pytest.raises(ConfigError, match="RUN_DIR"):
        equivariance.Program(())(Console())
    with pytest.raises(SystemExit) as end:
        equivariance.main([str(tmp_path)])
    assert end.value.code == 2
    assert "expected a run folder" in capsys.readouterr().err
