import { expect, test } from "vitest";
import { publicPackages, requireBuild, root, runNode } from "./workspace.js";

/** Runs before the import: any addon that is opened is named on stderr. */
const prelude = `
const open = process.dlopen;
process.dlopen = (...args) => { console.error("opened the addon " + args[1]); return open.apply(process, args); };
`;

function importQuietly(code: string): ReturnType<typeof runNode> {
  const preludeUrl = `data:text/javascript,${encodeURIComponent(prelude)}`;
  return runNode(["--import", preludeUrl, "--input-type=module", "--eval", code], { cwd: root });
}

test.for(publicPackages)(
  "importing $name prints nothing, opens no addon and lets the process end",
  async (entry, context) => {
    requireBuild(context, [entry]);
    const finished = await importQuietly(`await import(${JSON.stringify(entry.name)});`);
    expect(finished).toMatchObject({ code: 0, stdout: "", stderr: "" });
  },
);

test("an import that prints or opens an addon is noticed", async () => {
  const printed = await importQuietly(`console.log("hello");`);
  expect(printed.stdout).toBe("hello\n");
  const opened = await importQuietly(`
    import { createRequire } from "node:module";
    try { createRequire(${JSON.stringify(`${root}a.js`)})("./no-such.node"); } catch {}
    try { process.dlopen({ exports: {} }, "no-such.node"); } catch {}
  `);
  expect(opened.stderr).toContain("opened the addon no-such.node");
});
