"""Contrast of the texts and lines of a page's charts with their background, as defined by WCAG 2."""

from playwright.sync_api import Page

_INSPECT = """() => {
  const parse = colour => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], a};
  };
  const over = ({rgb, a}, ground) => ground.map((below, i) => a * rgb[i] + (1 - a) * below);
  const light = rgb => {
    const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const paint = (node, what) => {  // a colour with all the opacities above it, or null where nothing is painted
    const style = getComputedStyle(node);
    if (style[what] === 'none' || style.visibility === 'hidden') return null;
    if (style[what].startsWith('url')) return {rgb: null, a: 1};
    const {rgb, a} = parse(style[what]);
    let alpha = a * style[`${what}Opacity`];
    for (let up = node; up && up.tagName !== 'svg'; up = up.parentElement) alpha *= getComputedStyle(up).opacity;
    return alpha > 0 ? {rgb, a: alpha} : null;
  };
  const page = node => {  // what lies behind a chart
    const grounds = [];
    for (let up = node; up; up = up.parentElement) {
      const ground = parse(getComputedStyle(up).backgroundColor);
      grounds.push(ground);
      if (ground.a === 1) break;
    }
    return grounds.reverse().reduce((below, ground) => over(ground, below), [255, 255, 255]);
  };
  const found = [];
  const drawn = [...document.querySelectorAll('.vega-embed svg')].filter(svg => svg.getBoundingClientRect().width);
  drawn.forEach((svg, chart) => {
    const ground = page(svg), frame = svg.getBoundingClientRect();
    const name = svg.querySelector('.role-title-text text, .role-title text')?.textContent ?? '';
    const shapes = [...svg.querySelectorAll('path, rect, circle')]
      .map(node => ({node, box: node.getBoundingClientRect(), fill: paint(node, 'fill')}))
      .filter(({box, fill}) => fill && box.width && box.height);
    const behind = (above, x, y, only = '*') => shapes
      .filter(({node, box}) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom
        && node.matches(only) && node.compareDocumentPosition(above) & Node.DOCUMENT_POSITION_FOLLOWING
        && node.isPointInFill(new DOMPoint(x, y).matrixTransform(node.getScreenCTM().inverse())))
      .reduce((below, {fill}) => fill.rgb ? over(fill, below) : below, ground);
    for (const text of svg.querySelectorAll('text')) {
      const fill = paint(text, 'fill'), box = text.getBoundingClientRect();
      if (!fill || !text.textContent.trim() || !box.width) continue;
      const places = [0.1, 0.3, 0.5, 0.7, 0.9].map(share =>
        behind(text, box.left + share * box.width, box.top + box.height / 2));
      const ratio = Math.min(...places.map(place => contrast(over(fill, place), place)));
      const cut = box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      const {left, top, right, bottom} = box;
      found.push({kind: 'text', chart, name, what: text.textContent, ratio, cut, box: [left, top, right, bottom]});
    }
    for (const node of svg.querySelectorAll('path, line, rect')) {
      const lines = node.closest('.mark-line, .mark-rule, .mark-symbol, .role-axis-domain, .role-axis-tick');
      const box = node.getBoundingClientRect();
      const colours = [paint(node, 'stroke'), paint(node, 'fill')].filter(colour => colour?.rgb && colour.a >= 0.8);
      if (!lines || lines.closest('.role-legend-symbol, .role-axis-grid') || !colours.length) continue;  // nor bands
      const place = behind(node, (box.left + box.right) / 2, (box.top + box.bottom) / 2, '.mark-rect *');
      const ratio = Math.max(...colours.map(colour => contrast(over(colour, place), place)));
      const kind = lines.closest('.role-axis') ? 'axis' : 'mark';
      found.push({kind, chart, name, what: lines.getAttribute('class'), ratio});
    }
  });
  return found;
}"""

TEXT, AXIS, MARK = 4.5, 3.0, 2.0  # minimum contrast; Okabe & Ito's orange and sky blue are 2.2 on white


def inspect_charts(page: Page) -> list[dict]:
    """Every text, axis line and solid mark of the page's charts: kind, chart (number), name, what, ratio, cut, box."""
    return page.evaluate(_INSPECT)


def low_contrast(items: list[dict]) -> list[str]:
    """Texts and marks with too little contrast, each once."""
    minimum = {"text": TEXT, "axis": AXIS, "mark": MARK}
    messages = [
        f"chart {item['chart']} ({item['name']}): {item['kind']} {item['what']!r} {item['ratio']:.2f}"
        for item in items
        if item["ratio"] < minimum[item["kind"]]
    ]
    return list(dict.fromkeys(messages))


def cut_off(items: list[dict]) -> list[str]:
    """Texts that extend over the edge of their chart."""
    return [f"chart {item['chart']} ({item['name']}): {item['what']!r}" for item in items if item.get("cut")]


def overlapping(items: list[dict], min_overlap: float = 3) -> list[str]:
    """Pairs of texts of one chart that overlap by more than `min_overlap` pixels in both directions."""
    texts = [one for one in items if one["kind"] == "text"]
    messages = []
    for i, one in enumerate(texts):
        for other in texts[i + 1 :]:
            if one["chart"] != other["chart"]:
                continue
            (left, top, right, bottom), (a, b, c, d) = one["box"], other["box"]
            if min(right, c) - max(left, a) > min_overlap and min(bottom, d) - max(top, b) > min_overlap:
                messages.append(f"chart {one['chart']} ({one['name']}): {one['what']!r} and {other['what']!r}")
    return messages


def unreadable(page: Page) -> list[str]:
    """Whatever has too little contrast, is cut off or overlaps another text."""
    items = inspect_charts(page)
    clipped, crossed = (
        (f"cut off: {text}" for text in cut_off(items)),
        (f"overlapping: {text}" for text in overlapping(items)),
    )
    return [*low_contrast(items), *clipped, *crossed]
