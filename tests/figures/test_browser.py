"""The page in a real browser: Debian's chromium, driven by playwright. Without either the tests are skipped."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.metrics.similarity import cosine, misplaced, sign_agreement, spearman
from jaxinterp.figures.html import Cell, MapTable, Page, Section, frame, write

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium was found: apt-get install chromium")

_spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)
HOSTILE = "</script><script>document.title='taken'</script>\"'&<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write(pages.page(), path)
    return path


@pytest.fixture
def visit(browser):
    """Open a page with a viewport and a color scheme; what the console says must be nothing."""
    contexts, said = [], []

    def opened(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:", "about:")) or said.append(request.url),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def number(text):
    return float(text.replace("−", "-"))


def shows(page, wanted):
    page.wait_for_function("wanted => document.getElementById('explorer').dataset.shown === wanted", arg=wanted)


CONTENT = pages.explorable(panels=False)
EXACT, NOISY = CONTENT.maps[0], CONTENT.maps[2]
MISREAD = 2


def read(i):
    return int(CONTENT.logits[i].argmax())


def test_written_sums_add_up_to_the_logit_of_every_image_class_and_layer(visit, file):
    page = visit(file)
    for i in range(pages.IMAGES):
        page.check(f".strip input[value='{i}']")
        for k in range(pages.CLASSES):
            for layer in ("input", "layer_1"):
                page.select_option("label:has-text('Explain') select", str(k))
                page.select_option("label:has-text('Layer') select", layer)
                shows(page, f"{i} {k} -1 decomposition  {layer}")
                logit, total, constant = page.locator("#explorer > div > .equation b").all_inner_texts()
                assert number(logit) == pytest.approx(CONTENT.logits[i, k], abs=0.6e-4)
                assert number(total) == pytest.approx(EXACT.values[i, k].sum(), abs=1e-4)
                sign = (
                    -1
                    if "−" in page.locator("#explorer > div > .equation").inner_text().split("contributions")[1][:4]
                    else 1
                )
                assert round(number(total) * 1e4) + sign * round(number(constant) * 1e4) == round(number(logit) * 1e4)


def test_what_is_left_unexplained_is_not_hidden_in_the_sum(visit, tmp_path):
    off, panels = [], list(pages.explorable().panels)
    for part in CONTENT.maps[:2]:
        off.append(replace(part, constants=part.constants - 3e-4))
    (place,) = (n for n, panel in enumerate(panels) if panel.kind == "shares")
    unknown = {**panels[place].values, "rest": np.array([np.nan, -0.5])}
    panels[place] = replace(panels[place], values=unknown)
    path = tmp_path / "off.html"
    write(Page("t", "s", "", explorer=replace(CONTENT, maps=off, panels=panels)), path)
    page = visit(path)  # a part that is no number does not stop it
    texts = page.locator("#explorer > div > .equation b").all_inner_texts()
    k = read(MISREAD)
    assert number(texts[1]) == pytest.approx(EXACT.values[MISREAD, k].sum(), abs=1.01e-4)
    assert number(texts[3]) == pytest.approx(3e-4, abs=1.01e-4)
    assert "residual, " in page.locator("#explorer > div > .equation").inner_text()
    assert "NaN" in page.locator("[data-panel=shares] .equation").inner_text()


def test_the_last_choice_is_shown_whatever_is_decoded_first(visit, file):
    page = visit(file)
    page.evaluate("""async () => {
        const layer = [...document.querySelectorAll('label')].find((l) => l.innerText.startsWith('Layer')).control;
        for (const name of ['layer_1', 'input']) { layer.value = name; layer.dispatchEvent(new Event('change')); }
    }""")
    page.wait_for_timeout(300)
    shows(page, f"{MISREAD} {read(MISREAD)} -1 decomposition  input")
    assert f"of {pages.SIDE**2} cells" in page.locator("#explorer").inner_text()


def test_a_class_is_explained_against_another(visit, file):
    page = visit(file)
    i, k = MISREAD, read(MISREAD)
    other = (k + 1) % pages.CLASSES
    page.select_option("label:has-text('against') select", str(other))
    shows(page, f"{i} {k} {other} decomposition  input")
    logit, total, _ = page.locator("#explorer > div > .equation b").all_inner_texts()
    assert number(logit) == pytest.approx(CONTENT.logits[i, k] - CONTENT.logits[i, other], abs=1e-4)
    assert number(total) == pytest.approx((EXACT.values[i, k] - EXACT.values[i, other]).sum(), abs=1e-4)


def test_misread_images_come_first_and_images_are_filtered(visit, file):
    page = visit(file)
    first = page.locator(".strip input").first
    assert first.get_attribute("value") == str(MISREAD)
    p = CONTENT.probabilities[MISREAD, read(MISREAD)]
    said = f"a {pages.NAMES[CONTENT.labels[MISREAD]]}, read as {pages.NAMES[read(MISREAD)]} with p {p:.2f}"
    assert first.get_attribute("aria-label") == said
    assert page.locator("figure img.shown").get_attribute("alt") == said
    page.check("text=only misread images")
    assert page.locator(".strip label:visible").count() == 1
    page.uncheck("text=only misread images")
    k = int(CONTENT.labels[0])
    page.select_option("label:has-text('Label') select", str(k))
    assert page.locator(".strip label:visible").count() == (CONTENT.labels == k).sum()


def test_a_cell_is_read_by_mouse_and_by_keys_with_its_rank_and_running_sum(visit, file):
    page = visit(file)
    values = EXACT.values[MISREAD, read(MISREAD)]
    page.locator("canvas.map").scroll_into_view_if_needed()
    box = page.locator("canvas.map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 3.5 / 8, box["y"] + box["height"] * 2.5 / 8)
    page.wait_for_function("document.querySelector('.readout').textContent.includes('row 2, column 3')")
    page.locator("canvas.map").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.readout').textContent.includes('row 3, column 3')")
    pattern = (
        r"column 3: (\S+), (\S+) % of the sum; number (\d+) of 64 by strength, running sum (\S+) ?, "
        r"with the bias (\S+) of (\S+)\."
    )
    found = re.search(pattern, page.locator(".readout p").first.inner_text())
    value, share, rank, running, whole, logit = (number(text.lstrip("+")) for text in found.groups())
    order = np.argsort(-np.abs(values), axis=None)
    assert value == pytest.approx(values[3, 3], abs=1e-4)
    assert share == pytest.approx(100 * values[3, 3] / values.sum(), abs=0.06)
    assert order[int(rank) - 1] == 3 * 8 + 3
    assert running == pytest.approx(values.ravel()[order[: int(rank)]].sum(), abs=1e-3)
    assert whole - running == pytest.approx(EXACT.constants[MISREAD, read(MISREAD)], abs=2e-4)
    assert logit == pytest.approx(CONTENT.logits[MISREAD].max(), abs=1e-4)


def test_a_region_is_summed_by_brush_and_by_keys(visit, file):
    page = visit(file)
    values = EXACT.values[MISREAD, read(MISREAD)]
    page.locator("canvas.map").scroll_into_view_if_needed()
    box = page.locator("canvas.map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 1.5 / 8, box["y"] + box["height"] * 2.5 / 8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 4.5 / 8, box["y"] + box["height"] * 5.5 / 8, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('.readout').textContent.includes('rows 2–5, columns 1–4')")
    said = page.locator(".readout p").nth(1).inner_text()
    assert number(re.search(r"sum (\S+),", said)[1].lstrip("+")) == pytest.approx(values[2:6, 1:5].sum(), abs=1e-3)
    page.keyboard.press("Escape")
    page.locator("canvas.map").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("document.querySelector('.readout').textContent.includes('rows 5–5, columns 4–5')")


def test_the_slider_keeps_the_strongest_cells(visit, file):
    page = visit(file)
    values = EXACT.values[MISREAD, read(MISREAD)].ravel()
    page.locator("input[aria-label='keep the strongest cells']").fill("5")
    kept = values[np.argsort(-np.abs(values))[:5]].sum()
    said = page.locator(".halves p[role=status]").first.inner_text()
    assert said.startswith("the 5 strongest of 64 cells carry")
    assert number(re.search(r"carry (\S+),", said)[1]) == pytest.approx(kept, abs=1e-3)


def test_methods_stand_beside_one_another_with_the_distances_of_the_audit(visit, file):
    page = visit(file)
    k = read(MISREAD)
    page.select_option("label:has-text('Beside it') select", "gradient")
    shows(page, f"{MISREAD} {k} -1 decomposition gradient input")
    place = list(NOISY.targets[MISREAD]).index(k)
    own, true = (
        jnp.asarray(maps.reshape(1, -1), jnp.float32)
        for maps in (NOISY.values[MISREAD, place], EXACT.values[MISREAD, k])
    )
    names = ("cosine", "rank correlation", "sign agreement", "misplaced mass")
    for name, measure in zip(names, (cosine, spearman, sign_agreement, misplaced), strict=True):
        shown = number(page.locator(f"[data-distance='{name}']").inner_text())
        assert shown == pytest.approx(float(measure(own, true)[0]), abs=2e-3)
    assert page.locator("canvas.map").count() == 2
    assert page.locator(".legend").count() == 1
    page.select_option("label:has-text('Scale') select", "own")


def test_a_family_reads_its_images(visit, file):
    page = visit(file)
    content = pages.explorable()
    orders, *_, shares, _ = content.panels
    page.locator("[data-panel=orders] input").fill("3")
    line = page.locator("[data-panel=orders] .equation").inner_text()
    assert f"orders 0 to 3 are {CONTENT.logits[MISREAD, read(MISREAD)]:.4f}" in line.replace("−", "-")
    page.locator("[data-panel=paths] input").fill("0")
    assert "block 1: paths that the code gives" in page.locator("[data-panel=paths] p[role=status]").inner_text()
    page.select_option("[data-panel=gates] select", "3")
    gates = page.locator("[data-panel=gates]")
    assert "of those drawn in both images" in gates.inner_text()
    for i, says in ((1, "No active path to an output: none of the gates of layer 1"), (3, "gate 1: 100 of 200 open")):
        page.check(f".strip input[value='{i}']")
        shows(page, f"{i} {read(i)} -1 decomposition  input")
        assert says in gates.inner_text()
    paths = pages.SIDE**2 * content.panels[2].values["counts"][3].prod()
    assert f"about 10^{np.log10(paths):.1f}." in gates.inner_text()
    page.check(f".strip input[value='{MISREAD}']")
    shows(page, f"{MISREAD} {read(MISREAD)} -1 decomposition  input")
    said = page.locator("[data-panel=shares]").inner_text()
    assert "+10.000" in said
    assert "−13.800" in said
    assert "cancels, and −3.800 is left" in said
    assert page.locator("[data-panel=shares] li").count() == 3
    parts = [number(text) for text in page.locator("[data-panel=shares] .equation b").all_inner_texts()]
    assert parts[1] == pytest.approx(shares.values["share"][0].sum(), abs=1e-4)
    page.locator("[data-panel=orbit] input").fill("2")
    assert "element 2" in page.locator("[data-panel=orbit] p[role=status]").inner_text()
    assert orders.kind == "orders"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_nothing_overflows_and_nothing_is_inaccessible(visit, file, width, scheme):
    page = visit(file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    grave = [
        (one["id"], [node["html"][:120] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_the_theme_can_be_changed_and_texts_stay_texts(visit, file):
    page = visit(file)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before
    assert page.locator(".chart svg text").count() > 30
    page.select_option("label:has-text('Colors') select", "red")


def test_figures_are_saved_as_data_and_drawings(visit, file):
    page = visit(file)
    buttons = page.locator("#explorer > .saves button")
    with page.expect_download() as started:
        buttons.nth(0).click()
    data = json.loads(Path(started.value.path()).read_text(encoding="utf-8"))
    sums = np.sum(data["maps"][0]["contributions"]) + data["maps"][0]["bias"]
    assert sums == pytest.approx(data["logit"], abs=1e-9)
    for spot in ("#explorer > .saves", "#figure-0 .saves", "#figure-7 .saves"):
        for n, begins in ((1, b"<svg"), (2, b"\x89PNG")):
            with page.expect_download() as started:
                page.locator(f"{spot} button").nth(n).click()
            assert Path(started.value.path()).read_bytes().startswith(begins)


def test_scripts_in_names_do_not_run(visit, tmp_path):
    path = tmp_path / "hostile.html"
    content = pages.page(names=(HOSTILE, "b", "c"), files=(HOSTILE,) * pages.IMAGES)
    write(replace(content, title="mine", subtitle=HOSTILE), path)
    page = visit(path)
    assert page.title() == "mine"
    assert HOSTILE in page.locator("#explorer").inner_text()
    with page.expect_download() as started:
        page.locator("#explorer > .saves button").nth(1).click()
    assert "<script" not in Path(started.value.path()).read_text(encoding="utf-8")


def test_several_frames_of_a_notebook_do_not_clash(visit, tmp_path):
    shown = [frame(Page("", "", "", explorer=pages.explorable(panels=False)), f"{i} & co") for i in range(2)]
    path = tmp_path / "notebook.html"
    path.write_text(
        f"<!doctype html><html lang=en data-ready=yes><title>{escape('n')}</title>{''.join(shown)}", "utf-8"
    )
    page = visit(path)
    frames = [handle.content_frame() for handle in page.query_selector_all("iframe")]
    for one in frames:
        one.wait_for_selector("html[data-ready=yes]")
    frames[0].select_option("label:has-text('Beside it') select", "gradient")
    frames[0].wait_for_selector("[data-distance=cosine]")
    assert frames[1].locator("[data-distance=cosine]").count() == 0
    assert page.evaluate("document.querySelector('iframe').clientHeight") > 900


@pytest.mark.parametrize(("scale", "strengths"), [("all", (1.0, 0.5)), ("row", (1.0, 1.0)), ("map", (1.0, 1.0))])
def test_maps_of_a_table_share_the_scale_that_is_asked_for(visit, tmp_path, scale, strengths):
    rows = [[Cell("strong", map=np.full((2, 2), 1.0))], [Cell("weak", map=np.full((2, 2), 0.5))]]
    write(
        Page("t", "s", "", sections=[Section("maps", [], [MapTable(rows, "", "two maps", scale)])]), tmp_path / "p.html"
    )
    page = visit(tmp_path / "p.html")
    colors = page.eval_on_selector_all(
        ".table-of-maps canvas",
        "all => all.map((one) => Array.from(one.getContext('2d').getImageData(3, 3, 1, 1).data))",
    )
    full, zero = np.array(colors[0][:3]), np.array([255, 255, 255])
    for color, strength in zip(colors, strengths, strict=True):
        np.testing.assert_allclose(color[:3], zero + strength * (full - zero), atol=24)
    assert (colors[0] == colors[1]) == (strengths[1] == 1)
