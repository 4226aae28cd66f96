/**
 * A figure of Plotly, as plugins draw them: `data` is { traces, layout, height? }. The page holds Plotly only where a
 * picture needs it.
 */
import { themed } from "./kit.js";

function render({ model, el }) {
  const figure = model.get("data");
  const narrow = el.clientWidth < 560;
  const color = (name) => themed(el, name);
  const line = color("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("--text"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13 },
    margin: { l: 60, r: 24, t: 24, b: 56 },
    hoverlabel: { bgcolor: color("--card"), bordercolor: line, font: { color: color("--text") }, align: "left" },
    ...figure.layout,
  };
  if (figure.layout.scene) {
    const spatial = { gridcolor: line, zerolinecolor: line, color: color("--text"), showbackground: false };
    layout.scene = { ...figure.layout.scene };
    for (const name of ["xaxis", "yaxis", "zaxis"]) layout.scene[name] = { ...spatial, ...layout.scene[name] };
  } else {
    layout.xaxis = { ...axis, ...figure.layout.xaxis };
    layout.yaxis = { ...axis, ...figure.layout.yaxis };
    if (figure.layout.yaxis2) layout.yaxis2 = { ...axis, ...figure.layout.yaxis2 };
  }
  el.style.height = `${figure.height ?? 430}px`;
  globalThis.Plotly.newPlot(el, figure.traces, layout, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" });
  el.shown = { traces: figure.traces };
  return () => {
    globalThis.Plotly.purge(el);
    el.style.height = "";
  };
}

export default { render };
