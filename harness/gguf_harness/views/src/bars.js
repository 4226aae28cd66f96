/**
 * Stacked bars: what each model or thing consists of.
 *
 * data: { x: { label }, names: [string], parts: [{ name, values: [number], notes: [string] }] }
 */
import { Plot, plot, roomForNames, swatches } from "./kit.js";

const COLORS = [0, 4, 2, 6, 1, 5, 3, 7].map((index) => `var(--series-${index})`);

function render({ model, el }) {
  const data = model.get("data");
  const parts = data.parts.map((part, index) => ({ ...part, color: COLORS[index % COLORS.length] }));
  const cells = parts.flatMap((part) =>
    part.values.map((value, at) => ({ name: data.names[at], value, color: part.color, title: `${data.names[at]}\n${part.name}: ${part.notes[at]}` })),
  ).filter((cell) => cell.value > 0);
  el.append(swatches(parts));
  const { left, fit } = roomForNames(el, data.names);
  plot(el, {
    height: 64 + 26 * data.names.length,
    marginLeft: left,
    marginBottom: 42,
    x: { label: data.x.label, labelArrow: "none", grid: true },
    y: { label: null, domain: data.names, tickFormat: fit, tickSize: 0 },
    marks: [
      Plot.barX(cells, { x: "value", y: "name", fill: "color", insetLeft: 0.5, insetRight: 0.5, insetTop: 3, insetBottom: 3, title: "title", tip: true }),
      Plot.ruleX([0]),
    ],
  });
  el.shown = { parts: data.parts };
}

export default { render };
