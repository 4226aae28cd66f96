// Bundles the views with what they need from npm: `npm ci && npm run build`, or `make views`.
import { build } from "esbuild";

await build({
  entryPoints: ["src/report.js"],
  outdir: process.argv[2] ?? "built",
  bundle: true,
  minify: true,
  format: "iife",
  charset: "utf8",
  legalComments: "none",
  target: ["es2022"],
  banner: { js: "/* Made by `make views` from gguf_harness/views/src; contains Observable Plot and D3 (ISC). */" },
});
