/**
 * A value with its interval for each model or thing, one below the other.
 *
 * data: {
 *   x: { label, log?: true, percent?: true, middle?: number, domain?: [low, high] },
 *   models: [{ name, short, role, series }],
 *   legend?: true: rows are things, and colours say which model,
 *   rows: [{ model?: index, name, group?: string, value, low?, high?, text, detail? }],
 * }
 */
import { Plot, look, modelLegend, plot, roomForNames, spanning } from "./kit.js";

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
  const { left, fit } = roomForNames(el, names);
  const grouped = rows.some((row) => row.group !== undefined);
  const log = data.x.log && rows.every((row) => row.value > 0);
  // Marks of several models in one row lie a little below each other: equal values stay visible.
  const apart = data.legend ? 4 : 0;
  const layers = data.legend ? data.models.map((_, index) => [rows.filter((row) => row.model === index), apart * (index - (data.models.length - 1) / 2)]) : [[rows, 0]];
  const high = Math.max(24, 12 + apart * data.models.length);
  if (data.legend) el.append(modelLegend(data.models));
  plot(el, {
    height: 70 + high * names.length * (grouped ? new Set(rows.map((row) => row.group)).size : 1) + (grouped ? 20 : 0),
    marginLeft: left,
    marginRight: grouped ? 110 : 30,
    marginBottom: 42,
    x: { label: data.x.label + (data.x.percent ? " (%)" : ""), labelArrow: "none", grid: true, nice: !log && !data.x.domain, inset: log ? 8 : 0, ...(data.x.domain ? { domain: data.x.domain.map((end) => factor * end) } : {}), ...(log ? spanning(rows.flatMap((row) => [row.value, row.low, row.high]).filter((end) => end > 0)) : {}) },
    y: { label: null, domain: names, tickFormat: fit, tickSize: 0 },
    ...(grouped ? { fy: { label: null } } : {}),
    marks: [
      data.x.middle === undefined ? null : Plot.ruleX([factor * data.x.middle], { stroke: "var(--muted)" }),
      data.legend && names.length > 1 ? Plot.ruleY(names.slice(1), { y: (name) => name, dy: -high / 2, stroke: "var(--line)", strokeOpacity: 0.6 }) : null,
      ...layers.flatMap(([some, dy]) => [
        Plot.ruleY(some.filter((row) => row.high > row.low && (!log || row.low > 0)), { x1: "low", x2: "high", y: "name", dy, fy: grouped ? "group" : undefined, stroke: "color", strokeWidth: 1.5 }),
        Plot.dot(some, { x: "value", y: "name", dy, fy: grouped ? "group" : undefined, fill: "color", symbol: "symbol", r: 5 }),
      ]),
      Plot.tip(rows, Plot.pointer({ x: "value", y: "name", fy: grouped ? "group" : undefined, title: "title" })),
    ],
  });
  el.shown = { rows: data.rows };
}

export default { render };
