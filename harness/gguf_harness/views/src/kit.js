/**
 * What views share: elements, colours by role, scales of colours, numbers, controls.
 *
 * A view is a module with `export default { render }`. `render({ model, el })` draws `model.get("data")`, which is plain
 * JSON, in the empty element `el`, and may return a function that cleans up. The host calls it again when the theme or
 * the width changes: what a person has chosen is kept with `model.set(name, value)`. This is the interface of
 * anywidget's front-end modules. `el.shown` is what was drawn, as numbers, so that tests can read it back.
 */
import * as Plot from "@observablehq/plot";
import { interpolateRgbBasis } from "d3";

export { Plot };

/** An element: `h("p", { class: "muted" }, "text", child)`. Strings become text, never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A custom property of the page's theme, as a colour that a canvas takes. */
export const themed = (el, name) => getComputedStyle(el).getPropertyValue(name).trim();

/** Whether an element is shown in dark colours: as it is told, or as the machine is where both are allowed. */
export function isDark(el) {
  const told = themed(el, "color-scheme");
  return told === "dark" || (told !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
}

const SYMBOLS = ["circle", "diamond", "square", "triangle", "cross", "star", "wye", "hexagon"];
const COLORS = 8;

/**
 * Colour and symbol of a model, the same in every picture: the reference is grey, candidates go from cold to warm as
 * bits fall. After as many candidates as there are colours these come again, with other symbols.
 *
 * @param {{ role: "reference" | "candidate", series: number }} model
 */
export function look(model) {
  if (model.role === "reference") return { color: "var(--reference)", symbol: "circle" };
  return { color: `var(--series-${model.series % COLORS})`, symbol: SYMBOLS[(model.series + Math.floor(model.series / COLORS)) % SYMBOLS.length] };
}

// Sequential: light to dark where the page is light, the other way round where it is dark, so that nothing is near the
// page's own colour and much stands out. Diverging: the page's colour in the middle, where nothing changed.
const RAMPS = {
  light: {
    share: ["#f4f7fa", "#c3d8e8", "#7fb0d3", "#3a80b5", "#12548a", "#062c52"],
    signed: ["#8c3a00", "#d5782f", "#f3c9a0", "#f7f7f5", "#a9cfe6", "#3a86bd", "#0a3f73"],
  },
  dark: {
    share: ["#1d2328", "#1c3d57", "#20638f", "#3f90c6", "#85bfe6", "#dceefb"],
    signed: ["#ffb070", "#d5782f", "#7a4520", "#23282d", "#1f4f74", "#3a86bd", "#a5d4f5"],
  },
};

/**
 * A scale of colours: a function from values to CSS colours, with `domain` and `kind`.
 *
 * @param {"share" | "signed"} kind signed is for values whose zero (or `middle`) means something.
 * @param {[number, number]} domain the same for all models of a comparison; of a signed one, made symmetric.
 */
export function colors(el, kind, domain, middle = 0) {
  const ramp = interpolateRgbBasis(RAMPS[isDark(el) ? "dark" : "light"][kind]);
  let [low, high] = domain;
  if (kind === "signed") {
    const reach = Math.max(Math.abs(low - middle), Math.abs(high - middle)) || 1;
    [low, high] = [middle - reach, middle + reach];
  }
  const color = (value) => (value === null || !Number.isFinite(value) ? null : ramp(Math.min(1, Math.max(0, (value - low) / (high - low || 1)))));
  return Object.assign(color, { domain: [low, high], kind });
}

/** Black or white, whichever can be read on a colour `rgb(r, g, b)`: at this luminance both have a contrast of 4.58. */
export function ink(color) {
  const [r, g, b] = color.match(/[\d.]+/g).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** The bar that explains a scale of colours. */
export function legend(scale, title, format = number) {
  const steps = Array.from({ length: 24 }, (_, step) => scale(scale.domain[0] + (step / 23) * (scale.domain[1] - scale.domain[0])));
  return h("div", { class: "legend", role: "img", "aria-label": `Colours: ${title}, from ${format(scale.domain[0])} to ${format(scale.domain[1])}` },
    h("span", {}, title),
    h("span", { class: "ends" }, h("span", { class: "num" }, format(scale.domain[0])),
      h("span", { class: "ramp", style: `background: linear-gradient(to right, ${steps.join(", ")})` }),
      h("span", { class: "num" }, format(scale.domain[1]))));
}

/** Names of models with their colour and symbol. */
export function modelLegend(models) {
  return h("ul", { class: "models" }, models.map((model) => {
    const { color, symbol } = look(model);
    const mark = Plot.plot({ width: 14, height: 14, margin: 0, x: { axis: null, domain: [-1, 1] }, y: { axis: null, domain: [-1, 1] },
      marks: [Plot.dot([0], { x: 0, y: 0, r: 4.5, fill: color, symbol })] });
    mark.setAttribute("aria-hidden", "true");
    return h("li", {}, mark, model.short);
  }));
}

/** Names of parts with their colours; those of dashed lines are dashed. */
export function swatches(parts) {
  return h("ul", { class: "models" }, parts.map(({ name, color, dash }) =>
    h("li", {}, h("span", { class: dash ? "swatch dashed" : "swatch", style: `color: ${color}` }), name)));
}

/** A number with four significant digits, as `gguf_harness.report.numbers.format_value` writes it. */
export function number(value) {
  if (value === null || !Number.isFinite(value)) return "none";
  if (value !== 0 && Math.abs(value) < 1e-4) {
    const [digits, exponent] = value.toExponential(2).split("e");
    return `${digits}e${exponent.replace(/^([+-])(\d)$/, "$10$2")}`;
  }
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  if (Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

/** A value with its standard error: the error to two significant digits, the value to the same place. */
export function estimate(value, se) {
  if (se === null || se === undefined) return number(value);
  if (!(se > 0)) return `${number(value)} ± 0`;
  const places = Math.max(0, 1 - Number(se.toExponential(1).split("e")[1]));
  if (places > 7) return `${number(value)} ± ${se.toExponential(1)}`;
  return `${value.toFixed(places)} ± ${se.toFixed(places)}`;
}

/** Letters of a picture: smaller where it is narrow. */
const letters = (width) => (width < 560 ? 11 : 12);

/**
 * The room at the left of a picture for names of its rows: as wide as the longest, at most a share of the picture.
 *
 * @returns {{ left: number, fit: (name: string) => string }} a margin in pixels; a name that is too long loses its middle,
 *   since names of files begin with what they share and end with what tells them apart.
 */
export function roomForNames(el, names, share = 0.4) {
  const width = el.clientWidth || 640;
  const context = document.createElement("canvas").getContext("2d");
  context.font = `${letters(width)}px ${getComputedStyle(el).fontFamily}`;
  const wide = (text) => context.measureText(text).width;
  const room = Math.min(share * width, Math.max(...names.map(wide)) + 1);
  const fit = (name) => {
    for (let kept = name.length; kept > 2; kept -= 1) {
      const half = Math.floor(kept / 2);
      const text = kept === name.length ? name : `${name.slice(0, kept - half)}…${name.slice(-half)}`;
      if (wide(text) <= room) return text;
    }
    return "…";
  };
  return { left: Math.ceil(room) + 12, fit };
}

/** Width and right margin of a picture that takes less than its view: what is told of a tile has the rest as its room. */
export function withRoom(el, width, right) {
  const whole = Math.max(width, el.clientWidth);
  return { width: whole, marginRight: right + whole - width };
}

/** A text in quotation marks that is too long, cut at its end. */
export const cut = (text, most) => (text.length <= most ? text : `${text.slice(0, most - 2)}…”`);

/** A labelled choice that the keyboard can reach. `options` are [value, text]; calls `chosen(value)`. */
export function choice(label, options, value, chosen) {
  const select = h("select", { onchange: () => chosen(select.value) }, options.map(([each, text]) => h("option", { value: each }, text)));
  select.value = value;
  return h("label", { class: "choice" }, `${label} `, select);
}

/** Buttons of which one is pressed. `options` are [value, text]. */
export function toggles(label, options, value, chosen) {
  const buttons = options.map(([each, text]) =>
    h("button", { type: "button", "aria-pressed": String(each === value), onclick: () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === buttons[options.findIndex(([one]) => one === each)]));
      chosen(each);
    } }, text));
  return h("div", { class: "tabs", role: "group", "aria-label": label }, buttons);
}

/** Observable Plot in the page's type and colours, as wide as the element. */
export function plot(el, options) {
  const width = Math.max(260, el.clientWidth || 640);
  const figure = Plot.plot({
    width,
    style: { background: "transparent", color: "var(--text)", fontFamily: "inherit", fontSize: `${letters(width)}px`, overflow: "visible" },
    ...options,
  });
  // The view is named as a whole: Plot's names of its marks are for programmers, and are not allowed on groups.
  for (const part of figure.querySelectorAll("g[aria-label]")) {
    part.dataset.mark = part.getAttribute("aria-label");
    part.removeAttribute("aria-label");
  }
  el.append(figure);
  return figure;
}

/**
 * Options of a logarithmic axis over values, all above 0: ticks at powers of ten, and at 3 between them where there is
 * room. (D3 writes no number at a tick of 5 where there are many.)
 */
export function logarithmic(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decades = Math.log10(high / low);
  const digits = decades > 3 ? [1] : decades > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)); power += decades > 9 ? 2 : 1) {
    for (const digit of digits) {
      const value = Number(`${digit}e${power}`);
      if (value >= low / 1.3 && value <= high * 1.3) ticks.push(value);
    }
  }
  return { type: "log", ticks, tickFormat: (value) => (value >= 1e-4 && value < 1e5 ? String(value) : value.toExponential(0).replace("+", "")) };
}

/** The same with an axis that reaches to its outermost ticks: Plot draws a tick beyond the axis over what is there. */
export function spanning(values) {
  const axis = logarithmic(values);
  const ends = [...values, ...axis.ticks];
  return { ...axis, domain: [Math.min(...ends), Math.max(...ends)] };
}
