"use strict";
(() => {
  const { nodes, edges, facets, axes, tree } = JSON.parse(document.getElementById("graph").textContent);
  const plot = document.getElementById("plot");
  const least = document.getElementById("least");
  const find = document.getElementById("find");
  const COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]; // Okabe and Ito (2008)
  const BINS = 4; // a trace has one width, so strength is shown in steps
  const MOST_LABELS = 600;
  const WEBGL_FROM = 5000;
  const type = nodes.x.length > WEBGL_FROM ? "scattergl" : "scatter";
  const strength = edges.weight.map(Math.abs);
  const strongest = strength.reduce((a, b) => Math.max(a, b), 0);
  const weakest = strength.reduce((a, b) => Math.min(a, b), strongest);
  const chosen = {};

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const kinds = (list) => [...new Set(list)];
  const threshold = () => weakest + (least.value / least.max) * (strongest - weakest);

  for (const [name, values] of Object.entries(facets)) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.dataset.facet = name;
    select.add(new Option("all", ""));
    for (const value of values) select.add(new Option(String(value), String(value)));
    select.addEventListener("change", () => {
      chosen[name] = select.value;
      draw();
    });
    label.append(`${name} `, select);
    document.getElementById("controls").append(label);
  }

  function shownEdges() {
    const wanted = Object.entries(chosen).filter(([, value]) => value !== "");
    const found = [];
    for (let i = 0; i < strength.length; i++) {
      if (strength[i] >= threshold() && wanted.every(([name, value]) => String(edges[name][i]) === value)) found.push(i);
    }
    return found;
  }

  function edgeTraces(shown) {
    const traces = [];
    kinds(edges.kind).forEach((kind, index) => {
      const hue = COLORS[(index + 1) % COLORS.length];
      const middle = { x: [], y: [], text: [] };
      for (let bin = 0; bin < BINS; bin++) {
        const x = [];
        const y = [];
        for (const i of shown) {
          const step = Math.min(BINS - 1, Math.floor((BINS * (strength[i] - weakest)) / (strongest - weakest || 1)));
          if (edges.kind[i] !== kind || step !== bin) continue;
          const [a, b] = [edges.source[i], edges.target[i]];
          x.push(nodes.x[a], nodes.x[b], null);
          y.push(nodes.y[a], nodes.y[b], null);
          middle.x.push((nodes.x[a] + nodes.x[b]) / 2);
          middle.y.push((nodes.y[a] + nodes.y[b]) / 2);
          const more = Object.keys(facets).map((name) => `<br>${name}: ${edges[name][i]}`);
          middle.text.push(`${nodes.text[a]} → ${nodes.text[b]}<br>${kind}: ${edges.weight[i]}${more.join("")}`);
        }
        const line = { color: hue, width: 0.6 + bin };
        traces.push({ type, mode: "lines", x, y, line, opacity: 0.25 + 0.2 * bin, hoverinfo: "skip", name: kind, legendgroup: `edge ${kind}`, showlegend: bin === BINS - 1 });
      }
      traces.push({ type, mode: "markers", ...middle, marker: { size: 7, opacity: 0, color: hue }, hovertemplate: "%{text}<extra></extra>", legendgroup: `edge ${kind}`, showlegend: false });
    });
    return traces;
  }

  function nodeTraces() {
    const wanted = find.value.trim().toLowerCase();
    const named = nodes.x.length <= MOST_LABELS;
    return kinds(nodes.kind).map((kind, index) => {
      const own = nodes.kind.map((other, i) => (other === kind ? i : -1)).filter((i) => i >= 0);
      const hit = (i) => wanted !== "" && nodes.search[i].includes(wanted);
      return {
        type,
        mode: named ? "markers+text" : "markers",
        name: kind,
        x: own.map((i) => nodes.x[i]),
        y: own.map((i) => nodes.y[i]),
        text: own.map((i) => nodes.text[i]),
        textposition: tree ? "middle right" : "top center",
        textfont: { size: 11 },
        hovertext: own.map((i) => nodes.hover[i]),
        hovertemplate: "%{hovertext}<extra></extra>",
        cliponaxis: false,
        marker: {
          color: own.map((i) => (hit(i) ? "#D55E00" : COLORS[index % COLORS.length])),
          size: own.map((i) => (hit(i) ? 15 : 8)),
        },
      };
    });
  }

  function layout() {
    // Layers and positions are whole numbers: so use integer ticks.
    const axis = (title, values) => ({
      title: { text: title },
      showgrid: false,
      zeroline: false,
      showticklabels: title !== "",
      ...(title !== "" && { tick0: 0, dtick: Math.ceil((values.reduce((a, b) => Math.max(a, b), 0) + 1) / 25) }),
      color: color("--text"),
      automargin: true,
    });
    const lines = -nodes.y.reduce((a, b) => Math.min(a, b), 0);
    return {
      height: tree ? Math.max(520, 15 * lines + 120) : 720,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--text"), family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--text") }, align: "left" },
      margin: { l: 40, r: tree ? 260 : 30, t: 20, b: 40 },
      xaxis: axis(axes[0], nodes.x),
      yaxis: axis(axes[1], nodes.y),
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
      hovermode: "closest",
      uirevision: "same", // a filter keeps the zoom
    };
  }

  function draw() {
    const shown = shownEdges();
    document.getElementById("least-value").textContent = threshold().toPrecision(3);
    document.getElementById("count").textContent = `${shown.length} of ${strength.length} edges shown`;
    Plotly.react(plot, [...edgeTraces(shown), ...nodeTraces()], layout(), { responsive: true, displaylogo: false, scrollZoom: true });
  }

  least.addEventListener("input", draw);
  find.addEventListener("input", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
