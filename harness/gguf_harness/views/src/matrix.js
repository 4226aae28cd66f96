/**
 * Cells of rows and columns as colours, on a scale that all models of a comparison share.
 *
 * data: {
 *   x: { label, names: [string] }, y: { label, names: [string] },
 *   values: [[number | null]], rows first, the first row at the top,
 *   notes?: [[string]]: said of a cell besides its value, cells?: [[string]]: written in it where there is room,
 *   least?: number: tiles are at least so wide, for text that must be read; what is wider than the page scrolls,
 *   marked?: [[boolean]]: cells with an outline, of which `marked_means` tells what it says,
 *   scale: as `scales.js` describes it,
 *   scales?: [{ ...scale, columns: [index] }]: columns that have a scale of their own,
 *   square?: true: tiles as high as wide, scroll?: true: many rows scroll in a box, below names that stay
 * }
 */
import { Plot, h, ink, plot, withRoom } from "./kit.js";
import { scaleOf } from "./scales.js";

const MOST_NAMES = 40;
const MARK = "var(--series-5)";
const ROWS_OF_A_BOX = 45;

function render({ model, el }) {
  const data = model.get("data");
  const main = { title: data.scale.title, ...scaleOf(el, data.scale) };
  const others = (data.scales ?? []).map((each) => ({ ...each, ...scaleOf(el, each) }));
  const scale = (x) => others.find(({ columns }) => columns.includes(x)) ?? main;
  const cells = data.values.flatMap((row, y) =>
    row.map((value, x) => ({
      x, y, value, color: scale(x).color(value), marked: Boolean(data.marked?.[y][x]), text: data.cells?.[y][x] ?? "",
      title: [`${data.y.label} ${data.y.names[y]}, ${data.x.label} ${data.x.names[x]}`, `${scale(x).title}: ${scale(x).tell(value)}`, data.notes?.[y][x]].filter(Boolean).join("\n"),
    })),
  ).filter((cell) => cell.value !== null);
  const { left, right, top, wide, high, boxed, upright } = sizes(data, el);
  const [columns, rows] = [data.x.names.length, data.y.names.length];
  el.append(main.bar, ...others.map(({ bar }) => bar));
  if (data.marked_means) el.append(h("p", { class: "legend" }, h("span", { class: "swatch", style: `background: none; outline: 2px solid ${MARK}; outline-offset: -2px` }), data.marked_means));
  const x = { type: "band", axis: "top", label: data.x.label, labelArrow: "none", domain: data.x.names.map((_, at) => at), ticks: some(columns, data.x.names, wide), tickFormat: (at) => data.x.names[at], tickRotate: upright ? -60 : 0, tickSize: 0 };
  const size = { ...withRoom(el, left + columns * wide + right, right), marginLeft: left, padding: 0 };
  const host = boxed ? boxOf(el, size, x, top) : el;
  const every = data.y.names.map((_, at) => at);
  // Pictures in a box are several, one below the other: a browser prints each on one page.
  for (let from = 0; from < rows; from += boxed ? ROWS_OF_A_BOX : rows) {
    const [own, last] = boxed ? [every.slice(from, from + ROWS_OF_A_BOX), from + ROWS_OF_A_BOX >= rows] : [every, true];
    const [marginTop, marginBottom] = [boxed ? (from ? 0 : 4) : top, last ? 12 : 0];
    drawRows(host, data, cells.filter((cell) => cell.y >= own[0] && cell.y <= own.at(-1)), wide, high, {
      ...size, marginTop, marginBottom, height: marginTop + own.length * high + marginBottom,
      color: { type: "identity" },
      x: boxed ? { ...x, axis: null } : x,
      y: { label: from ? null : data.y.label, labelArrow: "none", domain: own, ticks: boxed ? own : some(rows, data.y.names, high), tickFormat: (at) => data.y.names[at], tickSize: 0 },
    });
  }
  el.shown = {
    values: data.values, cells: data.cells, marked: data.marked, domain: main.domain, kind: data.scale.kind,
    colors: data.values.map((row) => row.map((value, at) => scale(at).color(value))),
  };
}

function drawRows(el, data, cells, wide, high, options) {
  plot(el, {
    ...options,
    marks: [
      Plot.cell(cells, { x: "x", y: "y", fill: "color", inset: Math.min(wide, high) > 8 ? 0.75 : 0.25, rx: 1 }),
      Plot.cell(cells.filter((cell) => cell.marked), { x: "x", y: "y", fill: "none", stroke: MARK, strokeWidth: 2, inset: 1.5, rx: 1 }),
      data.cells && wide > 30 ? Plot.text(cells.filter((cell) => data.least || cell.text.length * 6.2 < wide), { x: "x", y: "y", text: (cell) => cut(cell.text, wide), fill: (cell) => ink(cell.color), fontSize: 10.5 }) : null,
      Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 40 })),
    ],
  });
}

/** Sizes in pixels of tiles and margins; whether the rows scroll in a box, and whether names of columns stand upright. */
function sizes(data, el) {
  const [columns, rows] = [data.x.names.length, data.y.names.length];
  const longest = (names) => Math.max(...names.map((name) => name.length));
  const left = Math.min(0.42 * el.clientWidth, 34 + 6.6 * longest(data.y.names));
  const widest = (right) => {
    const room = Math.max(120, el.clientWidth - left - right);
    return data.square
      ? Math.min(30, room / columns, Math.max(16, 660 / rows))
      : Math.max(data.least ?? 0, Math.min(data.cells ? 84 : 64, room / columns));
  };
  const upright = longest(data.x.names) * 6.5 > widest(20) - 2;
  // Names that stand upright lean to the right: the last one ends beyond its column.
  const right = upright ? Math.max(20, 3.4 * data.x.names.at(-1).length) : 20;
  const wide = widest(right);
  const boxed = Boolean(data.scroll) && rows > ROWS_OF_A_BOX;
  const high = boxed ? 16 : data.square ? wide : data.cells ? 22 : Math.min(22, Math.max(10, 900 / rows));
  const top = upright ? Math.min(160, 36 + 5.7 * longest(data.x.names)) : 34;
  return { left, right, top, wide, high, boxed, upright };
}

/** A box that scrolls, with the names of the columns at its top. */
function boxOf(el, size, x, top) {
  const heads = h("div", { class: "stay" });
  const box = h("div", { class: "rows-box", tabindex: 0, role: "region", "aria-label": "All rows; scrolls" }, heads);
  el.append(box);
  plot(heads, { ...size, height: top, marginTop: top - 2, marginBottom: 0, x, y: { axis: null, domain: [0] }, marks: [] });
  return box;
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
