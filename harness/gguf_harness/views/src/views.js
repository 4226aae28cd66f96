/** Every view by its name, which is that of its module. */
import bars from "./bars.js";
import dots from "./dots.js";
import figure from "./figure.js";
import lines from "./lines.js";
import matrix from "./matrix.js";
import next_tokens from "./next_tokens.js";
import qkv from "./qkv.js";
import tradeoff from "./tradeoff.js";

export const VIEWS = { bars, dots, figure, lines, matrix, next_tokens, qkv, tradeoff };
