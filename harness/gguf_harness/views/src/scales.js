/** Scales of colours as data describes them: the colour of a value, the bar that explains it, and a value as text. */
import { colors, legend, number, swatches, themed } from "./kit.js";

const NAMED = ["--series-1", "--series-5", "--series-2", "--series-4", "--series-6", "--series-3", "--series-7", "--series-0"];

const STRAIGHT = { bend: (value) => value, straighten: (value) => value, said: "" };
/** Of values of which a few are much larger. */
const ROOT = { bend: (value) => Math.sign(value) * Math.sqrt(Math.abs(value)), straighten: (value) => value * Math.abs(value), said: "square root" };
/** Of values above 0; the others get the lowest colour. */
const LOG = { bend: (value) => (value > 0 ? Math.log10(value) : -Infinity), straighten: (value) => 10 ** value, said: "" };

/**
 * @param {{ kind: "share" | "signed" | "names", title: string, domain?: [low, high], middle?: number, percent?: boolean,
 *   root?: boolean, log?: boolean, names?: [string], rest?: boolean }} scale `names`: values are places in the names; the
 *   last one is what is left, and grey, if there is a `rest`.
 * @returns {{ color, bar, tell, domain }} functions of a value; an element; the ends of the scale
 */
export function scaleOf(el, { kind, title, domain, middle, percent, root, log, names, rest }) {
  if (kind === "names") return namedScale(el, names, rest);
  const { bend, straighten, said } = log ? LOG : root ? ROOT : STRAIGHT;
  const scale = colors(el, kind, domain.map(bend), middle === undefined ? undefined : bend(middle));
  const tell = (value) => (percent ? `${number(100 * value)} %` : number(value));
  const lowest = scale(scale.domain[0]);
  return {
    color: (value) => (value === null ? null : scale(bend(value)) ?? lowest),
    bar: legend(scale, noted(title, said), (at) => tell(straighten(at))),
    tell,
    domain: log ? domain : scale.domain.map(straighten),
  };
}

/** A title and how its numbers are drawn, in the brackets of its unit if it has one: `loss (nats, square root)`. */
const noted = (title, said) => (said === "" ? title : title.endsWith(")") ? `${title.slice(0, -1)}, ${said})` : `${title} (${said})`);

function namedScale(el, names, rest) {
  const shades = names.map((_, at) => themed(el, rest && at === names.length - 1 ? "--line" : NAMED[at % NAMED.length]));
  const bar = swatches(names.map((name, at) => ({ name, color: shades[at] })));
  return { color: (value) => (value === null ? null : shades[value]), bar, tell: (value) => names[value], domain: [0, names.length - 1] };
}
