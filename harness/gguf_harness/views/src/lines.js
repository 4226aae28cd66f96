/**
 * Lines over layers, heads removed, percentiles: one for each model or part.
 *
 * data: {
 *   x: { label, ticks?: [[value, text]] },
 *   y: { label, log?: true, zero?: true, middle?: number, percent?: true },
 *   models: [{ name, short, role, series }],
 *   lines: [{ model?: index, name, group?: string, color?: css, points: [[x, value, se, detail]] }]: groups are drawn
 *     side by side, or one below the other where it is narrow, with the same axes,
 *   limit?: { value, text }
 * }
 */
import { Plot, estimate, look, modelLegend, plot, spanning, swatches } from "./kit.js";

/** A line of more points is drawn without marks. */
const MOST_DOTS = 48;
/** From this width on groups are side by side. */
const ROOM_FOR_TWO = 700;
const DASHES = [null, "6 4", "2 3"];
const PARTS = ["var(--series-0)", "var(--series-5)", "var(--series-2)", "var(--series-6)", "var(--series-4)", "var(--series-1)", "var(--series-3)", "var(--series-7)"];

function render({ model, el }) {
  const data = model.get("data");
  const factor = data.y.percent ? 100 : 1;
  const lines = data.lines.map((line, index) => ({
    ...line,
    ...(line.model === undefined ? { color: line.color ?? PARTS[index % PARTS.length], symbol: ["circle", "diamond", "square"][turn(index)], dash: DASHES[turn(index)] } : look(data.models[line.model])),
  }));
  const at = (x) => data.x.ticks?.find(([each]) => each === x)?.[1] ?? x;
  const points = lines.flatMap((line) =>
    line.points.map(([x, value, se, detail]) => ({
      x, y: factor * value, group: line.group, low: factor * (value - (se ?? 0)), high: factor * (value + (se ?? 0)), line: line.name, color: line.color, symbol: line.symbol, single: line.points.length <= MOST_DOTS, dash: line.dash ?? null,
      title: [line.name, line.group, `${data.x.label} ${at(x)}: ${estimate(factor * value, se === null ? null : factor * se)}${data.y.percent ? " %" : ""}`, detail].filter(Boolean).join("\n"),
    })),
  );
  if (lines.every((line) => line.model !== undefined)) el.append(modelLegend([...new Set(lines.map((line) => line.model))].map((index) => data.models[index])));
  else el.append(swatches(lines));
  const log = data.y.log && points.every((point) => point.y > 0);
  const groups = [...new Set(lines.map((line) => line.group).filter((group) => group !== undefined))];
  const side = groups.length < 2 ? null : el.clientWidth < ROOM_FOR_TWO ? "fy" : "fx";
  const faceted = side ? { [side]: "group" } : {};
  const whole = points.every((point) => Number.isInteger(point.x));
  plot(el, {
    height: side === "fy" ? 60 + 220 * groups.length : Math.min(380, Math.max(260, el.clientWidth * 0.5)),
    marginLeft: 62,
    ...(side ? { [side]: { axis: null, domain: groups, padding: side === "fx" ? 0.06 : 0.14 } } : {}),
    ...(side ? { marginTop: 34 } : {}),
    marginBottom: 42,
    x: { label: data.x.label, labelArrow: "none", ...(whole ? { tickFormat: "d", ticks: ticks(points) } : {}), ...(data.x.ticks ? { ticks: data.x.ticks.map(([at]) => at), tickFormat: at } : {}) },
    y: { label: data.y.label + (data.y.percent ? " (%)" : ""), labelArrow: "none", grid: true, zero: data.y.zero && !log, inset: log ? 6 : 0, ...(log ? spanning(points.flatMap((point) => [point.y, point.low, point.high]).filter((end) => end > 0)) : {}) },
    marks: [
      side ? Plot.text(groups, { [side]: (group) => group, text: (group) => group, frameAnchor: "top", dy: -16, fontWeight: 600 }) : null,
      data.y.middle === undefined ? null : Plot.ruleY([data.y.middle], { stroke: "var(--muted)" }),
      data.limit ? Plot.ruleY([factor * data.limit.value], { stroke: "var(--muted)", strokeDasharray: "2 4" }) : null,
      data.limit ? Plot.text([data.limit.text], { x: () => Math.max(...points.map((point) => point.x)), y: factor * data.limit.value, textAnchor: "end", dy: -6, fill: "var(--muted)" }) : null,
      Plot.ruleX(points.filter((point) => point.high > point.low && (!log || point.low > 0)), { ...faceted, x: "x", y1: "low", y2: "high", stroke: "color", strokeOpacity: 0.6 }),
      ...DASHES.map((dash) => Plot.line(points.filter((point) => point.dash === dash), { ...faceted, x: "x", y: "y", z: "line", stroke: "color", strokeWidth: 1.6, strokeDasharray: dash })),
      Plot.dot(points.filter((point) => point.single), { ...faceted, x: "x", y: "y", fill: "color", symbol: "symbol", r: 3.4 }),
      Plot.tip(points, Plot.pointer({ ...faceted, x: "x", y: "y", title: "title", maxRadius: 30 })),
    ],
  });
  el.shown = { lines: lines.map((line) => ({ name: line.name, group: line.group, color: line.color, symbol: line.symbol, points: line.points })), log: Boolean(log) };
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
