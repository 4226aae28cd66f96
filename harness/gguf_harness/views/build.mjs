// Bundles the views with what they need from npm: `make views`. With --check: are the stored bundles those of the sources?
import { existsSync, readFileSync } from "node:fs";
import { build } from "esbuild";

const check = process.argv.includes("--check");

const BUNDLES = [
  { entryPoints: ["src/report.js", "src/explorer.js"], format: "iife" },
  // A module, with its styles as text: notebooks import it.
  { entryPoints: ["src/widget.js"], format: "esm", loader: { ".css": "text" } },
];

for (const bundle of BUNDLES) {
  const { outputFiles } = await build({
    ...bundle,
    outdir: "built",
    bundle: true,
    minify: true,
    charset: "utf8",
    legalComments: "none",
    target: ["es2022"],
    banner: { js: "/* Made by `make views` from gguf_harness/views/src; contains Observable Plot and D3 (ISC). */" },
    write: !check,
  });
  for (const { path, contents } of outputFiles ?? []) {
    if (!existsSync(path) || !readFileSync(path).equals(Buffer.from(contents))) {
      console.error(`${path} is not what its sources make. Run \`make views\` and commit it.`);
      process.exitCode = 1;
    }
  }
}
