// Bundles the views with what they need from npm: `make views`. With --check: is the stored bundle that of the sources?
import { readFileSync } from "node:fs";
import { build } from "esbuild";

const check = process.argv.includes("--check");

const { outputFiles } = await build({
  entryPoints: ["src/report.js", "src/explorer.js"],
  outdir: "built",
  bundle: true,
  minify: true,
  format: "iife",
  charset: "utf8",
  legalComments: "none",
  target: ["es2022"],
  banner: { js: "/* Made by `make views` from gguf_harness/views/src; contains Observable Plot and D3 (ISC). */" },
  write: !check,
});

for (const { path, contents } of outputFiles ?? []) {
  if (!readFileSync(path).equals(Buffer.from(contents))) {
    console.error(`${path} is not what its sources make. Run \`make views\` and commit it.`);
    process.exitCode = 1;
  }
}
