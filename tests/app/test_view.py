import os
import webbrowser
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.app import stages
from jaxinterp.app.cli import main
from jaxinterp.app.view import page_of, read_attribution
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.explain.attribution import Attribution

RNG = np.random.default_rng(0)
PARTS = Attribution(
    jnp.asarray(RNG.normal(size=(2, 3, 6, 6, 1)), jnp.float32),
    jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32),
    jnp.tile(jnp.arange(3), (2, 1)),
    jnp.zeros((2, 3)),
    method="decompose",
)
IMAGES = RNG.uniform(size=(2, 6, 6, 3)).astype(np.float32)


@pytest.fixture
def opened(monkeypatch):
    addresses = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def test_a_saved_attribution_comes_back_and_is_viewed(tmp_path: Path, opened, capsys) -> None:
    file = tmp_path / "parts.npz"
    PARTS.save(file, IMAGES, ["cat", "dog", "owl"], labels=np.array([0, 2]))
    found, given = read_attribution(file)
    np.testing.assert_array_equal(found.contributions, PARTS.contributions)
    assert (found.method, found.layer, found.residual) == ("decompose", "input", None)
    assert given["classes"] == ["cat", "dog", "owl"]
    np.testing.assert_array_equal(given["images"], IMAGES)
    mine, page = tmp_path / "parts.html", tmp_path / "parts.explorer.html"
    mine.write_text("mine")
    main(["view", str(file)])
    assert opened == [page.as_uri()]
    assert "opened in a browser" in capsys.readouterr().out
    assert "owl" in page.read_text(encoding="utf-8")
    assert mine.read_text() == "mine"


def test_a_page_is_opened_as_it_is(tmp_path: Path, opened) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    assert page_of(tmp_path) == page_of(page) == page
    main(["view", str(page)])
    assert opened == [page.as_uri()]
    assert page.read_text() == "mine"


def test_a_report_that_is_older_than_its_run_is_written_anew(tmp_path: Path, monkeypatch) -> None:
    page, measured = tmp_path / "report.html", tmp_path / "metrics.jsonl"
    monkeypatch.setattr(stages, "report", lambda folder, data_dir: page.write_text("new") and page)
    for age, want in ((10, "old"), (-10, "new")):
        page.write_text("old")
        measured.write_text("{}")
        os.utime(measured, (page.stat().st_atime, page.stat().st_mtime - age))
        assert page_of(tmp_path).read_text() == want


def test_what_cannot_be_viewed_is_said(tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.npz", tmp_path / "other.npz"
    damaged.write_bytes(b"PK no zip")
    np.savez(other, logits=np.zeros(2))
    single, broken, uneven = (tmp_path / f"{name}.npz" for name in ("single", "broken", "uneven"))
    with single.open("wb") as file:
        np.save(file, np.zeros(2))
    np.savez_compressed(broken, contributions=RNG.normal(size=1000))
    content = bytearray(broken.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    broken.write_bytes(content)
    PARTS.save(uneven, IMAGES[:1])
    bad = replace(PARTS, bias=jnp.zeros((2, 4)))
    bad.save(tmp_path / "bias.npz")
    for file, error, says in (
        (tmp_path / "nothing.npz", ConfigError, r"^RUN_DIR\|FILE:"),
        (tmp_path / "nowhere", ConfigError, r"^RUN_DIR\|FILE:"),
        (damaged, DataError, "damaged"),
        (other, DataError, "no contributions, targets"),
        (single, DataError, "a single array"),
        (broken, DataError, "damaged"),
        (uneven, DataError, "images of shape"),
        (tmp_path / "bias.npz", DataError, "bias of shape"),
    ):
        with pytest.raises(error, match=says):
            page_of(file)
    (tmp_path / "runs" / "coda-digits").mkdir(parents=True)
    (tmp_path / "runs" / "coda-digits" / "config.json").touch()
    with pytest.raises(
        ConfigError, match=rf"^RUN_DIR\|FILE: got {tmp_path}/runs/coda-digit, .* {tmp_path}/runs/coda-digits$"
    ):
        page_of(tmp_path / "runs" / "coda-digit")
    flat = replace(PARTS, contributions=PARTS.contributions.reshape(2, 3, -1))
    flat.save(tmp_path / "flat.npz")
    with pytest.raises(ConfigError, match=r"^contributions:"):
        page_of(tmp_path / "flat.npz")
