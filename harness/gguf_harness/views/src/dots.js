/**
 * A value with its interval for each model or thing, one below the other.
 *
 * data: {
 *   x: { label, log?: true, percent?: true, middle?: number, domain?: [low, high] },
 *   models: [{ name, short, role, series }],
 *   rows: [{ model?: index, name, group?: string, value, low?, high?, text, detail? }],
 * }
 */
import { Plot, look, plot } from "./kit.js";

function render({ model, el }) {
  const data = model.get("data");
  const factor = data.x.percent ? 100 : 1;
  const rows = data.rows.map((row) => ({
    ...row,
    value: factor * row.value,
    low: factor * (row.low ?? row.value),
    high: factor * (row.high ?? row.value),
    ...(row.model === undefined ? { color: "var(--accent)", symbol: "circle" } : look(data.models[row.model])),
    title: [row.name, row.group, row.text, row.detail].filter(Boolean).join("\n"),
  }));
  const names = [...new Set(rows.map((row) => row.name))];
  const longest = Math.max(...names.map((name) => name.length));
  const grouped = rows.some((row) => row.group !== undefined);
  const log = data.x.log && rows.every((row) => row.value > 0);
  plot(el, {
    height: 70 + 24 * names.length * (grouped ? new Set(rows.map((row) => row.group)).size : 1) + (grouped ? 20 : 0),
    marginLeft: Math.min(0.4 * el.clientWidth, 14 + 7 * longest),
    marginRight: grouped ? 110 : 20,
    marginBottom: 42,
    x: { label: data.x.label + (data.x.percent ? " (%)" : ""), labelArrow: "none", grid: true, type: log ? "log" : "linear", nice: true, ...(data.x.domain ? { domain: data.x.domain.map((end) => factor * end) } : {}), ...(log ? { ticks: 5, tickFormat: "~g" } : {}) },
    y: { label: null, domain: names, tickSize: 0 },
    ...(grouped ? { fy: { label: null } } : {}),
    marks: [
      data.x.middle === undefined ? null : Plot.ruleX([factor * data.x.middle], { stroke: "var(--muted)" }),
      Plot.ruleY(rows.filter((row) => row.high > row.low && (!log || row.low > 0)), { x1: "low", x2: "high", y: "name", fy: grouped ? "group" : undefined, stroke: "color", strokeWidth: 1.5 }),
      Plot.dot(rows, { x: "value", y: "name", fy: grouped ? "group" : undefined, fill: "color", symbol: "symbol", r: 5 }),
      Plot.tip(rows, Plot.pointer({ x: "value", y: "name", fy: grouped ? "group" : undefined, title: "title" })),
    ],
  });
  el.shown = { rows: data.rows };
}

export default { render };
