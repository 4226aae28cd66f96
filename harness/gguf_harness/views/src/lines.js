/**
 * Lines over layers, heads removed, percentiles: one for each model or part.
 *
 * data: {
 *   x: { label, ticks?: [[value, text]] },
 *   y: { label, log?: true, zero?: true, middle?: number, percent?: true },
 *   models: [{ name, short, role, series }],
 *   lines: [{ model?: index, name, color?: css, points: [[x, value, se, detail]] }],
 *   limit?: { value, text }
 * }
 */
import { Plot, estimate, h, look, modelLegend, plot } from "./kit.js";

const DASHES = [null, "6 4", "2 3"];
const PARTS = ["var(--series-0)", "var(--series-5)", "var(--series-2)", "var(--series-6)", "var(--series-4)", "var(--series-1)", "var(--series-3)", "var(--series-7)"];

function render({ model, el }) {
  const data = model.get("data");
  const factor = data.y.percent ? 100 : 1;
  const lines = data.lines.map((line, index) => ({
    ...line,
    ...(line.model === undefined ? { color: line.color ?? PARTS[index % PARTS.length], symbol: ["circle", "diamond", "square"][turn(index)], dash: DASHES[turn(index)] } : look(data.models[line.model])),
  }));
  const points = lines.flatMap((line) =>
    line.points.map(([x, value, se, detail]) => ({
      x, y: factor * value, low: factor * (value - (se ?? 0)), high: factor * (value + (se ?? 0)), line: line.name, color: line.color, symbol: line.symbol, dash: line.dash ?? null,
      title: [line.name, `${data.x.label} ${x}: ${estimate(factor * value, se === null ? null : factor * se)}${data.y.percent ? " %" : ""}`, detail].filter(Boolean).join("\n"),
    })),
  );
  if (lines.every((line) => line.model !== undefined)) el.append(modelLegend(lines.map((line) => data.models[line.model])));
  else el.append(h("ul", { class: "models" }, lines.map((line) => h("li", {}, h("span", { class: line.dash ? "swatch dashed" : "swatch", style: `color: ${line.color}` }), line.name))));
  const log = data.y.log && points.every((point) => point.y > 0);
  const whole = points.every((point) => Number.isInteger(point.x));
  plot(el, {
    height: Math.min(380, Math.max(260, el.clientWidth * 0.5)),
    marginLeft: 62,
    marginBottom: 42,
    x: { label: data.x.label, labelArrow: "none", ...(whole ? { tickFormat: "d", ticks: ticks(points) } : {}), ...(data.x.ticks ? { ticks: data.x.ticks.map(([at]) => at), tickFormat: (at) => data.x.ticks.find(([each]) => each === at)[1] } : {}) },
    y: { label: data.y.label + (data.y.percent ? " (%)" : ""), labelArrow: "none", type: log ? "log" : "linear", grid: true, zero: data.y.zero && !log, ...(log ? { ticks: 5, tickFormat: "~g" } : {}) },
    marks: [
      data.y.middle === undefined ? null : Plot.ruleY([data.y.middle], { stroke: "var(--muted)" }),
      data.limit ? Plot.ruleY([factor * data.limit.value], { stroke: "var(--muted)", strokeDasharray: "2 4" }) : null,
      data.limit ? Plot.text([data.limit.text], { x: () => Math.max(...points.map((point) => point.x)), y: factor * data.limit.value, textAnchor: "end", dy: -6, fill: "var(--muted)" }) : null,
      Plot.ruleX(points.filter((point) => point.high > point.low && (!log || point.low > 0)), { x: "x", y1: "low", y2: "high", stroke: "color", strokeOpacity: 0.6 }),
      ...DASHES.map((dash) => Plot.line(points.filter((point) => point.dash === dash), { x: "x", y: "y", z: "line", stroke: "color", strokeWidth: 1.6, strokeDasharray: dash })),
      Plot.dot(points, { x: "x", y: "y", fill: "color", symbol: "symbol", r: points.length > 200 ? 2 : 3.4 }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 30 })),
    ],
  });
  el.shown = { lines: lines.map((line) => ({ name: line.name, points: line.points })), log: Boolean(log) };
}

/** Lines beyond the colours take them again, dashed and with other marks. */
const turn = (index) => Math.min(DASHES.length - 1, Math.floor(index / PARTS.length));

/** At most 16 whole numbers, evenly apart. */
function ticks(points) {
  const [low, high] = [Math.min(...points.map((point) => point.x)), Math.max(...points.map((point) => point.x))];
  const step = Math.max(1, Math.ceil((high - low) / 16));
  return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, index) => low + index * step);
}

export default { render };
