// Builds the bundles: one file each, minified, and packed, since anywidget sends a widget's source with every instance.
// A packed module holds its source compressed, unpacks it in the browser, and exports what that exports.
//
//     node build.js FOLDER ENTRY ...

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import * as esbuild from "esbuild";
import { deflateSync } from "fflate"; // not Node's own: its bytes differ from version to version

const [folder, ...entries] = process.argv.slice(2);

const css = {
  name: "css as text",
  setup(build) {
    build.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await esbuild.transform(readFileSync(path, "utf8"), { loader: "css", minify: true });
      return { contents: code, loader: "text" };
    });
  },
};

function packed(source) {
  const data = Buffer.from(deflateSync(Buffer.from(source), { level: 9 })).toString("base64");
  return `const packed = "${data}";
const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
const url = URL.createObjectURL(new Blob([await new Response(stream).text()], { type: "text/javascript" }));
const module = await import(url);
URL.revokeObjectURL(url);
export default module.default;
`;
}

// Of the libraries in the bundles, the licences.
function licences(inputs) {
  const names = inputs.map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean);
  const texts = [...new Set(names)].sort().map((name) => {
    const text = readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim();
    const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
    return `${name} ${version}\n\n${text}\n`;
  });
  return texts.join("\n");
}

const result = await esbuild.build({
  entryPoints: entries,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  outdir: folder,
  write: false,
  metafile: true,
  plugins: [css],
});
mkdirSync(folder, { recursive: true });
for (const file of result.outputFiles) writeFileSync(join(folder, basename(file.path)), packed(file.text));
writeFileSync(join(folder, "LICENSES.txt"), licences(Object.keys(result.metafile.inputs)));
