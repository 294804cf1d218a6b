"""Take the picture of the page in docs/pictures-and-page.md: `python docs/take_screenshot.py --model outputs/stories`.

Writes app.png beside it: both tabs, one above the other, as a Chromium without a window shows them.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from arbprob_hf.demo.network import load_with_tokenizer
from arbprob_hf.demo.page import build_page, serve

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1300, 600
PATIENCE = 120_000


def shoot(page: Page) -> Image.Image:
    """The whole page as it is now, however long it is."""
    # nothing has the focus, and what spins or fades has stopped
    page.locator("#title").click()
    page.wait_for_timeout(1500)
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def write(page: Page, name: str, text: str) -> None:
    """Write a text into a control and press Enter."""
    box = page.locator(f"#{name} textarea, #{name} input[type=number]").first
    box.fill(text)
    box.press("Enter")


def shoot_blanks(page: Page, given: argparse.Namespace) -> Image.Image:
    """The first tab: blanks are clicked in a text, and infills are sampled."""
    write(page, "text", given.text)
    expect(page.locator("#answer table.blank")).to_have_count(0, timeout=PATIENCE)
    for count, number in enumerate(given.blanks, start=1):
        page.locator("#tokens [role=button]").nth(number - 1).click()
        expect(page.locator("#answer table.blank")).to_have_count(count, timeout=PATIENCE)
    write(page, "samples", str(given.samples))
    write(page, "temperature", str(given.temperature))
    page.locator("#sample").click()
    expect(page.locator("#infills li")).to_have_count(given.samples, timeout=PATIENCE)
    return shoot(page)


def shoot_masks(page: Page, given: argparse.Namespace) -> Image.Image:
    """The second tab: the same text, whole, under a mask."""
    page.get_by_role("tab", name="Masks").click()
    write(page, "read-text", given.text)
    write(page, "mask", given.mask)
    expect(page.locator("#totals td.token").first).to_have_text(given.mask, timeout=PATIENCE)
    return shoot(page)


def take(address: str, browser: str, given: argparse.Namespace) -> list[Image.Image]:
    """Both tabs of the page at an address."""
    switches = ["--headless", "--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser, args=switches) as opened:
        page = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        return [shoot_blanks(page, given), shoot_masks(page, given)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the picture of the page.")
    parser.add_argument("--model", required=True, help="a run's output folder, a checkpoint, or a name on the Hub")
    parser.add_argument(
        "--text", default="Anna gave Ben the red cup. Then Ben thanked Anna for the red cup.", help="a whole text"
    )
    parser.add_argument("--blanks", type=int, nargs="+", default=[1, 6], help="which of its tokens are clicked, from 1")
    parser.add_argument("--mask", default="causal & window(3) | sinks(1)", help="a mask for the other tab")
    parser.add_argument("--samples", type=int, default=6, help="number of infills")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the infills")
    given = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed")
    page = build_page(load_with_tokenizer(given.model))
    shots = take(serve(page, port=0), browser, given)
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
