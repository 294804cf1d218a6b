"""The page in a headless Chromium: a text is typed, tokens are blanked, infills sampled, masks changed, errors read."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.demo.space_here import Space

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# a busy machine is slow to answer
PATIENCE = 60_000

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(BROWSERS)} is installed; install one, or deselect with -m 'not browser'")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(space: Space) -> str:
    return space.address


@pytest.fixture
def asked() -> list[str]:
    """The addresses that the page asked for anything."""
    return []


@pytest.fixture
def page(browser: Browser, address: str, asked: list[str]) -> Iterator[Page]:
    """A new visitor, who has found the page ready; no script of it failed."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    failures: list[str] = []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    # a colour that fades in is another one each time it is looked at
    opened.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    expect(opened.locator("#answer table.blank")).to_have_count(2, timeout=PATIENCE)
    yield opened
    context.close()
    assert failures == []


def box(page: Page, name: str) -> Locator:
    return page.locator(f"#{name} textarea, #{name} input").first


def token(page: Page, text: str) -> Locator:
    """The token of that text among those that can be clicked."""
    return page.locator("#tokens [role=button]").filter(has_text=re.compile(rf"^\s*{re.escape(text)}\s*$"))


def write(page: Page, name: str, text: str) -> None:
    box(page, name).fill(text)
    box(page, name).press("Enter")


