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
    return { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  }

  function draw(chart) {
    const figure = chart.figures[shown.get(chart.id)];
    const target = document.querySelector(`[data-chart="${chart.id}"]`);
    const narrow = target.clientWidth < 560;
    Plotly.react(target, figure.traces, themed(figure.layout, narrow), { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" });
    document.querySelector(`[data-meaning="${chart.id}"]`).textContent = figure.meaning;
  }

  const drawAll = () => charts.forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  for (const tabs of document.querySelectorAll(".tabs")) {
    const buttons = [...tabs.querySelectorAll("button")];
    buttons.forEach((button, index) =>
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        shown.set(tabs.dataset.for, index);
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
      if (a === null || b === null) return (a === null) - (b === null); // what has no data stays last
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
