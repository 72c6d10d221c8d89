// One slider moves the parameters of some charts. Everything it needs is on the page.
for (const section of document.querySelectorAll(".lmd-linked")) {
  const content = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const slider = section.querySelector("input");
  const play = section.querySelector("button");
  const name = section.querySelector("output");
  const said = section.querySelector("[role=status]");
  const under = section.querySelector(".lmd-under");
  const { places, views } = content;

  const rows = columns => {
    const names = Object.keys(columns);
    return names.length ? columns[names[0]].map((_, i) => Object.fromEntries(names.map(n => [n, columns[n][i]]))) : [];
  };
  const drawn = views.map(({ spec }, i) => {
    const datasets = Object.fromEntries(Object.entries(spec.datasets).map(([key, data]) => [key, rows(data)]));
    const where = section.querySelectorAll(".lmd-view")[i];
    return vegaEmbed(where, { ...spec, datasets }, { actions: false, renderer: "svg", mode: "vega-lite" });
  });

  const move = async () => {
    const place = places[Number(slider.value)];
    name.value = place.name;
    slider.setAttribute("aria-valuetext", place.name);
    said.textContent = place.said;
    under.innerHTML = place.under; // made and escaped where the page was
    for (const { view } of await Promise.all(drawn)) {
      const own = new Set(Object.keys(view.getState({ signals: () => true, data: () => false }).signals));
      for (const [parameter, value] of Object.entries(place.values)) {
        if (own.has(parameter)) view.signal(parameter, value);
      }
      await view.runAsync();
    }
  };

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "play";
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) === places.length - 1) slider.value = 0;
    else slider.value = Number(slider.value) + 1;
    move();
    play.textContent = "pause";
    timer = setInterval(() => {
      if (Number(slider.value) === places.length - 1) return stop();
      slider.value = Number(slider.value) + 1;
      move();
    }, 400);
  });
  slider.addEventListener("input", () => {
    stop();
    move();
  });
  // a click on a chart over training goes to the nearest place, seen on its logarithmic axis
  const log = x => Math.log(Math.max(x, 0.5));
  const nearest = x => {
    const away = places.map(({ at }) => (at === null ? Infinity : Math.abs(log(at) - log(x))));
    return away.indexOf(Math.min(...away));
  };
  for (const ready of drawn) {
    ready.then(({ view, spec }) => {
      for (const { name: selection } of (spec.params ?? []).filter(({ name }) => name.startsWith("jump"))) {
        view.addSignalListener(selection, (_, value) => {
          if (!value.x?.length) return;
          stop();
          slider.value = nearest(value.x[0]);
          move();
        });
      }
    });
  }
  section.querySelector(".lmd-controls").hidden = false;
  slider.value = content.start; // browsers keep a slider where it was before a reload
  move();
}
