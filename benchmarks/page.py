"""The page of 60 images in headless chromium: its size, its first paint from disk, how soon it answers the pointer.

    python -m benchmarks.page [NETWORK]

Milliseconds. `first_paint` and `first_contentful_paint` are the browser's own, from the start of navigation; `ready` is
when the explorer can be used. `hover` is from a pointer event to the second animation frame after it, of which the
first draws the readout and the map: at 60 frames a second it includes up to 33 ms of waiting. The sums that are shown
are compared with the logits in passing.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from benchmarks.measuring import record
from jaxinterp.app.demo import test_images
from jaxinterp.app.weights import load_trained
from jaxinterp.figures.html import Page, write
from jaxinterp.recipe.explored import chosen_images, explored

VISITS = 3
HOVERS = """async () => {
  const canvas = document.querySelector("canvas.map"), box = canvas.getBoundingClientRect(), times = [];
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (let i = 0; i < 40; i++) {
    const at = { clientX: box.left + box.width * ((i * 7) % 60) / 60, clientY: box.top + box.height * i / 40 };
    await frame();
    const start = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { ...at, pointerType: "mouse", bubbles: true }));
    await frame();
    await frame();
    times.push(performance.now() - start);
  }
  return times;
}"""
PAINTS = "Object.fromEntries(performance.getEntriesByType('paint').map((one) => [one.name, one.startTime]))"


def visit(browser: Any, file: Path, width: int = 1280) -> dict[str, Any]:
    """Open the page anew; return what was measured, and what the console said."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    said = list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    paints = page.evaluate(PAINTS)
    found = {
        "first_paint": paints["first-paint"],
        "first_contentful_paint": paints["first-contentful-paint"],
        "ready": page.evaluate("performance.getEntriesByName('explorer')[0].startTime"),
        "hover": page.evaluate(HOVERS),
        "overflow": page.evaluate("document.documentElement.scrollWidth - innerWidth"),
        "console": said,
    }
    page.close()
    return found


def main() -> None:
    """Write the page, visit it, and write the table."""
    name = sys.argv[1] if len(sys.argv) > 1 else "gated-mnist"
    trained, card = load_trained(name)
    images, labels = test_images(card.packaged)
    logits = np.asarray(trained.explainable.logits(images))
    rows = chosen_images(labels, logits)
    x, k = images[rows], logits[rows].argmax(1)
    panels = trained.family.explore(trained, x, k)
    content = explored(trained.explainable, x, trained.classes, labels[rows].astype(int), panels=panels)
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "report.html"
        write(Page(name, "60 test images", "", explorer=content), file)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visits = [visit(browser, file) for _ in range(VISITS)]
        phone = visit(browser, file, 390)
        size, release = file.stat().st_size, browser.version
        browser.close()
    hovers = np.concatenate([one["hover"] for one in visits])
    times = {key: float(np.median([one[key] for one in visits])) for key in ("first_paint", "ready")}
    times["first_contentful_paint"] = float(np.median([one["first_contentful_paint"] for one in visits]))
    times |= {"hover_median": float(np.median(hovers)), "hover_largest": float(hovers.max())}
    said = [line for one in (*visits, phone) for line in one["console"]]
    setting = {"network": name, "images": len(rows), "bytes": size, "chromium": release, "visits": VISITS}
    setting |= {"console_messages": len(said), "overflow_at_390": phone["overflow"]}
    record("page", {}, {f"{key}_ms": value for key, value in times.items()}, name="page", setting=setting)


if __name__ == "__main__":
    main()
