/**
 * Every tensor of a model, by layer and kind: its type, its size or its error as a colour.
 *
 * data: {
 *   layers: [number], kinds: [string], outside: [string]: kinds of tensors that belong to no layer,
 *   tensors: [{ layer: number | null, kind, name, type, bits, weights, bytes, error: number | null, fallback: string | null }],
 *   scales: { bits, bytes, error: [low, high] | null }: over all models of the run
 * }
 * What the colours say is kept as "colour".
 */
import { Plot, colors, h, ink, legend, number, plot, swatches, toggles, withRoom } from "./kit.js";

const MARK = "var(--series-5)";
const WAYS = {
  type: { text: "type", of: (tensor) => tensor.bits, scale: "bits", title: "bits per weight (logarithmic)", said: number, cell: (tensor) => tensor.type },
  size: { text: "size", of: (tensor) => tensor.bytes, scale: "bytes", title: "size (logarithmic)", said: size, cell: (tensor) => size(tensor.bytes) },
  error: { text: "error", of: (tensor) => tensor.error, scale: "error", title: "relative error (logarithmic)", said: percent, cell: (tensor) => (tensor.error ? percent(tensor.error) : "exact") },
};

function render({ model, el }) {
  const data = model.get("data");
  const ways = Object.entries(WAYS).filter(([, way]) => data.scales[way.scale]);
  const chosen = ways.some(([name]) => name === model.get("colour")) ? model.get("colour") : "type";
  const picture = h("div", {});
  el.append(toggles("Colour by", ways.map(([name, way]) => [name, way.text]), chosen, (name) => { model.set("colour", name); draw(el, picture, data, name); }), picture);
  draw(el, picture, data, chosen);
}

function draw(el, picture, data, name) {
  const way = WAYS[name];
  picture.replaceChildren();
  const low = Math.log10(data.scales[way.scale][0]);
  const scale = colors(el, "share", [low, Math.log10(data.scales[way.scale][1])]);
  const tensors = data.tensors.map((tensor) => {
    const value = way.of(tensor);
    const color = value > 0 ? scale(Math.log10(value)) : "transparent";
    return { ...tensor, value, color, ink: value > 0 ? ink(color) : "var(--muted)", cell: value === null ? "" : way.cell(tensor), title: told(tensor) };
  });
  picture.append(name === "type" ? types(data.tensors, scale) : legend(scale, way.title, (at) => way.said(10 ** at)));
  if (tensors.every((tensor) => tensor.value === null)) picture.append(h("p", { class: "muted" }, "This is the reference: errors are those of the candidates."));
  if (tensors.some((tensor) => tensor.fallback)) picture.append(h("p", { class: "legend" }, h("span", { class: "swatch", style: `background: none; outline: 2px solid ${MARK}; outline-offset: -2px` }), "another type than the recipe wanted"));
  const left = 46;
  const room = Math.max(200, el.clientWidth - left - 40);
  // One width for both parts, so that tiles of a kind can be compared.
  const wide = Math.min(84, room / Math.max(data.kinds.length, data.outside.length, 1));
  const layers = data.layers.map(String);
  grid(picture, tensors.filter((tensor) => tensor.layer !== null), { kinds: data.kinds, rows: layers, row: (tensor) => String(tensor.layer), label: "layer", left, wide });
  if (data.outside.length) {
    picture.append(h("p", { class: "muted" }, "Outside of layers"));
    grid(picture, tensors.filter((tensor) => tensor.layer === null), { kinds: data.outside, rows: [""], row: () => "", label: null, left, wide });
  }
  el.shown = { colour: name, tensors: tensors.map((tensor) => ({ name: tensor.name, type: tensor.type, bytes: tensor.bytes, value: tensor.value, color: tensor.color })), domain: data.scales[way.scale] };
}

function grid(picture, tensors, { kinds, rows, row, label, left, wide }) {
  if (!kinds.length) return;
  const high = Math.min(22, Math.max(11, 900 / rows.length));
  const longest = Math.max(...kinds.map((kind) => kind.length));
  const upright = longest * 6.5 > wide - 2;
  const top = upright ? Math.min(160, 26 + 5.7 * longest) : 26;
  const step = Math.max(1, Math.ceil(12 / high));
  // The last of the names that stand aslant reaches beyond its column.
  const right = upright ? Math.max(16, Math.min(40, 3 * kinds.at(-1).length - wide / 2)) : 16;
  const at = { x: "kind", y: row };
  plot(picture, {
    ...withRoom(picture, left + kinds.length * wide + right, right),
    height: top + rows.length * high + 6,
    marginLeft: left, marginTop: top, marginBottom: 6,
    padding: 0,
    color: { type: "identity" },
    x: { axis: "top", label: null, domain: kinds, tickRotate: upright ? -60 : 0, tickSize: 0 },
    y: { label, domain: rows, ticks: rows.filter((_, place) => place % step === 0), tickSize: 0, labelArrow: "none" },
    marks: [
      Plot.cell(tensors, { ...at, fill: "color", stroke: "var(--line)", inset: high > 8 ? 0.75 : 0.25, rx: 1 }),
      Plot.cell(tensors.filter((tensor) => tensor.fallback), { ...at, fill: "none", stroke: MARK, strokeWidth: 1.6, inset: 1.4, rx: 1 }),
      wide >= 40 && high >= 14 ? Plot.text(tensors.filter((tensor) => tensor.cell.length * 6.2 < wide), { ...at, text: "cell", fill: "ink", fontSize: 10.5 }) : null,
      Plot.tip(tensors, Plot.pointer({ ...at, title: "title", maxRadius: 40 })),
    ],
  });
}

/** The types that a model has, the widest first, each with its colour and how many tensors have it. */
function types(tensors, scale) {
  const found = new Map();
  for (const tensor of tensors) found.set(tensor.type, { bits: tensor.bits, count: (found.get(tensor.type)?.count ?? 0) + 1 });
  return swatches([...found].sort(([, one], [, other]) => other.bits - one.bits).map(([type, { bits, count }]) =>
    ({ name: `${type}, ${number(bits)} bits: ${count} tensor${count > 1 ? "s" : ""}`, color: scale(Math.log10(bits)) })));
}

function told(tensor) {
  return [
    tensor.name,
    `${tensor.type}, ${number(tensor.bits)} bits per weight`,
    `${tensor.weights.toLocaleString("en-US")} weights, ${size(tensor.bytes)}`,
    tensor.error === null ? null : tensor.error ? `relative error ${percent(tensor.error)}` : "exact",
    tensor.fallback,
  ].filter(Boolean).join("\n");
}

/** Decimal units with three significant digits, as the report's tables have them. */
function size(bytes) {
  for (const [unit, one] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= 0.9995 * one) return `${(bytes / one).toFixed(bytes < 9.995 * one ? 2 : bytes < 99.95 * one ? 1 : 0)} ${unit}`;
  return `${Math.round(bytes)} B`;
}

function percent(share) {
  return `${number(100 * share)} %`;
}

export default { render };
