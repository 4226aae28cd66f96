/**
 * Quality against size: candidates with their intervals, what no other file beats, and the limit.
 *
 * data: {
 *   x: { label }, y: { label, log?: true, percent?: true, better: "lower" | "higher" },
 *   models: [{ name, short, role, series, verdict, bits, value, low, high, frontier: bool, lines: [string] }],
 *   limit?: { value, text }
 * }
 */
import { Plot, logarithmic, look, plot } from "./kit.js";

function render({ model, el }) {
  const data = model.get("data");
  const factor = data.y.percent ? 100 : 1;
  const points = data.models.map((one) => ({
    ...one, ...look(one), value: factor * one.value, low: factor * (one.low ?? one.value), high: factor * (one.high ?? one.value),
    title: [one.name, ...one.lines].join("\n"), faint: !one.frontier && one.role !== "reference",
  }));
  const log = data.y.log && points.every((point) => point.value > 0);
  const frontier = points.filter((point) => point.frontier).sort((a, b) => a.bits - b.bits);
  const limit = data.limit && { value: factor * data.limit.value, text: data.limit.text };
  plot(el, {
    height: Math.min(440, Math.max(300, el.clientWidth * 0.5)),
    marginLeft: 62, marginRight: 30, marginTop: 28, marginBottom: 44, inset: 16,
    x: { label: data.x.label, labelArrow: "none", zero: points.length < 2 },
    y: { label: data.y.label + (data.y.percent ? " (%)" : ""), labelArrow: "none", grid: true, ...(log ? logarithmic(points.flatMap((point) => [point.value, ...(limit ? [limit.value] : [])])) : {}) },
    marks: [
      limit && (!log || limit.value > 0) ? Plot.ruleY([limit.value], { stroke: "var(--fail)", strokeDasharray: "5 4" }) : null,
      limit && (!log || limit.value > 0) ? Plot.text([limit.text], { frameAnchor: "right", y: limit.value, textAnchor: "end", dy: data.y.better === "lower" ? -8 : 9, fill: "var(--fail)" }) : null,
      Plot.line(frontier, { x: "bits", y: "value", stroke: "var(--muted)", strokeDasharray: "1 4", strokeLinecap: "round" }),
      Plot.ruleX(points.filter((point) => point.high > point.low && (!log || point.low > 0)), { x: "bits", y1: "low", y2: "high", stroke: "color", strokeWidth: 1.6 }),
      Plot.dot(points, { x: "bits", y: "value", fill: "color", fillOpacity: (point) => (point.faint ? 0.45 : 1), symbol: "symbol", r: 6 }),
      Plot.text(points, { x: "bits", y: "value", text: (point) => `${point.short}${point.mark ?? ""}`, dy: -15, fill: "var(--text)", fontWeight: (point) => (point.frontier ? 600 : 400) }),
      Plot.tip(points, Plot.pointer({ x: "bits", y: "value", title: "title", maxRadius: 40 })),
    ],
  });
  el.shown = { points: data.models.map(({ name, bits, value }) => ({ name, bits, value })), log: Boolean(log) };
}

export default { render };
