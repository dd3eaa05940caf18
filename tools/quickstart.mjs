// `npm run quickstart`: on a fresh clone, installs, builds and runs examples/quickstart.ts through the built packages.
import { createParts, root } from "./steps.mjs";

const run = createParts();
const ready = (await run.install()) && (await run.run("build (native, packages)", "npm", ["run", "build", "--silent"]));
if (ready) {
  await run.run("pipeline (examples/quickstart.ts)", process.execPath, [
    `${root}/tools/run-ts.mjs`,
    `${root}/examples/quickstart.ts`,
    ...process.argv.slice(2),
  ]);
}
run.report();
process.exitCode = run.parts.every((part) => part.ok) ? 0 : 1;
