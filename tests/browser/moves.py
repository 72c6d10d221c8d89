"""Moving an explorer's slider as a reader does, and checking what the page then shows."""

import random
import re
import time

from playwright.sync_api import Locator, Page

_AREAS = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
  .map((area, i) => [area, i])
  .filter(([area]) => area.querySelector('.lmd-moving svg'))
  .map(([_, i]) => i)"""
PANELS = """root => {
  const scope = 'g.role-scope:not([class*=pathgroup])';  // which is a line's, not a panel's
  const groups = [...root.querySelectorAll(`.vega-embed svg ${scope}`)];
  const panels = groups.filter(group => !group.querySelector(scope) && !group.closest('.role-legend'));
  return (panels.length ? panels : [...root.querySelectorAll('.vega-embed svg')]).map(panel => panel.outerHTML);
}"""
SLIDER = ".lmd-moving input[name=at]"
_WATCH = """([i, wanted]) => {
  const area = document.querySelectorAll('.jp-OutputArea-output')[i];
  window.drawn = null;
  window.shown = null;
  window.pressed = null;
  window.watching?.disconnect();
  const inChart = node => (node.closest ? node : node.parentElement)?.closest('.vega-embed');
  const isChart = node => node.matches?.('.vega-embed') || node.querySelector?.('.vega-embed');
  window.watching = new MutationObserver(changes => {
    if (changes.some(change => inChart(change.target) || [...change.addedNodes].some(isChart)))
      requestAnimationFrame(() => {
        window.drawn = performance.now();
        const lines = {};  // a sentence's words stand at one height; their marks may be in any order
        for (const text of wanted ? area.querySelectorAll('.vega-embed svg text') : []) {
          const {e: x, f: y} = text.getScreenCTM();
          (lines[Math.round(y)] ??= []).push([x, text.textContent]);
        }
        const read = line => line.sort((one, other) => one[0] - other[0]).map(([_, word]) => word).join(' ');
        if (Object.values(lines).some(line => read(line).includes(wanted))) window.shown ??= window.drawn;
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
    """The panels of an output's charts, as they are drawn."""
    return page.locator(".jp-OutputArea-output").nth(area).evaluate(PANELS)


def press(page: Page, area: int, key: str) -> None:
    """A key on an output's slider."""
    page.locator(".jp-OutputArea-output").nth(area).locator(SLIDER).focus()
    page.keyboard.press(key)


def drag(page: Page, area: int, share: float) -> None:
    """The mouse takes an output's slider to a share of its way."""
    slider = page.locator(".jp-OutputArea-output").nth(area).locator(SLIDER)
    slider.scroll_into_view_if_needed()
    track, thumb = slider.bounding_box(), 16  # pixels that the thumb is wide
    start = slider.evaluate("slider => (slider.value - slider.min) / (slider.max - slider.min)")
    grip, target = (track["x"] + thumb / 2 + each * (track["width"] - thumb) for each in (start, share))
    y = track["y"] + track["height"] / 2
    page.mouse.move(grip, y)
    page.mouse.down()
    page.mouse.move(target, y, steps=25)
    page.mouse.up()


def timed_sentences(page: Page, area: int, n: int, settle: int = 1500) -> list[float | None]:
    """Milliseconds from Enter behind a sentence in an output's text box to the frame that shows its arcs; or None.

    That frame is of the checkpoint looked at; the others follow. Sentences are those the output offers, their first
    word put last.
    """
    output = page.locator(".jp-OutputArea-output").nth(area)
    box = output.get_by_placeholder("a sentence of your own")
    offered = [text.split() for text in output.locator("option").all_inner_texts()]
    waits = []
    for first, *words in [words for words in offered if len(words) > 3][:n] if box.count() else []:
        sentence = " ".join([*words, first])
        box.fill(sentence)
        page.evaluate(_WATCH, [area, sentence])
        box.press("Enter")
        page.wait_for_timeout(settle)
        waits.append(page.evaluate(_SHOWN))
    return waits


def timed_move(page: Page, area: int, key: str, settle: int = 350) -> float | None:
    """Milliseconds from the key to the last frame in which a chart of the output changed, `settle` at most; or None."""
    page.evaluate(_WATCH, [area, ""])
    press(page, area, key)
    page.wait_for_timeout(settle)
    return page.evaluate(_WAITED)


_LAYERS = """root => [...root.querySelectorAll('.vega-embed')].map(view =>
  [...view.querySelectorAll('svg g.role-mark')].filter(layer => !layer.matches('.mark-group, [class*=voronoi]'))
  .map(layer => [[...layer.classList].join(' ').replace(/view_\\w+?_/, ''), [...layer.children].filter(mark => {
    const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
    return (box.width || box.height) && style.opacity > 0 && (style.fill !== 'none' || style.stroke !== 'none');
  }).length]).filter(([_, marks]) => marks))"""
_PLACES = """root => [...root.querySelectorAll('.vega-embed')].map(view =>
  [...view.querySelectorAll('svg g.role-mark > *')].map(mark => mark.getBoundingClientRect())
  .filter(({width, height}) => width && height).map(({x, y, width, height}) => [x, y, width, height]))"""


def layers(root: Locator, min_marks: int = 1) -> list[set[str]]:
    """Of each view in an element: its panels that show marks, and those of their layers with `min_marks` or more."""
    return [
        {re.sub(r".* role-mark |layer_.*", "", name) or "view" for name, _ in view}
        | {name for name, marks in view if marks >= min_marks}
        for view in root.evaluate(_LAYERS)
    ]


def random_moves(root: Locator, moves: int = 30, seed: int = 0, patience: float = 20) -> str:
    """Random moves, hovers and clicks over the views in an element; the first loss, or an empty text.

    After each move every panel, and every layer that had two marks or more, must show marks (a single dot at the
    checkpoint may go: not every run has every checkpoint); a view that is being drawn anew has `patience` seconds.
    Places are corners, edges and middles of marks, and anywhere else in a view.
    """
    page, chance, before = root.page, random.Random(seed), layers(root, min_marks=2)
    assert before, "there is no view to move over"
    assert all(before), "a view has no marks to begin with"
    for turn in range(moves):
        view = chance.randrange(len(before))
        frame = root.locator(".vega-embed").nth(view)
        frame.scroll_into_view_if_needed()
        marks, box = root.evaluate(_PLACES)[view], frame.bounding_box()
        frame_box = [box[side] for side in ("x", "y", "width", "height")]
        x, y, width, height = chance.choice(marks) if marks and chance.random() < 0.8 else frame_box
        along, down = (chance.choice([0.08, 0.5, 0.92]) for _ in range(2))
        kind = chance.choice(["move", "hover", "click"])
        page.mouse.move(x + along * width, y + down * height, steps=8 if kind == "move" else 1)
        if kind == "click":
            page.mouse.down()
            page.mouse.up()
        page.wait_for_timeout(60)  # what a chart reports to the kernel waits for 10 ms
        until = time.monotonic() + patience
        while (missing := _missing_views(before, layers(root))) and time.monotonic() < until:
            page.wait_for_timeout(200)
        if missing:
            return f"move {turn}, a {kind} in view {view}: {missing}"
    return ""


def _missing_views(before: list[set[str]], now: list[set[str]]) -> str:
    """Views that are gone, and layers of views that show no marks any more."""
    if len(now) != len(before):
        return f"{len(now)} of {len(before)} views are there"
    return "; ".join(
        f"view {i} lost {', '.join(sorted(old - new))}"
        for i, (old, new) in enumerate(zip(before, now, strict=True))
        if old - new
    )
