/** Every view by its name, which is that of its module. */
import attention from "./attention.js";
import bars from "./bars.js";
import dots from "./dots.js";
import figure from "./figure.js";
import lines from "./lines.js";
import matrix from "./matrix.js";
import tradeoff from "./tradeoff.js";

export const VIEWS = { attention, bars, dots, figure, lines, matrix, tradeoff };
