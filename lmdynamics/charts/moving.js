// Shows a chart with its controls above it, and at each place of its slider the text that describes it.
// Everything it needs is in `content`: { spec, places }. Resolves to Vega's view and a function that ends it.
const rows = columns => {
  const names = Object.keys(columns);
  return names.length ? columns[names[0]].map((_, i) => Object.fromEntries(names.map(n => [n, columns[n][i]]))) : [];
};

async function show(element, { spec, places }) {
  const datasets = Object.fromEntries(Object.entries(spec.datasets).map(([key, data]) => [key, rows(data)]));
  const part = (tag, attributes = {}) => Object.assign(document.createElement(tag), attributes);
  const container = part("div", { className: "lmd-moving" });
  const chart = part("div", { className: "lmd-chart" });
  const text = part("p", { role: "status" });
  const under = part("div", { className: "lmd-under" });
  const { view, finalize } = await vegaEmbed(chart, { ...spec, datasets });

  const controls = chart.querySelector(".vega-bindings");
  const sliders = [...controls.querySelectorAll("input[type=range]")];
  let slider = sliders.find(each => each.name === "at"); // the one that was moved last
  // JupyterLab would handle the arrow keys itself
  for (const control of controls.querySelectorAll("input, select")) control.dataset.lmSuppressShortcuts = "true";
  const follow = each => { // Vega shows the index of the place
    const name = part("output", { ariaHidden: "true" });
    each.nextElementSibling.replaceWith(name);
    return () => {
      const place = places[view.signal(each.name)];
      if (!place) return; // these views are about to be replaced
      name.value = place.name;
      each.setAttribute("aria-valuetext", place.name);
      slider = each;
    };
  };
  const describe = () => {
    const place = places[view.signal("at")];
    if (!place) return;
    if (text.textContent !== place.said) text.textContent = place.said;
    under.innerHTML = place.under; // escaped in Python
  };
  const moves = [describe, ...sliders.map(each => {
    const move = follow(each);
    view.addSignalListener(each.name, move);
    return move;
  })];
  view.addSignalListener("at", describe);
  const stop = () => view.signal("play", false); // a reader who moves a slider wants it to stay there
  for (const each of sliders) each.addEventListener("input", stop);
  chart.addEventListener("pointerdown", stop);
  chart.addEventListener("pointerup", () => slider.focus({ preventScroll: true })); // arrow keys work after a click
  container.append(controls, text, chart, under);
  element.replaceChildren(container);
  const height = Number(chart.querySelector("svg").getAttribute("height")); // it may not be on the page yet
  // all of it on one screen; where the picture alone is higher, hiding a part of the text gains nothing
  under.style.maxHeight = height > 580 ? "none" : `${Math.max(120, 580 - height)}px`;
  for (const move of moves) move();
  return { view, finalize };
}
