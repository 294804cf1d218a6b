"""Take the picture of the page in README.md: `python docs/take_screenshot.py --model outputs/conditional_tiny`.

Writes app.png beside it: both tabs, one above the other, as a Chromium without a window shows them.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from arbprob_hf.demo.loading import load_network
from arbprob_hf.demo.page import build_page, serve

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1300, 600
PATIENCE = 120_000


def shoot(page: Page) -> Image.Image:
    """The whole page as it is now, however long it is."""
    # what spins or fades has stopped
    page.wait_for_timeout(1500)
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def take(address: str, path: str, *, text: str, mask: str, samples: int) -> list[Image.Image]:
    """Both tabs: infills of a text with blanks, and the same text without them under a mask."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#text textarea").fill(text)
        page.locator("#text textarea").press("Enter")
        page.locator("#samples input[type=number]").fill(str(samples))
        page.locator("#sample").click()
        expect(page.locator("#infills li")).to_have_count(samples, timeout=PATIENCE)
        page.locator("#title").click()
        blanks = shoot(page)
        page.get_by_role("tab", name="Masks").click()
        page.locator("#mask textarea").fill(mask)
        page.locator("#mask textarea").press("Enter")
        expect(page.locator("#totals td.token").first).to_have_text(mask, timeout=PATIENCE)
        page.locator("#title").click()
        masks = shoot(page)
        browser.close()
    return [blanks, masks]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the picture of the page.")
    parser.add_argument("--model", required=True, help="a run's output folder, a checkpoint, or a name on the Hub")
    parser.add_argument("--text", default="Return the [M] of [M] in the list.", help="a text with blanks")
    parser.add_argument("--mask", default="causal & window(3) | sinks(1)", help="a mask for the other tab")
    parser.add_argument("--samples", type=int, default=5, help="number of infills")
    given = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed")
    page = build_page(load_network(given.model))
    address = serve(page, port=0)
    shots = take(address, path, text=given.text, mask=given.mask, samples=given.samples)
    page.close()
    whole = Image.new("RGB", (WIDTH, sum(shot.height for shot in shots)), "white")
    top = 0
    for shot in shots:
        whole.paste(shot, (0, top))
        top += shot.height
    # few colours make a small file
    whole.quantize(128, dither=Image.Dither.NONE).save(HERE / "app.png", optimize=True)
    print(f"{HERE / 'app.png'}: {whole.width} x {whole.height}, {(HERE / 'app.png').stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
