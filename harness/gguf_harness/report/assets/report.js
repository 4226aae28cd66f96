"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const shown = new Map(charts.map((chart) => [chart.id, 0]));

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themed(layout, narrow) {
    const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), automargin: true };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--text"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13 },
      margin: { l: 60, r: 24, t: 24, b: 56 },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--text") }, align: "left" },
    };
    if (layout.scene) {
      const scene = { ...layout.scene };
      const spatial = { gridcolor: color("--line"), zerolinecolor: color("--line"), color: color("--text"), showbackground: false };
      for (const name of ["xaxis", "yaxis", "zaxis"]) scene[name] = { ...spatial, ...scene[name] };
      return { ...base, ...layout, scene };
    }
    const second = layout.yaxis2 ? { yaxis2: { ...axis, ...layout.yaxis2 } } : {};
    return { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis }, ...second };
  }

  function draw(chart) {
    const figure = chart.figures[shown.get(chart.id)];
    const target = document.querySelector(`[data-chart="${chart.id}"]`);
    const narrow = target.clientWidth < 560;
    target.style.height = figure.height ? `${figure.height}px` : "";
    Plotly.react(target, figure.traces, themed(figure.layout, narrow), { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" });
    document.querySelector(`[data-meaning="${chart.id}"]`).textContent = figure.meaning;
    if (figure.zoom) zoom(chart, figure, target, narrow);
  }

  // One tile of a grid, enlarged, with its tokens. The tiles are bytes: square roots of weights, one pixel apart.
  const chosen = new Map();

  function zoom(chart, figure, target, narrow) {
    const { side, tokens, layers, heads } = figure.zoom;
    // Another model may have other heads than the chosen one.
    const wanted = chosen.get(chart.id) ?? [];
    const isThere = layers.includes(wanted[0]) && heads.includes(wanted[1]);
    const [layer, head] = isThere ? wanted : [layers[0], heads[0]];
    const bytes = Uint8Array.from(atob(figure.traces[0].z.bdata), (c) => c.charCodeAt(0));
    const width = heads.length * (side + 1);
    const [top, left] = [layers.indexOf(layer) * (side + 1), heads.indexOf(head) * (side + 1)];
    const weights = tokens.map((_, row) => tokens.map((_, key) => (bytes[(top + row) * width + left + key] / 255) ** 2));
    const select = document.querySelector(`[data-heads="${chart.id}"]`);
    select.replaceChildren(...layers.flatMap((l) => heads.map((h) => new Option(`layer ${l}, head ${h}`, `${l},${h}`))));
    select.onchange = () => choose(chart, ...select.value.split(",").map(Number));
    select.value = `${layer},${head}`;
    const places = tokens.map((_, index) => index);
    const axis = { tickvals: places, ticktext: tokens, showgrid: false, tickfont: { size: 10 } };
    const trace = {
      type: "heatmap", z: weights, colorscale: figure.traces[0].colorscale, zmin: 0, zmax: 1,
      text: tokens.map((row) => tokens.map((key) => `${row} → ${key}`)),
      hovertemplate: "%{text}: %{z:.3f}<extra></extra>", colorbar: { thickness: 12, outlinewidth: 0 },
    };
    const layout = { xaxis: { ...axis, tickangle: -90 }, yaxis: { ...axis, autorange: "reversed" } };
    const place = document.querySelector(`[data-zoom="${chart.id}"]`);
    Plotly.react(place, [trace], themed(layout, narrow), { responsive: true, displaylogo: false, displayModeBar: false });
    if (!target.dataset.clickable) {
      target.dataset.clickable = "yes";
      target.on("plotly_click", ({ points: [{ x, y }] }) => {
        const shape = chart.figures[shown.get(chart.id)].zoom;
        choose(chart, shape.layers[Math.floor(y / (shape.side + 1))], shape.heads[Math.floor(x / (shape.side + 1))]);
      });
    }
  }

  function choose(chart, layer, head) {
    chosen.set(chart.id, [layer, head]);
    draw(chart);
  }

  // A chart is drawn when it comes near: a page with many opens at once. Paper shows all of them.
  const drawn = new Set();
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) drawFirst(target.dataset.chart);
  }, { rootMargin: "400px" });

  function drawFirst(id) {
    if (drawn.has(id)) return;
    drawn.add(id);
    const chart = charts.find((one) => one.id === id);
    near.unobserve(document.querySelector(`[data-chart="${id}"]`));
    draw(chart);
  }

  for (const chart of charts) near.observe(document.querySelector(`[data-chart="${chart.id}"]`));
  addEventListener("beforeprint", () => charts.forEach((chart) => drawFirst(chart.id)));
  const redraw = () => charts.filter((chart) => drawn.has(chart.id)).forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  for (const tabs of document.querySelectorAll(".tabs")) {
    const buttons = [...tabs.querySelectorAll("button")];
    buttons.forEach((button, index) =>
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        shown.set(tabs.dataset.for, index);
        drawn.add(tabs.dataset.for);
        draw(charts.find((chart) => chart.id === tabs.dataset.for));
      }),
    );
  }

  function key(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.classList.contains("num") ? null : cell.textContent.trim().toLowerCase();
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // missing data is always last
      const order = a < b ? -1 : a > b ? 1 : 0;
      return descending ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) =>
      head.querySelector("button")?.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      }),
    );
  }

  for (const input of document.querySelectorAll("input[data-filter]")) {
    const rows = document.querySelector(`[data-filtered="${input.dataset.filter}"]`).tBodies[0].rows;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
  }
})();
