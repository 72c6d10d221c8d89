"""Pictures for the README: the explorer of heads in motion, from an executed series, and the figures of three answers.

    .venv/bin/python -m tests.browser.pictures out/series --to docs/pictures

It prints the Markdown that shows them, with the text that describes each.
"""

import argparse
import io
from pathlib import Path
from xml.etree import ElementTree

import vl_convert
from PIL import Image
from playwright.sync_api import sync_playwright

from lmdynamics import charts, files
from lmdynamics.charts.theme import STILL_TEXT
from lmdynamics.errors import UserError
from lmdynamics.explorers.answers import interventions_answer, masking_answer, syntax_answer
from tests.browser.lab import _FLAGS, CHROMIUM

PAGE = "02_sas_emergence"
EXPLORER = "explorer.webp"
ANSWERS = {"syntax": syntax_answer, "interventions": interventions_answer, "masking": masking_answer}
RELATION = "nsubj"  # that the moving picture shows
MAX_BYTES = 1_000_000  # of the moving picture
SIZE = (1140, 800)  # pixels of the window
SECONDS, LAST_SECONDS = 0.4, 2.5  # that each place is shown, and the last one
_STEP = """slider => {
  slider.value = Number(slider.value) + 1;
  slider.dispatchEvent(new Event("input"));
  return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def explorer_frames(page: Path) -> list[Image.Image]:
    """The last explorer of a page at each place of its slider, from the first to the last."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        tab = browser.new_page(viewport=dict(zip(("width", "height"), SIZE, strict=True)))
        tab.goto(page.as_uri())
        explorer = tab.locator(".lmd-moving").last
        slider = explorer.locator("input[type=range]")
        explorer.locator("select").first.select_option(RELATION)
        slider.press("Home")
        explorer.evaluate("node => { node.style.padding = '10px'; node.scrollIntoView(); }")
        tab.wait_for_timeout(500)
        box = explorer.bounding_box()
        clip = {**box, "height": min(box["height"], SIZE[1] - box["y"])}
        frames = []
        for place in range(int(slider.get_attribute("max")) + 1):
            if place:
                slider.evaluate(_STEP)
            frames.append(Image.open(io.BytesIO(tab.screenshot(clip=clip))).convert("RGB"))
        browser.close()
    return frames


def save_moving(frames: list[Image.Image], to: Path) -> None:
    """Write the frames as an animated picture, in the best quality that fits into `MAX_BYTES`."""
    durations = [round(1000 * SECONDS)] * (len(frames) - 1) + [round(1000 * LAST_SECONDS)]
    for quality in (85, 60, 40, 20):
        content = io.BytesIO()
        options = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "method": 6}
        frames[0].save(content, "WEBP", quality=quality, **options)
        if content.tell() <= MAX_BYTES:
            break
    with files.atomic_file(to) as temporary:
        temporary.write_bytes(content.getvalue())


def save_still(svg: str, to: Path) -> None:
    """Write a figure as PNG on white, in 256 colours."""
    text = svg.replace(STILL_TEXT, "#444444")
    start = text.index(">") + 1  # of what is in the root element
    x, y, width, height = ElementTree.fromstring(svg).get("viewBox").split()
    white = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="white"/>'
    png = vl_convert.svg_to_png(f"{text[:start]}{white}{text[start:]}", scale=2)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    with files.atomic_file(to) as temporary:
        picture.quantize(256).save(temporary, "PNG", optimize=True)


def pictures(series: Path, to: Path) -> list[str]:
    """Write all pictures of a series, and return the lines of Markdown that show them.

    Raises UserError if the series has no executed page.
    """
    folder = series / PAGE
    if not (folder / f"{PAGE}.html").is_file():
        raise UserError(f"{series} has no page {PAGE}; name the --out of a batch that ran it")
    to.mkdir(parents=True, exist_ok=True)
    save_moving(explorer_frames((folder / f"{PAGE}.html").resolve()), to / EXPLORER)
    svgs = {EXPLORER: (folder / "explorer.svg").read_text("utf-8")}
    for name, answer in ANSWERS.items():
        svgs[f"{name}.png"] = charts.to_svg(answer().figure)
        save_still(svgs[f"{name}.png"], to / f"{name}.png")
    described = {file: ElementTree.fromstring(svg).get("aria-label") for file, svg in svgs.items()}
    return [f"![{described[file]}]({(to / file).as_posix()})" for file in svgs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("series", type=Path, help="folder of a batch that ran page 02, best at profile default")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    arguments = parser.parse_args()
    print(*pictures(arguments.series, arguments.to), sep="\n")
