"""The figures of accelerators: complete, and the page's table is made of them."""

import pytest

from benchmarks import accelerators
from jaxinterp.app.devices import machine_named

KEYS = {
    "run", "stage", "device", "compiles", "fits", "compile_seconds", "bytes_per_device", "flops",
    "roofline_epoch_seconds",
}  # fmt: skip


def test_rows_have_their_keys_and_are_of_this_benchmark() -> None:
    rows = accelerators.rows()
    assert len(rows) >= 20
    assert len({row["device"] for row in rows}) >= 3
    programs = list(accelerators.programs())
    assert [accelerators.key(row) for row in rows] == [
        one for one in programs if one in set(map(accelerators.key, rows))
    ]
    for row in rows:
        assert row.keys() >= KEYS
        if row["compiles"]:
            device = machine_named(row["device"]).device
            assert row["fits"] == (row["bytes_per_device"] <= device.usable)
            assert row["flops"] > 0
            assert row["roofline_epoch_seconds"] > 0


def test_the_page_has_the_rows() -> None:
    text = accelerators.PAGE.read_text(encoding="utf-8")
    assert accelerators.page(text, accelerators.rows()) == text


def test_a_program_that_takes_too_long_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ("taylor/mnist", "train", "h200:1")
    row = accelerators.in_a_process(program, accelerators.Options(limit=0))
    assert row.keys() >= KEYS
    assert (row["compiles"], row["fits"]) == (False, False)
    assert row["error"] == "not compiled within 0 s"


def test_rows_are_saved_in_order_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "FILE", tmp_path / "rows.json")
    done = []

    def one(program, options):
        done.append(program)
        keys = dict(zip(("run", "stage", "device"), program, strict=True))
        return {**keys, "compile_seconds": 1.0, "error": ""}

    monkeypatch.setattr(accelerators, "in_a_process", one)
    accelerators.main(accelerators.Options(run="taylor/mnist", device="tpu"))
    accelerators.main(accelerators.Options(device="h200:1"))
    assert len(done) == len(set(done)) > 6
    order = list(accelerators.programs())
    saved = [accelerators.key(row) for row in accelerators.rows()]
    assert saved == sorted(done, key=order.index)
    accelerators.main(accelerators.Options(device="h200:1"))
    assert len(done) == len(saved)
