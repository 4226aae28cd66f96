/**
 * Cells of rows and columns as colours, on a scale that all models of a comparison share.
 *
 * data: {
 *   x: { label, names: [string] }, y: { label, names: [string] },
 *   values: [[number | null]], rows first, the first row at the top,
 *   notes?: [[string]]: said of a cell besides its value, cells?: [[string]]: written in it where there is room,
 *   least?: number: tiles are at least so wide, for text that must be read; what is wider than the page scrolls,
 *   marked?: [[boolean]]: cells with an outline, of which `marked_means` tells what it says,
 *   scale: { kind: "share" | "signed", domain: [low, high], middle?: number, title, percent?: true,
 *     log?: true: colours by the logarithm, where low > 0 },
 *   square?: true: tiles as high as wide
 * }
 */
import { Plot, colors, h, ink, legend, number, plot } from "./kit.js";

const MOST_NAMES = 40;
const MARK = "var(--series-5)";

function render({ model, el }) {
  const data = model.get("data");
  const { kind, domain, title } = data.scale;
  const { scale, bar, said } = scaled(el, data.scale);
  const cells = data.values.flatMap((row, y) =>
    row.map((value, x) => ({
      x, y, value, color: scale(value), marked: Boolean(data.marked?.[y][x]), text: data.cells?.[y][x] ?? "",
      title: [`${data.y.label} ${data.y.names[y]}, ${data.x.label} ${data.x.names[x]}`, `${title}: ${said(value)}`, data.notes?.[y][x]].filter(Boolean).join("\n"),
    })),
  ).filter((cell) => cell.value !== null);
  const [columns, rows] = [data.x.names.length, data.y.names.length];
  const left = Math.min(0.42 * el.clientWidth, 34 + 6.6 * Math.max(...data.y.names.map((name) => name.length)));
  const room = Math.max(120, el.clientWidth - left - 20);
  const wide = data.square ? Math.min(30, room / columns) : Math.max(data.least ?? 0, Math.min(data.cells ? 84 : 64, room / columns));
  const high = data.square ? wide : data.cells ? 22 : Math.min(22, Math.max(10, 900 / rows));
  const upright = Math.max(...data.x.names.map((name) => name.length)) * 6.5 > wide - 2;
  const top = upright ? Math.min(160, 36 + 5.7 * Math.max(...data.x.names.map((name) => name.length))) : 34;
  el.append(legend(bar, title, (at) => said(data.scale.log ? 10 ** at : at)));
  if (data.marked_means) el.append(h("p", { class: "legend" }, h("span", { class: "swatch", style: `outline: 2px solid ${MARK}; outline-offset: -2px` }), data.marked_means));
  plot(el, {
    width: left + columns * wide + 20,
    height: top + rows * high + 12,
    marginLeft: left, marginTop: top, marginRight: 20, marginBottom: 12,
    padding: 0,
    color: { type: "identity" },
    x: { axis: "top", label: data.x.label, labelArrow: "none", domain: data.x.names.map((_, at) => at), ticks: some(columns, data.x.names, wide), tickFormat: (at) => data.x.names[at], tickRotate: upright ? -60 : 0, tickSize: 0 },
    y: { label: data.y.label, labelArrow: "none", domain: data.y.names.map((_, at) => at), ticks: some(rows, data.y.names, high), tickFormat: (at) => data.y.names[at], tickSize: 0 },
    marks: [
      Plot.cell(cells, { x: "x", y: "y", fill: "color", inset: Math.min(wide, high) > 8 ? 0.75 : 0.25, rx: 1 }),
      Plot.cell(cells.filter((cell) => cell.marked), { x: "x", y: "y", fill: "none", stroke: MARK, strokeWidth: 2, inset: 1.5, rx: 1 }),
      data.cells && wide > 30 ? Plot.text(cells.filter((cell) => data.least || cell.text.length * 6.2 < wide), { x: "x", y: "y", text: (cell) => cut(cell.text, wide), fill: (cell) => ink(cell.color), fontSize: 10.5 }) : null,
      Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 40 })),
    ],
  });
  el.shown = { values: data.values, cells: data.cells, marked: data.marked, domain: data.scale.log ? domain : bar.domain, kind };
}

/** Values to colours, the scale that the legend draws, and values as text. */
function scaled(el, { kind, domain, middle, percent, log }) {
  const said = (value) => (percent ? `${number(100 * value)} %` : number(value));
  if (!log) {
    const bar = colors(el, kind, domain, middle);
    return { scale: bar, bar, said };
  }
  const bar = colors(el, kind, domain.map(Math.log10), middle);
  return { scale: (value) => (value > 0 ? bar(Math.log10(value)) : bar(bar.domain[0])), bar, said };
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
