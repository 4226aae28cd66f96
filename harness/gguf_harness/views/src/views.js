/** Every view by its name, which is that of its module. */
import analogies from "./analogies.js";
import attention from "./attention.js";
import bars from "./bars.js";
import cosines from "./cosines.js";
import dots from "./dots.js";
import figure from "./figure.js";
import history from "./history.js";
import lines from "./lines.js";
import matrix from "./matrix.js";
import next_tokens from "./next_tokens.js";
import qkv from "./qkv.js";
import space from "./space.js";
import structure from "./structure.js";
import texts from "./texts.js";
import tokens from "./tokens.js";
import tradeoff from "./tradeoff.js";

export const VIEWS = { analogies, attention, bars, cosines, dots, figure, history, lines, matrix, next_tokens, qkv, space, structure, texts, tokens, tradeoff };
