/**
 * Cells of rows and columns as colours, on a scale that all models of a comparison share.
 *
 * data: {
 *   x: { label, names: [string] }, y: { label, names: [string] },
 *   values: [[number | null]], rows first, the first row at the top,
 *   notes?: [[string]]: said of a cell besides its value, cells?: [[string]]: written in it,
 *   scale: { kind: "share" | "signed", domain: [low, high], middle?: number, title },
 *   square?: true: tiles as high as wide
 * }
 */
import { Plot, colors, ink, legend, number, plot } from "./kit.js";

const MOST_NAMES = 40;

function render({ model, el }) {
  const data = model.get("data");
  const { kind, domain, middle, title } = data.scale;
  const scale = colors(el, kind, domain, middle);
  const cells = data.values.flatMap((row, y) =>
    row.map((value, x) => ({
      x, y, value, color: scale(value), text: data.cells?.[y][x] ?? "",
      title: [`${data.y.label} ${data.y.names[y]}, ${data.x.label} ${data.x.names[x]}`, `${title}: ${number(value)}`, data.notes?.[y][x]].filter(Boolean).join("\n"),
    })),
  ).filter((cell) => cell.value !== null);
  const [columns, rows] = [data.x.names.length, data.y.names.length];
  const left = Math.min(0.42 * el.clientWidth, 34 + 6.6 * Math.max(...data.y.names.map((name) => name.length)));
  const room = Math.max(120, el.clientWidth - left - 20);
  const wide = data.square ? Math.min(30, room / columns) : Math.min(data.cells ? 84 : 64, room / columns);
  const high = data.square ? wide : data.cells ? 22 : Math.min(22, Math.max(10, 900 / rows));
  const upright = Math.max(...data.x.names.map((name) => name.length)) * 6.5 > wide - 2;
  const top = upright ? Math.min(150, 26 + 5.2 * Math.max(...data.x.names.map((name) => name.length))) : 34;
  el.append(legend(scale, title));
  plot(el, {
    width: left + columns * wide + 20,
    height: top + rows * high + 12,
    marginLeft: left, marginTop: top, marginRight: 20, marginBottom: 12,
    padding: 0,
    x: { axis: "top", label: data.x.label, labelArrow: "none", domain: data.x.names.map((_, at) => at), ticks: some(columns, data.x.names, wide), tickFormat: (at) => data.x.names[at], tickRotate: upright ? -60 : 0, tickSize: 0 },
    y: { label: data.y.label, labelArrow: "none", domain: data.y.names.map((_, at) => at), ticks: some(rows, data.y.names, high), tickFormat: (at) => data.y.names[at], tickSize: 0 },
    marks: [
      Plot.cell(cells, { x: "x", y: "y", fill: "color", inset: Math.min(wide, high) > 8 ? 0.75 : 0.25, rx: 1 }),
      data.cells && wide > 30 ? Plot.text(cells, { x: "x", y: "y", text: (cell) => cut(cell.text, wide), fill: (cell) => ink(cell.color), fontSize: 10.5 }) : null,
      Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 40 })),
    ],
  });
  el.shown = { values: data.values, domain: scale.domain, kind };
}

/** As many names as there is room for. */
function some(count, names, size) {
  const step = Math.max(1, Math.ceil(Math.max(12 / size, count / MOST_NAMES / 2)));
  return names.map((_, at) => at).filter((at) => at % step === 0);
}

function cut(text, wide) {
  const room = Math.floor(wide / 6.4);
  return text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`;
}

export default { render };
