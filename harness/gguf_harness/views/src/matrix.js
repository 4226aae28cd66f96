/**
 * Cells of rows and columns as colours, on a scale that all models of a comparison share.
 *
 * data: {
 *   x: { label, names: [string] }, y: { label, names: [string] },
 *   values: [[number | null]], rows first, the first row at the top,
 *   notes?: [[string]]: said of a cell besides its value, cells?: [[string]]: written in it,
 *   scale: { kind: "share" | "signed", domain: [low, high], middle?: number, title, root?: true: colours by the square
 *            root, for values of which a few are much larger }
 *       or { kind: "names", names: [string], title, rest?: true }: values are places in the names; the last one is
 *            what is left, and grey, if there is a rest,
 *   scales?: [{ ...scale, columns: [index] }]: columns that have a scale of their own,
 *   square?: true: tiles as high as wide, scroll?: true: many rows scroll in a box, below names that stay
 * }
 */
import { Plot, colors, h, ink, legend, number, plot, themed } from "./kit.js";

const MOST_NAMES = 40;
const ROWS_OF_A_BOX = 45;
const NAMED = ["--series-1", "--series-5", "--series-2", "--series-4", "--series-6", "--series-3", "--series-7", "--series-0"];

/** A scale as the data describes it: colours of values, their legend, and how a value is told. */
function scaleOf(el, { kind, domain, middle, title, root, names, rest }) {
  if (kind === "names") {
    const shades = names.map((_, at) => themed(el, rest && at === names.length - 1 ? "--line" : NAMED[at % NAMED.length]));
    const bar = h("ul", { class: "models" }, names.map((name, at) => h("li", {}, h("span", { class: "swatch", style: `background: ${shades[at]}` }), name)));
    return { color: (value) => (value === null ? null : shades[value]), bar, tell: (value) => names[value], domain: [0, names.length - 1] };
  }
  const bend = (value) => (root ? Math.sign(value) * Math.sqrt(Math.abs(value)) : value);
  const scale = colors(el, kind, domain.map(bend), middle === undefined ? undefined : bend(middle));
  const straight = (value) => number(root ? value * Math.abs(value) : value);
  const ends = scale.domain.map((end) => (root ? end * Math.abs(end) : end));
  return { color: (value) => (value === null ? null : scale(bend(value))), bar: legend(scale, root ? `${title} (square root)` : title, straight), tell: number, domain: ends };
}

function render({ model, el }) {
  const data = model.get("data");
  const main = scaleOf(el, data.scale);
  const others = (data.scales ?? []).map((each) => ({ ...each, ...scaleOf(el, each) }));
  const scale = (x) => others.find(({ columns }) => columns.includes(x)) ?? main;
  const cells = data.values.flatMap((row, y) =>
    row.map((value, x) => ({
      x, y, value, color: scale(x).color(value), text: data.cells?.[y][x] ?? "",
      title: [`${data.y.label} ${data.y.names[y]}, ${data.x.label} ${data.x.names[x]}`, `${scale(x).title ?? data.scale.title}: ${scale(x).tell(value)}`, data.notes?.[y][x]].filter(Boolean).join("\n"),
    })),
  ).filter((cell) => cell.value !== null);
  const [columns, rows] = [data.x.names.length, data.y.names.length];
  const left = Math.min(0.42 * el.clientWidth, 34 + 6.6 * Math.max(...data.y.names.map((name) => name.length)));
  const room = Math.max(120, el.clientWidth - left - 20);
  const wide = data.square ? Math.min(30, room / columns, Math.max(16, 660 / rows)) : Math.min(data.cells ? 84 : 64, room / columns);
  const boxed = data.scroll && rows > ROWS_OF_A_BOX;
  const high = boxed ? 16 : data.square ? wide : data.cells ? 22 : Math.min(22, Math.max(10, 900 / rows));
  const upright = Math.max(...data.x.names.map((name) => name.length)) * 6.5 > wide - 2;
  const top = upright ? Math.min(150, 26 + 5.2 * Math.max(...data.x.names.map((name) => name.length))) : 34;
  el.append(main.bar, ...others.map(({ bar }) => bar));
  const x = { type: "band", axis: "top", label: data.x.label, labelArrow: "none", domain: data.x.names.map((_, at) => at), ticks: some(columns, data.x.names, wide), tickFormat: (at) => data.x.names[at], tickRotate: upright ? -60 : 0, tickSize: 0 };
  const size = { width: left + columns * wide + 20, marginLeft: left, marginRight: 20, padding: 0 };
  const box = boxed ? boxOf(el, size, x, top) : el;
  plot(box, {
    ...size,
    height: (boxed ? 4 : top) + rows * high + 12,
    marginTop: boxed ? 4 : top, marginBottom: 12,
    x: boxed ? { ...x, axis: null } : x,
    y: { label: data.y.label, labelArrow: "none", domain: data.y.names.map((_, at) => at), ticks: boxed ? data.y.names.map((_, at) => at) : some(rows, data.y.names, high), tickFormat: (at) => data.y.names[at], tickSize: 0 },
    marks: [
      Plot.cell(cells, { x: "x", y: "y", fill: "color", inset: Math.min(wide, high) > 8 ? 0.75 : 0.25, rx: 1 }),
      data.cells && wide > 30 ? Plot.text(cells, { x: "x", y: "y", text: (cell) => cut(cell.text, wide), fill: (cell) => ink(cell.color), fontSize: 10.5 }) : null,
      Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 40 })),
    ],
  });
  el.shown = { values: data.values, domain: main.domain, kind: data.scale.kind, colors: data.values.map((row) => row.map((value, x) => scale(x).color(value))) };
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
