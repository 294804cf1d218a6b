"""The page: two tabs, their controls, and how they look; the only place that knows Gradio."""

import socket
from typing import TYPE_CHECKING, Any

from ..model.questions.sampling import METHODS
from .handlers import BLANK, GIVEN, HOTTEST, LONGEST, LONGEST_MASK, TEXT, PageHandlers
from .html import CSS
from .masks import own_mask
from .network import Network
from .passage import Passage
from .questions import MOST_SAMPLES

if TYPE_CHECKING:
    import gradio

TITLE = "Ask it anything, under any mask"
MASKS = ("causal", "causal & window(4)", "causal & window(3) | sinks(1)", "blocks(4)", "full")
# of all visitors together: the network is one. The handlers check what is sent, in one line; Gradio would in many
ONE_AT_A_TIME: dict[str, Any] = dict(
    concurrency_limit=1, concurrency_id="network", api_visibility="private", preprocess=False
)

# while one is computed, the next is not lost, as it is in Gradio otherwise
EACH: dict[str, Any] = dict(trigger_mode="multiple")


def build_page(network: Network) -> "gradio.Blocks":
    """The page about one network. It keeps nothing but what each visitor wrote, and computes one thing at a time."""
    # imported here: the package is used without it, and it takes seconds
    import gradio as gr

    handlers = PageHandlers(network)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}", elem_id="title")
        with gr.Tab("Blanks", id="blanks"):
            _build_blanks(handlers)
        with gr.Tab("Masks", id="masks"):
            _build_masks(handlers)
    page.queue(max_size=64)
    return page


def serve(page: "gradio.Blocks", *, host: str | None = None, port: int | None = None) -> str:
    """Serve a page in the background and return its address; host and port are Gradio's choice where None, 0 any port.

    Raises:
        ValueError: the port is taken, or is none, or the host is none of this machine. OSError: no port is free.
    """
    import gradio as gr

    # fonts of the visitor's own, as the page asks no other host for any
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    )
    if host is not None:
        # Gradio would try one port after the other
        _check_host(host)
    _, address, _ = page.launch(
        server_name=host,
        server_port=None if port is None else _free_port(port),
        theme=theme,
        css=CSS,
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        prevent_thread_lock=True,
    )
    return address


def _check_host(host: str) -> None:
    with socket.socket() as one:
        try:
            one.bind((host, 0))
        except OSError as error:
            raise ValueError(f"host: {host!r:.100} is not an address of this machine ({error}); leave it out") from None


def _free_port(wanted: int) -> int:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise ValueError(f"port: {wanted} cannot be used ({error}); name another, or 0 for any free one") from None
        port: int = one.getsockname()[1]
    return port


def _build_blanks(handlers: PageHandlers) -> None:
    import gradio as gr

    start, tokens, answered, _ = handlers.start()
    passage = gr.State(start)
    with gr.Row():
        text = gr.Textbox(
            start.text if start is not None else "",
            label="Text; [M] is a blank, [M:3] one of three tokens",
            max_length=LONGEST,
            scale=5,
            elem_id="text",
        )
        layout = gr.Dropdown(handlers.layouts, label="Layout", scale=1, min_width=130, elem_id="layout")
    chips = gr.HighlightedText(
        list(tokens),
        label="Tokens; click one to blank it out, or to put it back",
        color_map={BLANK: "#D55E00", GIVEN: "#b8b8b8"},
        show_inline_category=False,
        elem_id="tokens",
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=420):
            answer = gr.HTML(answered, elem_id="answer")
        with gr.Column(scale=2, min_width=380):
            options = _build_options()
            button = gr.Button("Sample infills", variant="primary", elem_id="sample")
            filled = gr.HTML(elem_id="infills")

    def leave(text: Any, before: Passage | None, layout: Any) -> Any:
        is_unchanged = before is not None and text == before.text
        return gr.skip() if is_unchanged else handlers.read(text, before, layout)

    # Gradio puts the event where the annotation stands
    def click(text: Any, before: Passage | None, layout: Any, event: gr.EventData) -> tuple[Any, ...]:
        sent = event._data if isinstance(event._data, dict) else {}
        said = sent.get("value")
        clicked = sent.get("index"), said[0] if isinstance(said, list | tuple) and said else said
        shown = handlers.click(text, before, layout, clicked)
        # what cannot be read stays as it was written
        return gr.skip() if shown[0] is None else shown[0].text, *shown

    asked, shown = [text, passage, layout], [passage, chips, answer, filled]
    # never shown on the tokens: who clicks one leaves the text first, and must not hit a veil
    text.submit(handlers.read, asked, shown, show_progress_on=answer, **EACH, **ONE_AT_A_TIME)
    text.blur(leave, asked, shown, show_progress="hidden", **EACH, **ONE_AT_A_TIME)
    layout.input(handlers.again, asked, shown, show_progress_on=answer, **EACH, **ONE_AT_A_TIME)
    chips.select(click, asked, [text, *shown], show_progress_on=answer, **EACH, **ONE_AT_A_TIME)
    button.click(handlers.sample, [*asked, *options], shown, show_progress_on=filled, **ONE_AT_A_TIME)


def _build_options() -> "list[gradio.components.Component]":
    import gradio as gr

    with gr.Row():
        method = gr.Dropdown(list(METHODS), label="Method", min_width=140, elem_id="method")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100, elem_id="seed")
    with gr.Row():
        samples = gr.Slider(1, MOST_SAMPLES, 4, step=1, label="Samples", min_width=140, elem_id="samples")
        temperature = gr.Slider(0, HOTTEST, 1, step=0.05, label="Temperature", min_width=140, elem_id="temperature")
    return [method, samples, temperature, seed]


def _build_masks(handlers: PageHandlers) -> None:
    import gradio as gr

    own = own_mask(handlers.network)
    totals_now, tokens_now, picture_now = handlers.compare(TEXT, MASKS[1])
    # what the numbers shown are about
    read = gr.State((TEXT, MASKS[1]))
    with gr.Row():
        with gr.Column(scale=6, min_width=420):
            text = gr.Textbox(TEXT, label="Text", max_length=LONGEST, elem_id="read-text")
            mask = gr.Textbox(
                MASKS[1], label=f"Mask; the model's own is {own}", max_length=LONGEST_MASK, elem_id="mask"
            )
            examples = gr.Radio(MASKS, value=MASKS[1], show_label=False, container=False, elem_id="examples")
            totals = gr.HTML(totals_now, elem_id="totals")
            tokens = gr.HTML(tokens_now, elem_id="scores")
        with gr.Column(scale=5, min_width=380):
            picture = gr.Plot(picture_now, format="png", show_label=False, elem_id="picture")

    def compare(text: Any, mask: Any, before: tuple[Any, Any]) -> Any:
        if (text, mask) == before:
            return gr.skip()
        return (text, mask), mask if mask in MASKS else None, *handlers.compare(text, mask)

    def choose(text: Any, mask: Any) -> tuple[Any, ...]:
        return (text, mask), mask if mask in MASKS else gr.skip(), *handlers.compare(text, mask)

    shown = [totals, tokens, picture]
    asked, written = [text, mask, read], [read, examples, *shown]
    gr.on([text.submit, mask.submit], compare, asked, written, show_progress_on=shown, **EACH, **ONE_AT_A_TIME)
    gr.on([text.blur, mask.blur], compare, asked, written, show_progress="hidden", **EACH, **ONE_AT_A_TIME)
    examples.input(choose, [text, examples], [read, mask, *shown], show_progress_on=shown, **EACH, **ONE_AT_A_TIME)
