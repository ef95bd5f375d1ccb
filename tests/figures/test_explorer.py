import base64
import gzip
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.figures.explorer import Explorable, Maps, Panel, Pixels
from jaxinterp.figures.html import Page, render
from jaxinterp.figures.packing import Chunks, quantize, script_json

_spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)


def unpacked(text, ref):
    values = np.frombuffer(
        gzip.decompress(base64.b64decode(text[ref["chunk"]])), ref["type"].removesuffix("Array").lower()
    )
    return values.reshape(ref["shape"])


@pytest.mark.parametrize("bits", [8, 16])
def test_quantized_maps_keep_their_sums_and_are_off_by_less_than_a_step(bits):
    maps = np.random.default_rng(0).normal(size=(5, 3, 28, 28)) ** 3
    maps[0, 0] = 0
    maps[1, 0, 3, 4] = 1e6
    q, scale, total = quantize(maps, bits)
    assert q.dtype == f"int{bits}"
    np.testing.assert_allclose(total, maps.sum((2, 3)), rtol=1e-12)
    assert (np.abs(scale * q.sum((2, 3), dtype=np.int64) - total) <= scale * 0.501).all()
    assert (np.abs(scale[..., None, None] * q - maps) <= scale[..., None, None] * (1 + 2e-9)).all()
    assert not q[0, 0].any()


def test_everything_is_packed_and_comes_back():
    content, chunks = pages.explorable(), Chunks()
    value = content.packed(chunks)
    exact = value["sets"][0]
    maps = unpacked(chunks.texts, exact["values"]) * unpacked(chunks.texts, exact["scale"])[..., None, None]
    np.testing.assert_allclose(maps, content.maps[0].values, atol=2e-4)
    sums = unpacked(chunks.texts, exact["total"]) + unpacked(chunks.texts, exact["constants"])
    np.testing.assert_allclose(sums, unpacked(chunks.texts, value["logits"]), atol=1e-12)
    assert [one["method"] for one in value["sets"]] == ["decomposition", "decomposition", "gradient"]
    assert value["images"][0]["source"].startswith("data:image/png;base64,")
    assert value["complete"]


def test_the_text_says_what_is_on_the_page_and_no_more():
    whole = pages.explorable(panels=False)
    assert "and a bias, which no cell explains. Maps of other methods need not sum to it. Choose" in whole.text
    assert "Choose an image, a class, another against it, a layer and a method; point at" in whole.text
    some = replace(whole, maps=whole.maps[:1], bias="a constant")
    assert "explains: a constant. Choose an image, a class and another against it; point" in some.text
    one = replace(whole.maps[0], method="integrated_gradients")
    one = replace(one, targets=one.targets[:1, :1], values=one.values[:1, :1], constants=one.constants[:1, :1])
    alone = Explorable(pages.NAMES, whole.logits[:1], [one])
    assert "splits a logit into" in alone.text
    assert "and the output at the baseline; what these miss is the residual. Point at a cell" in alone.text
    assert "baseline" not in replace(alone, maps=[replace(one, constants=np.zeros((1, 1)))]).text
    assert "need not sum to the logit. Point" in replace(alone, maps=[replace(one, constants=None)]).text


def test_a_budget_is_kept_and_what_is_left_out_is_said():
    rng = np.random.default_rng(0)
    targets = np.tile(np.arange(12), (6, 1))
    logits = rng.normal(size=(6, 12))
    maps = [Maps(name, "input", targets, rng.normal(size=(6, 12, 96, 96))) for name in ("decomposition", "gradient")]
    content = Explorable(list("abcdefghijkl"), logits, maps)
    sizes = []
    for budget in (4_000_000, 900_000, 300_000, 60_000):
        chunks = Chunks()
        value = content.packed(chunks, budget)
        sizes.append(sum(map(len, chunks.texts)) + len(script_json(value)))
        assert sizes[-1] <= budget
        kept = unpacked(chunks.texts, value["sets"][0]["targets"])
        likeliest = np.sort(np.argsort(-logits, axis=1)[:, : kept.shape[1]])
        assert (np.sort(kept) == likeliest).all()
        shown = unpacked(chunks.texts, value["sets"][0]["total"])
        np.testing.assert_allclose(
            shown, np.take_along_axis(maps[0].values.sum((2, 3)), kept.astype(int), 1), rtol=1e-9
        )
        assert bool(value["notes"]) == (budget < 4_000_000)
    assert sizes == sorted(sizes, reverse=True)


def test_panels_and_pictures_count_and_what_is_too_much_is_said():
    content = pages.explorable(panels=False)
    own = Panel("own", "Own", "text", {"pictures": Pixels(np.random.default_rng(0).uniform(size=(40, 32, 32, 3)))})
    bare = content.packed(Chunks(), 30_000)
    assert not any("more than" in note for note in bare["notes"])
    full = replace(content, panels=[own]).packed(Chunks(), 30_000)
    assert re.search(r"take 0\.\d MB, more than the 0\.0 MB", full["notes"][-1])


HOSTILE = "</script><script>document.title='taken'</script>\"'&<img src=x onerror=\"document.title='taken'\">"


def test_texts_from_files_cannot_leave_the_data():
    html = render(pages.page(names=(HOSTILE, "b", "c"), files=(HOSTILE,) * pages.IMAGES))
    assert HOSTILE not in html
    assert "<img src=x" not in html
    (data,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', html, re.DOTALL)
    explored = json.loads(data)["explorer"]
    assert explored["classes"][0] == explored["images"][0]["name"] == HOSTILE


def test_a_page_of_sixty_images_is_small_and_loads_nothing():
    html = render(pages.page())
    assert len(html) < 600_000
    addresses = set(re.findall(r"https?://[^\s\"'`]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", html)


def test_a_frame_stands_alone_within_a_notebook():
    shown = pages.explorable(panels=False)._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert shown.count("<") == 2  # all of the page is an attribute


FIRST = pages.explorable(panels=False).maps[0]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("maps", {"maps": []}),
        ("classes", {"classes": ["a"]}),
        ("labels", {"labels": np.zeros(2, int)}),
        ("labels", {"labels": np.full(pages.IMAGES, pages.CLASSES)}),
        ("logits", {"logits": np.zeros((pages.IMAGES, 2)), "probabilities": None}),
        ("maps", {"maps": [replace(FIRST, values=FIRST.values * np.nan)]}),
        ("maps", {"maps": [replace(FIRST, constants=FIRST.constants + np.inf)]}),
        ("images", {"images": np.zeros((2, 8, 8, 1), np.float32)}),
        ("names", {"names": ["a"]}),
    ],
)
def test_parts_of_other_images_are_refused(field, change):
    with pytest.raises(ConfigError, match=f"^{field}:"):
        replace(pages.explorable(panels=False), **change)


def test_a_page_without_live_figures_has_no_script():
    assert "<script" not in render(Page("t", "s", ""))
