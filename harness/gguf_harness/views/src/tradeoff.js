/**
 * Quality against size: candidates with their intervals, what no other file beats, and the limit.
 *
 * data: {
 *   x: { label }, y: { label, log?: true, percent?: true, better: "lower" | "higher" },
 *   models: [{ name, short, role, series, verdict, bits, value, low, high, frontier: bool, lines: [string] }],
 *   limit?: { value, text }
 * }
 */
import { Plot, look, plot, spanning } from "./kit.js";

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
  const options = {
    height: Math.min(440, Math.max(300, el.clientWidth * 0.5)),
    marginLeft: 62, marginRight: 30, marginTop: 28, marginBottom: 44, inset: 16,
    x: { label: data.x.label, labelArrow: "none", zero: points.length < 2 },
    y: { label: data.y.label + (data.y.percent ? " (%)" : ""), labelArrow: "none", grid: true, ...(log ? spanning(points.flatMap((point) => [point.value, ...(limit ? [limit.value] : [])])) : {}) },
  };
  const labelled = place(points, options, el);
  plot(el, {
    ...options,
    marks: [
      limit && (!log || limit.value > 0) ? Plot.ruleY([limit.value], { stroke: "var(--fail)", strokeDasharray: "5 4" }) : null,
      limit && (!log || limit.value > 0) ? Plot.text([limit.text], { frameAnchor: "right", y: limit.value, textAnchor: "end", dy: data.y.better === "lower" ? -8 : 9, fill: "var(--fail)" }) : null,
      Plot.line(frontier, { x: "bits", y: "value", stroke: "var(--muted)", strokeDasharray: "1 4", strokeLinecap: "round" }),
      Plot.ruleX(points.filter((point) => point.high > point.low && (!log || point.low > 0)), { x: "bits", y1: "low", y2: "high", stroke: "color", strokeWidth: 1.6 }),
      Plot.dot(points, { x: "bits", y: "value", fill: "color", fillOpacity: (point) => (point.faint ? 0.45 : 1), symbol: "symbol", r: 6 }),
      ...labelled.map(({ point, dx, dy, anchor }) =>
        Plot.text([point], { x: "bits", y: "value", text: [point.short], dx, dy, textAnchor: anchor, fill: "var(--text)", stroke: "var(--page)", strokeWidth: 3 })),
      Plot.tip(points, Plot.pointer({ x: "bits", y: "value", title: "title", maxRadius: 40 })),
    ],
  });
  el.shown = { points: data.models.map(({ name, bits, value }) => ({ name, bits, value })), log: Boolean(log) };
}

const LETTER = 7;
const SIDES = [
  { dx: 0, dy: -15, anchor: "middle" },
  { dx: 11, dy: 0, anchor: "start" },
  { dx: 0, dy: 16, anchor: "middle" },
  { dx: -11, dy: 0, anchor: "end" },
];

/** A side for each name on which it covers no other name and no mark, where there is one. */
function place(points, options, el) {
  const marks = [Plot.dot(points, { x: "bits", y: "value" })];
  const wide = Math.max(260, el.clientWidth);
  const trial = Plot.plot({ ...options, width: wide, marks });
  const [x, y] = [trial.scale("x"), trial.scale("y")];
  const at = points.map((point) => [x.apply(point.bits), y.apply(point.value)]);
  const taken = at.map(([left, top]) => [left - 7, top - 7, left + 7, top + 7]);
  return points.map((point, index) => {
    const width = LETTER * point.short.length;
    const boxes = SIDES.map(({ dx, dy, anchor }) => {
      const left = at[index][0] + dx - (anchor === "middle" ? width / 2 : anchor === "end" ? width : 0);
      return [left, at[index][1] + dy - 7, left + width, at[index][1] + dy + 7];
    });
    const inside = (box) => box[0] >= 0 && box[2] <= wide && box[1] >= 0;
    const free = boxes.findIndex((box) => inside(box) && taken.every((other, of) => of === index || box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]));
    const side = free >= 0 ? free : Math.max(0, boxes.findIndex(inside));
    taken.push(boxes[side]);
    return { point, ...SIDES[side] };
  });
}

export default { render };
