// Filters, sorts and draws loss curves, and opens one of them. All numbers and texts are in the element "content";
// text from data is only ever set as text, never as HTML.
"use strict";
{
  const { curves, colours, maxPoints } = JSON.parse(document.getElementById("content").textContent);
  const find = (selector, root = document) => root.querySelector(selector);
  const part = (tag, ...children) => { const made = document.createElement(tag); made.append(...children); return made; };
  const verdicts = Object.keys(colours).filter(verdict => curves.some(curve => curve.verdict === verdict));
  const [form, overlay, under, dialog] = ["#filters", "#overlay", "#under", "#one"].map(id => find(id));
  const NEAR = 8; // pixels from a curve that still are a click on it
  const PART = 200; // rows that the table shows at first
  const QUIET = ["not fitted", "no break"]; // drawn first
  const isQuiet = curve => QUIET.includes(curve.verdict);
  let shown = [], current = null, drawn = []; // drawn: [curve, pixels of its points]

  const count = number => number.toLocaleString("en");
  const swatch = verdict => {
    const line = part("i");
    line.style.borderColor = colours[verdict];
    line.style.borderTopStyle = verdict === "not fitted" ? "dashed" : "solid";
    return line;
  };
  const headline = curve => curve.verdict + (curve.caveat ? ` (${curve.caveat})` : "");

  // the table --------------------------------------------------------------------------------------------------------
  for (const curve of curves) {
    const verdict = part("td", swatch(curve.verdict), curve.verdict);
    const detail = curve.verdict === "not fitted" ? curve.reason : curve.caveat;
    if (detail) verdict.append(part("small", detail));
    const numbers = ["stepText", "lossText", "rateText", "points"].map(key => part("td", String(curve[key] ?? "–")));
    curve.row = part("tr", part("td", curve.name), verdict, ...numbers);
    curve.row.tabIndex = -1;
    curve.row.curve = curve;
    curve.lower = curve.name.toLowerCase();
  }
  const body = find("#curves tbody");
  const order = { by: null, sign: 1 };
  const value = (curve, by) => by === "verdict" ? verdicts.indexOf(curve.verdict) : [curve[by]].flat()[0];
  const sort = () => {
    const { by, sign } = order;
    const sorted = by === null ? curves : curves.toSorted((one, other) => {
      const [a, b] = [value(one, by), value(other, by)];
      if (a == null || b == null) return (a == null) - (b == null); // missing numbers last, in both directions
      return sign * (by === "name" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    });
    return sorted;
  };
  let sorted = sort(), rows = PART;
  const list = () => { // a browser takes half a second to lay out thousands of rows
    body.replaceChildren(...shown.slice(0, rows).map(curve => curve.row));
    find("#more").hidden = shown.length <= rows;
    find("#more").textContent = `Show all ${count(shown.length)} rows`;
  };
  find("#more").addEventListener("click", () => { rows = Infinity; list(); });
  for (const button of document.querySelectorAll("#curves th button")) button.addEventListener("click", () => {
    order.sign = order.by === button.dataset.by ? -order.sign : 1;
    order.by = button.dataset.by;
    for (const head of document.querySelectorAll("#curves th")) head.removeAttribute("aria-sort");
    button.parentElement.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
    sorted = sort();
    filter();
  });

  // filters ----------------------------------------------------------------------------------------------------------
  for (const verdict of verdicts) {
    const box = part("input");
    Object.assign(box, { type: "checkbox", name: "verdict", value: verdict, defaultChecked: true });
    const number = curves.filter(curve => curve.verdict === verdict).length;
    find("#verdicts").append(part("label", box, " ", swatch(verdict), `${verdict} (${count(number)})`));
  }
  const filter = () => {
    const fields = new FormData(form);
    const chosen = new Set(fields.getAll("verdict"));
    const words = fields.get("text").toLowerCase().split(/\s+/).filter(Boolean);
    const ranges = [];
    for (const key of ["step", "loss", "rate"]) for (const [end, sign] of [["low", 1], ["high", -1]]) {
      const input = form.elements[`${key}-${end}`];
      const text = input.value.replaceAll(",", "").trim();
      input.setAttribute("aria-invalid", text !== "" && !Number.isFinite(Number(text)));
      if (text !== "" && Number.isFinite(Number(text))) ranges.push([key, sign, Number(text)]);
    }
    shown = sorted.filter(curve =>
      chosen.has(curve.verdict) && words.every(word => curve.lower.includes(word)) &&
      ranges.every(([key, sign, bound]) => curve[key] && sign * (curve[key][0] - bound) >= 0));
    find("#shown").value = `${count(shown.length)} of ${count(curves.length)} curves`;
    rows = PART;
    list();
    choose(shown.includes(current) ? current : null);
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  find("#all").addEventListener("click", () => { form.reset(); filter(); });

  // drawing ----------------------------------------------------------------------------------------------------------
  const short = number => Math.abs(number) >= 1e3 ? count(number) : String(+number.toPrecision(6));
  const ticks = (low, high) => {
    const made = [];
    if (high / low > 3) {
      const multiples = high / low > 1e3 ? [1] : high / low > 20 ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 6, 8];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        made.push(...multiples.map(each => each * 10 ** power));
    } else {
      const size = 10 ** Math.floor(Math.log10((high - low) / 7));
      const step = [1, 2, 5, 10].find(each => (high - low) / (each * size) <= 7) * size;
      for (let i = Math.ceil(low / step); i * step <= high; i++) made.push(i * step);
    }
    return made.filter(tick => tick >= low && tick <= high);
  };
  const extent = values => {
    let [low, high] = [Infinity, -Infinity];
    for (const each of values) if (each != null) { low = Math.min(low, each); high = Math.max(high, each); }
    return [low, high];
  };

  // log-log axes on a canvas: a context, and functions from steps and losses to pixels
  const axes = (canvas, steps, losses) => {
    const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio || 1];
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const text = getComputedStyle(document.body).color;
    const box = { left: 58, right: width - 14, top: 10, bottom: height - 42 };
    const scale = ([low, high], start, end, pad) => {
      const [a, b] = [Math.log(low / pad), Math.log(high * pad)];
      return each => start + (Math.log(each) - a) / (b - a) * (end - start);
    };
    const px = scale(steps, box.left, box.right, 1.03), py = scale(losses, box.bottom, box.top, 1.03);
    Object.assign(context, { font: "12px system-ui, sans-serif", fillStyle: text, strokeStyle: "#88888833", textAlign: "center" });
    const line = (...ends) => { context.beginPath(); for (const [x, y] of ends) context.lineTo(x, y); context.stroke(); };
    for (const tick of ticks(...steps)) {
      line([px(tick), box.top], [px(tick), box.bottom]);
      context.fillText(short(tick), px(tick), box.bottom + 16);
    }
    context.fillText("step (log scale)", (box.left + box.right) / 2, height - 6);
    context.textAlign = "right";
    for (const tick of ticks(...losses)) {
      line([box.left, py(tick)], [box.right, py(tick)]);
      context.fillText(short(tick), box.left - 6, py(tick) + 4);
    }
    context.save();
    context.translate(13, (box.top + box.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText("loss (log scale)", 0, 0);
    context.restore();
    context.beginPath(); // what follows stays inside the axes
    context.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    context.clip();
    return { context, box, px, py, line };
  };

  const drawOverlay = () => {
    const visible = shown.filter(curve => curve.x);
    drawn = [];
    const steps = extent(visible.flatMap(curve => [curve.x[0], curve.x.at(-1)]));
    const losses = extent(visible.flatMap(curve => curve.y));
    const { context, px, py, line } = axes(overlay, visible.length ? steps : [1, 10], visible.length ? losses : [1, 10]);
    const stroke = (curve, pixels, width, alpha) => {
      Object.assign(context, { strokeStyle: colours[curve.verdict], lineWidth: width, globalAlpha: alpha });
      context.setLineDash(curve.verdict === "not fitted" ? [2, 3] : []);
      line(...pixels);
    };
    const alpha = Math.min(0.9, Math.max(0.3, 9 / Math.sqrt(visible.length)));
    for (const curve of visible.toSorted((one, other) => isQuiet(other) - isQuiet(one))) {
      const pixels = curve.x.map((x, i) => [px(x), py(curve.y[i])]);
      drawn.push([curve, pixels]);
      stroke(curve, pixels, 1.2, alpha * (isQuiet(curve) ? 0.45 : 1));
    }
    const marked = drawn.find(([curve]) => curve === current);
    if (marked) {
      Object.assign(context, { strokeStyle: getComputedStyle(document.body).color, lineWidth: 6, globalAlpha: 1 });
      context.setLineDash([]);
      line(...marked[1]);
      stroke(...marked, 3, 1);
    }
  };

  // the curve at a place of the overlay, the one on top where several are equally near; or undefined
  const nearest = event => {
    const frame = overlay.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    let best, least = NEAR ** 2;
    for (const [curve, pixels] of drawn) for (let i = 0; i < pixels.length; i++) {
      const [[ax, ay], [bx, by]] = [pixels[Math.max(0, i - 1)], pixels[i]];
      if (Math.min(ax, bx) > x + NEAR || Math.max(ax, bx) < x - NEAR) continue;
      const [dx, dy] = [bx - ax, by - ay];
      const along = Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
      const distance = (ax + along * dx - x) ** 2 + (ay + along * dy - y) ** 2;
      if (distance <= least) [best, least] = [curve, distance];
    }
    return best;
  };

  const drawOne = curve => {
    const canvas = find("canvas", dialog);
    canvas.setAttribute("aria-label", `Loss of ${curve.name} against step, both logarithmic: ${headline(curve)}.`);
    const xs = [...(curve.x ?? []), curve.from, curve.to], ys = [...(curve.y ?? []), ...(curve.line ?? [])];
    if (!ys.length) { canvas.hidden = true; return "no point is left to draw"; }
    canvas.hidden = false;
    const located = Boolean(curve.step), caption = ["dots: loss"];
    const widen = ([low, high]) => low < high ? [low, high] : [low / 1.1, high * 1.1];
    const [steps, losses] = [widen(extent(xs)), widen(extent(located ? [...ys, curve.loss[0]] : ys))];
    const { context, box, px, py, line } = axes(canvas, steps, losses);
    const colour = colours[curve.verdict];
    const power = (x, rate) => [px(x), py(curve.loss[0] * (x / curve.step[0]) ** -rate)];
    const bounded = located && curve.step[1] != null;
    Object.assign(context, { fillStyle: colour, strokeStyle: colour, globalAlpha: 0.15 });
    if (bounded) context.fillRect(px(curve.step[1]), box.top, Math.max(2, px(curve.step[2]) - px(curve.step[1])), box.bottom - box.top);
    context.globalAlpha = 0.55;
    curve.x?.forEach((x, i) => { context.beginPath(); context.arc(px(x), py(curve.y[i]), 2.3, 0, 7); context.fill(); });
    Object.assign(context, { globalAlpha: 1, lineWidth: 2 });
    if (curve.line) {
      const last = curve.line.length - 1;
      line(...curve.line.map((y, i) => [px(curve.from * (curve.to / curve.from) ** (i / last)), py(y)]));
      caption.push(`line: fit with one ${curve.verdict === "no break" ? "power law" : "smooth break"}`);
    }
    if (located) {
      context.lineWidth = 1.2;
      context.setLineDash([5, 4]);
      line(power(curve.from, curve.before), power(curve.step[0], 0), power(curve.to, curve.rate[0]));
      context.setLineDash([]);
      context.beginPath();
      context.arc(px(curve.step[0]), py(curve.loss[0]), 6, 0, 7);
      context.fill();
      Object.assign(context, { strokeStyle: "white", lineWidth: 1.5 });
      context.stroke();
      caption.push("dashed: the two power laws it joins, and where they meet: the break");
      if (bounded) caption.push("band: 95 % interval of its step");
    }
    if (curve.x?.length === maxPoints || curve.points > maxPoints) caption.push(`${curve.x.length} of the points are drawn`);
    return caption.join("; ");
  };

  // one curve --------------------------------------------------------------------------------------------------------
  const choose = curve => {
    current?.row.classList.remove("current");
    current = curve;
    curve?.row.classList.add("current");
    for (const each of curves) each.row.tabIndex = -1; // one row is in the order of Tab
    if (shown.indexOf(curve) >= rows) { rows = Infinity; list(); }
    const row = (curve ?? shown[0])?.row;
    if (row) row.tabIndex = 0;
    describe(curve);
    drawOverlay();
  };
  const describe = curve => {
    under.textContent = curve ? `${curve.name}: ${headline(curve)}` : "Click a curve, or a row below, to open it.";
  };
  const fill = curve => {
    find("#title").textContent = curve.name;
    const [caption, numbers, reason] = dialog.querySelectorAll("p");
    caption.textContent = drawOne(curve);
    numbers.replaceChildren(swatch(curve.verdict), headline(curve) + (curve.step
      ? `: t_d ${curve.stepText}, L_d ${curve.lossText}, r_d ${curve.rateText}`
      : curve.verdict === "not fitted" ? "" : "; t_d, L_d and r_d are missing, as no break is located"));
    reason.textContent = `Reason: ${curve.reason}.`;
  };
  const open = curve => {
    choose(curve);
    if (!dialog.open) dialog.showModal();
    fill(curve);
  };
  const beside = step => { // a neighbour among those that are shown
    const place = current ? shown.indexOf(current) : step > 0 ? -1 : shown.length;
    return shown[Math.max(0, Math.min(shown.length - 1, place + step))];
  };
  body.addEventListener("click", event => event.target.closest("tr") && open(event.target.closest("tr").curve));
  body.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step && event.key !== "Enter") return;
    event.preventDefault();
    choose(event.target.closest("tr").curve);
    if (!step) return open(current);
    choose(beside(step));
    current.row.focus();
  });
  overlay.addEventListener("click", event => { const curve = nearest(event); if (curve) open(curve); });
  overlay.addEventListener("pointermove", event => {
    const curve = nearest(event);
    overlay.style.cursor = curve ? "pointer" : "";
    describe(curve ?? current);
  });
  overlay.addEventListener("pointerleave", () => describe(current));
  overlay.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step && event.key !== "Enter" || !shown.length) return;
    event.preventDefault();
    if (step) choose(beside(step)); else open(current ?? shown[0]);
  });
  dialog.addEventListener("click", event => {
    const step = { previous: -1, next: 1 }[event.target.value];
    if (step) open(beside(step));
    else if (event.target === dialog || event.target.value === "close") dialog.close(); // the ground, or the button
  });
  dialog.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) open(beside(step));
  });

  const redraw = () => { drawOverlay(); if (dialog.open) fill(current); };
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  filter();
}