def test_a_text_is_typed_and_its_tokens_are_blanked_by_clicking(page: Page) -> None:
    write(page, "text", "The cat sat on the mat")
    expect(page.locator("#answer")).to_contain_text("Click a token to blank it out", timeout=PATIENCE)
    token(page, "sat").click()
    expect(box(page, "text")).to_have_value("The cat [M] on the mat", timeout=PATIENCE)
    token(page, "mat").click()
    expect(box(page, "text")).to_have_value("The cat [M] on the [M]", timeout=PATIENCE)
    expect(page.locator("#answer table.blank")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#answer tr.original .token")).to_have_text([" sat", " mat"], timeout=PATIENCE)
    expect(page.locator("#answer .joint")).to_contain_text("the 2 original tokens (underlined) together")
    token(page, "sat").click()
    expect(box(page, "text")).to_have_value("The cat sat on the [M]", timeout=PATIENCE)
    expect(page.locator("#answer table.blank")).to_have_count(1, timeout=PATIENCE)


@pytest.mark.long
def test_blanks_written_in_the_text_are_blank_among_the_tokens(page: Page) -> None:
    write(page, "text", "Return the [M:2] items in the list.")
    expect(page.locator("#answer tr.original .token")).to_have_text([" number", " of"], timeout=PATIENCE)
    colours = [
        token(page, text).evaluate("one => getComputedStyle(one).backgroundColor")
        for text in ("number", "of", "items", "list")
    ]
    assert colours[0] == colours[1] != colours[2] == colours[3]


@pytest.mark.long
def test_quick_clicks_are_all_counted(page: Page) -> None:
    write(page, "text", "one two three four five six")
    expect(token(page, "six")).to_have_count(1, timeout=PATIENCE)
    for text in ("two", "three", "five", "two"):
        token(page, text).click(no_wait_after=True)
    expect(box(page, "text")).to_have_value("one two [M] four [M] six", timeout=PATIENCE)
    expect(page.locator("#answer table.blank")).to_have_count(2, timeout=PATIENCE)


@pytest.mark.long
def test_infills_are_sampled_again_alike_from_the_same_seed(page: Page) -> None:
    samples = page.locator("#infills li")
    expect(samples).to_have_count(0)
    page.locator("#sample").click()
    expect(samples).to_have_count(4, timeout=PATIENCE)
    assert page.locator("#infills mark").count() == 2 * 4
    first = samples.all_inner_texts()
    # of the lines of a sample: expect() reads them without their break, so it would never find both
    words = first[0].split("\n")[-1].strip()
    write(page, "seed", "1")
    page.locator("#sample").click()
    expect(samples.first).not_to_contain_text(words, timeout=PATIENCE)
    write(page, "seed", "0")
    page.locator("#sample").click()
    expect(samples.first).to_contain_text(words, timeout=PATIENCE)
    assert samples.all_inner_texts() == first


def test_another_mask_changes_the_picture_and_the_numbers(page: Page) -> None:
    page.get_by_role("tab", name="Masks").click()
    picture, numbers = page.locator("#picture img"), page.locator("#scores td.chosen")
    expect(numbers).to_have_count(9, timeout=PATIENCE)
    before = picture.get_attribute("src"), numbers.all_inner_texts(), page.locator("#totals").inner_text()
    expect(page.locator("#totals .warning")).to_have_count(0)
    page.get_by_label("full").click()
    expect(page.locator("#totals .warning")).to_contain_text("9 of 9 tokens", timeout=PATIENCE)
    expect(box(page, "mask")).to_have_value("full")
    full = picture.get_attribute("src"), numbers.all_inner_texts(), page.locator("#totals").inner_text()
    write(page, "mask", "causal & window(2)")
    expect(page.locator("#totals td.token").first).to_have_text("causal & window(2)", timeout=PATIENCE)
    window = picture.get_attribute("src"), numbers.all_inner_texts(), page.locator("#totals").inner_text()
    for one, other in ((before, full), (full, window), (before, window)):
        assert all(left != right for left, right in zip(one, other, strict=True))


@pytest.mark.long
def test_what_is_written_while_something_is_computed_is_not_lost(page: Page) -> None:
    page.get_by_role("tab", name="Masks").click()
    for mask in ("causal & window(2)", "full", "causal & window(3)", "blocks(3)"):
        write(page, "mask", mask)
    expect(page.locator("#totals td.token").first).to_have_text("blocks(3)", timeout=PATIENCE)
    write(page, "read-text", "Another text")
    write(page, "mask", "causal")
    expect(page.locator("#totals td.token").first).to_have_text("causal", timeout=PATIENCE)
    expect(page.locator("#scores td.token")).to_have_text(["Another", " text"])


def test_errors_are_read_on_the_page_and_are_gone_afterwards(page: Page) -> None:
    write(page, "text", "The [mask] <b>sat</b>")
    message = page.locator("#answer .said")
    expect(message).to_have_text("text: expected blanks [M], or [M:3] for three tokens, got '[mask]'", timeout=PATIENCE)
    write(page, "text", "word " * 50)
    expect(message).to_contain_text("at most n_positions=40 tokens", timeout=PATIENCE)
    write(page, "text", "The [M] sat")
    expect(page.locator("#answer table.blank")).to_have_count(1, timeout=PATIENCE)
    expect(message).to_have_count(0)
    page.get_by_role("tab", name="Masks").click()
    write(page, "mask", "casual & <i>window</i>(3)")
    expect(page.locator("#totals .said")).to_contain_text("mask: ", timeout=PATIENCE)
    expect(page.locator("#picture img")).to_have_count(0, timeout=PATIENCE)
    expect(page.locator("#totals i")).to_have_count(0)


@pytest.mark.long
def test_visitors_do_not_see_one_another(page: Page, browser: Browser, address: str) -> None:
    write(page, "text", "My own secret text")
    expect(token(page, "secret")).to_have_count(1, timeout=PATIENCE)
    other = browser.new_context().new_page()
    other.goto(address)
    expect(other.locator("#answer table.blank")).to_have_count(2, timeout=PATIENCE)
    assert box(other, "text").input_value() == "Return the [M] of [M] in the list."
    token(other, "list").click()
    expect(box(other, "text")).to_have_value("Return the [M] of [M] in the [M].", timeout=PATIENCE)
    other.context.close()


def test_the_page_asks_no_other_host(page: Page, address: str, asked: list[str]) -> None:
    page.get_by_role("tab", name="Masks").click()
    expect(page.locator("#picture img")).to_have_count(1, timeout=PATIENCE)
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert len(asked) > 5
    assert elsewhere == []
