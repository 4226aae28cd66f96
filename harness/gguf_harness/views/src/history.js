/**
 * A metric over runs in order of time: a line for each file, broken where a run did not measure it or measured it under
 * other conditions; what happened is marked by a shape and a word, and a point leads to the report of its run.
 *
 * data: {
 *   runs: [{ label, day, href? }],
 *   y: { label, log?: true, percent?: true },
 *   models: [{ name, short, role, series }],
 *   lines: [{ model: index, points: [[run, value, se, detail, mark]] }]: one for each unbroken stretch,
 *   limits: [{ from, to, value, text }]: of gates, from one run to another
 * }
 */
import { Plot, estimate, look, modelLegend, plot, spanning } from "./kit.js";

/** Shape, colour and word of what happened at a point. */
const MARKS = {
  worse: { symbol: "triangle", color: "var(--fail)", word: "worse" },
  drifted: { symbol: "triangle", color: "var(--fail)", word: "worse than at first" },
  better: { symbol: "circle", color: "var(--pass)", word: "better" },
  "another number": { symbol: "square", color: "var(--warn)", word: "same file" },
};
/** Room for the label of a run. */
const LABEL = 78;
/** Points of several files at one run stand a little beside each other. */
const APART = 5;
const LETTER = 6.6;

function render({ model, el }) {
  const data = model.get("data");
  const factor = data.y.percent ? 100 : 1;
  const points = data.lines.flatMap((line, index) =>
    line.points.map(([run, value, se, detail, mark]) => {
      const file = data.models[line.model];
      const { label, day, href } = data.runs[run];
      const told = [[file.name, label].join(" at "), `${data.y.label}: ${estimate(factor * value, se === null ? null : factor * se)}${data.y.percent ? " %" : ""}`, day, detail].filter(Boolean);
      return { run, of: line.model, line: index, y: factor * value, low: factor * (value - (se ?? 0)), high: factor * (value + (se ?? 0)), ...look(file), mark: MARKS[mark], href, title: told.join("\n"), said: told.join(", ") };
    }),
  );
  const last = data.runs.length - 1;
  const limits = data.limits.map((limit) => ({ ...limit, value: factor * limit.value, start: limit.from - 0.4, end: limit.to + 0.4 }));
  const log = data.y.log && points.every((point) => point.y > 0) && limits.every((limit) => limit.value > 0);
  const shown = [...new Set(data.lines.map((line) => line.model))];
  el.append(modelLegend(shown.map((index) => data.models[index])));
  const layers = shown.map((of, place) => [points.filter((point) => point.of === of), APART * (place - (shown.length - 1) / 2)]);
  const width = Math.max(260, el.clientWidth || 640);
  const ends = points.flatMap((point) => [point.y, point.low, point.high]).concat(limits.map((limit) => limit.value));
  const drawn = plot(el, {
    height: Math.min(400, Math.max(280, width * 0.5)),
    marginLeft: 66, marginRight: 26, marginTop: 26, marginBottom: 56,
    x: { label: null, domain: [-0.5, last + 0.5], ticks: ticks(last, width), tickFormat: (at) => [data.runs[at].label, data.runs[at].day].filter(Boolean).join("\n") },
    y: { label: data.y.label + (data.y.percent ? " (%)" : ""), labelArrow: "none", grid: true, nice: !log, inset: 10, ...(log ? spanning(ends.filter((end) => end > 0)) : {}) },
    marks: [
      Plot.ruleY(limits, { x1: "start", x2: "end", y: "value", stroke: "var(--fail)", strokeDasharray: "5 4" }),
      Plot.text(limits.slice(-1), { x: () => last + 0.45, y: "value", text: "text", textAnchor: "end", dy: -8, fill: "var(--fail)", stroke: "var(--page)", strokeWidth: 3 }),
      ...layers.flatMap(([some, dx]) => [
        Plot.ruleX(some.filter((point) => point.high > point.low && (!log || point.low > 0)), { x: "run", y1: "low", y2: "high", dx, stroke: "color", strokeWidth: 1.5, strokeOpacity: 0.7 }),
        Plot.line(some, { x: "run", y: "y", z: "line", dx, stroke: "color", strokeWidth: 1.6 }),
        Plot.dot(some.filter((point) => !point.href), { x: "run", y: "y", dx, fill: "color", symbol: "symbol", r: 4.2 }),
        Plot.dot(some.filter((point) => point.href), { x: "run", y: "y", dx, fill: "color", symbol: "symbol", r: 4.2, href: "href", ariaLabel: (point) => `Report: ${point.said}` }),
        Plot.dot(some.filter((point) => point.mark), { x: "run", y: "y", dx, stroke: (point) => point.mark.color, strokeWidth: 2, symbol: (point) => point.mark.symbol, r: 9 }),
      ]),
      ...layers.flatMap(([some, dx]) => some.filter((point) => point.mark).map((point) => Plot.text([point], {
        x: "run", y: "y", dy: -17, text: [point.mark.word], fill: point.mark.color, fontWeight: 600, stroke: "var(--page)", strokeWidth: 3, ...side(point, last, width, dx),
      }))),
      Plot.tip(points, Plot.pointer({ x: "run", y: "y", title: "title", maxRadius: 30 })),
    ],
  });
  // The name of a link stands on it, and not on what it leads from.
  for (const link of drawn.querySelectorAll("a")) {
    const named = link.querySelector("[aria-label]");
    link.setAttribute("aria-label", named?.getAttribute("aria-label") ?? "Report");
    named?.removeAttribute("aria-label");
  }
  el.shown = {
    lines: data.lines.map((line) => ({ name: data.models[line.model].name, color: look(data.models[line.model]).color, runs: line.points.map(([run]) => run) })),
    marks: points.filter((point) => point.mark).map((point) => ({ name: data.models[point.of].name, run: point.run, word: point.mark.word })),
    limits: data.limits, log: Boolean(log),
  };
}

/** A word that would leave the picture stands on the inner side of its point. */
function side(point, last, width, dx) {
  const [left, right] = [66 + ((point.run + 0.5) / (last + 1)) * (width - 92), 26 + ((last - point.run + 0.5) / (last + 1)) * (width - 92)];
  const half = (LETTER * point.mark.word.length) / 2;
  if (right < half) return { textAnchor: "end", dx: dx + 8 };
  return left < half ? { textAnchor: "start", dx: dx - 8 } : { textAnchor: "middle", dx };
}

/** Runs whose labels have room, the last one always among them. */
function ticks(last, width) {
  const step = Math.max(1, Math.ceil((last + 1) / Math.max(1, Math.floor((width - 92) / LABEL))));
  return Array.from({ length: Math.floor(last / step) + 1 }, (_, index) => last - index * step).reverse();
}

export default { render };
