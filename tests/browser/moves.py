"""Moving an explorer's slider as a reader does, and seeing what the page makes of it."""

from playwright.sync_api import Page

_AREAS = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
  .map((area, i) => [area, i])
  .filter(([area]) => area.querySelector('.noUi-handle') && area.querySelector('.vega-embed'))
  .map(([_, i]) => i)"""
_VIEWS = """i => [...document.querySelectorAll('.jp-OutputArea-output')[i].querySelectorAll('.vega-embed')]
  .map(view => (view.querySelector('svg') || view).outerHTML)"""
_FOCUS = """i => [...document.querySelectorAll('.jp-OutputArea-output')[i].querySelectorAll('.noUi-handle')]
  .at(-1).focus()"""
_WATCH = """([i, wanted]) => {
  const area = document.querySelectorAll('.jp-OutputArea-output')[i];
  window.drawn = null;
  window.shown = null;
  window.pressed = null;
  window.watching?.disconnect();
  const inChart = node => (node.closest ? node : node.parentElement)?.closest('.vega-embed');
  window.watching = new MutationObserver(changes => {
    if (changes.some(change => inChart(change.target)))
      requestAnimationFrame(() => {
        window.drawn = performance.now();
        const texts = [...area.querySelectorAll('.vega-embed svg text')].map(text => text.textContent);
        if (wanted && texts.join(' ').includes(wanted)) window.shown ??= window.drawn;
      });
  });
  window.watching.observe(area, {subtree: true, childList: true, attributes: true, characterData: true});
  area.addEventListener('keydown', () => { window.pressed = performance.now(); }, {once: true, capture: true});
}"""
_WAITED = "() => window.drawn && window.pressed ? window.drawn - window.pressed : null"
_SHOWN = "() => window.shown && window.pressed ? window.shown - window.pressed : null"


def slider_areas(page: Page) -> list[int]:
    """The numbers of those outputs that have a slider and a chart."""
    return page.evaluate(_AREAS)


def views(page: Page, area: int) -> list[str]:
    """The charts of an output, as they are drawn."""
    return page.evaluate(_VIEWS, area)


def press(page: Page, area: int, key: str) -> None:
    """A key on the last slider of an output: what comes before chooses what is looked at."""
    page.evaluate(_FOCUS, area)
    page.keyboard.press(key)


def drag(page: Page, area: int, share: float) -> None:
    """The mouse takes the last slider's handle to a share of its way."""
    slider = page.locator(".jp-OutputArea-output").nth(area).locator(".noUi-target").last
    handle = slider.locator(".noUi-handle").last
    handle.scroll_into_view_if_needed()
    held, way = handle.bounding_box(), slider.bounding_box()
    y = held["y"] + held["height"] / 2
    page.mouse.move(held["x"] + held["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(way["x"] + share * way["width"], y, steps=25)
    page.mouse.up()


def timed_sentences(page: Page, area: int, n: int, settle: int = 1500) -> list[float]:
    """Milliseconds from Enter behind a sentence in an output's text box to the frame that shows its arcs.

    That frame is of the checkpoint looked at; the others follow. Sentences are those the output offers, their first
    word put last.
    """
    output = page.locator(".jp-OutputArea-output").nth(area)
    box = output.locator("input[type=text]").first
    offered = [text.split() for text in output.locator("option").all_inner_texts()]
    waits = []
    for first, *words in [words for words in offered if len(words) > 3][:n] if box.count() else []:
        sentence = " ".join([*words, first])
        box.fill(sentence)
        page.evaluate(_WATCH, [area, sentence])
        box.press("Enter")
        page.wait_for_timeout(settle)
        waits.append(page.evaluate(_SHOWN))
    return [wait for wait in waits if wait is not None]


def timed_move(page: Page, area: int, key: str, settle: int = 350) -> float | None:
    """Milliseconds from the key to the last frame in which a chart of the output changed, `settle` at most; or None."""
    page.evaluate(_WATCH, [area, ""])
    press(page, area, key)
    page.wait_for_timeout(settle)
    return page.evaluate(_WAITED)
