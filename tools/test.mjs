// `npm test`: the whole test, on a fresh clone with nothing installed.
// Install, build, lint, format, types, then every vitest file (packages, examples, docs, packaging, the repository's rules).
// The last line is `N passed, N failed`; the exit code is 1 when anything failed.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findNvcc } from "../native/scripts/nvcc.mjs";
import { createParts, root } from "./steps.mjs";

/** Counts from vitest's JSON report; a file that cannot even be loaded counts as one failure. */
function readVitestReport(file) {
  let report;
  try {
    report = JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return { passed: 0, failed: 1, skipped: 0, messages: ["vitest ended without a report"] };
  }
  const counts = { passed: report.numPassedTests, failed: report.numFailedTests, skipped: report.numPendingTests };
  const messages = [];
  for (const suite of report.testResults) {
    const failed = suite.assertionResults.filter((test) => test.status === "failed");
    for (const test of failed) {
      const why = (test.failureMessages?.[0] ?? "").split("\n").slice(0, 5).join("\n        ").slice(0, 600);
      messages.push(`${suite.name}: ${test.fullName}\n        ${why}`);
    }
    if (suite.status === "failed" && failed.length === 0) {
      counts.failed += 1;
      messages.push(`${suite.name}: ${suite.message.split("\n")[0] || "could not be run"}`);
    }
  }
  if (!report.success && counts.failed === 0) {
    counts.failed = 1;
    messages.push("vitest reports an error outside of any test (see above)");
  }
  return { ...counts, messages };
}

const run = createParts();
const temporary = mkdtempSync(join(tmpdir(), "llm-test-"));
let tests = { passed: 0, failed: 0, skipped: 0, messages: [] };

if (await run.install()) {
  await run.run("build (native, packages)", "npm", ["run", "build", "--silent"]);
  await run.run("native tests", process.execPath, ["native/scripts/test.mjs"]);
  if (findNvcc()) {
    // Compiles everywhere, runs on a GPU only: the op cases there are a part of the vitest files.
    await run.run("CUDA plugin (sm_90a)", process.execPath, ["native/scripts/build-cuda.mjs"], {
      LLM_CUDA_ARCH: "90a",
    });
    await run.run("CUDA spills", process.execPath, ["native/scripts/check-spills.mjs"]);
    await run.run("CUDA for older cards (sm_80 PTX)", process.execPath, ["native/scripts/build-cuda.mjs", "--ptx80"]);
  } else console.log("\nnvcc 12.4 or later was not found: the CUDA plugin is not compiled");
  await run.run("lint (oxlint)", process.execPath, [run.program("oxlint/bin/oxlint")]);
  await run.run("format (oxfmt --check)", process.execPath, [run.program("oxfmt/bin/oxfmt"), "--check"]);
  await run.run("types (tsc)", process.execPath, [
    run.program("typescript/bin/tsc"),
    "--noEmit",
    "-p",
    "tsconfig.json",
  ]);
  const reportFile = join(temporary, "vitest.json");
  const vitestOk = await run.run(
    "tests (vitest)",
    process.execPath,
    [
      run.program("vitest/vitest.mjs"),
      "run",
      "--reporter=default",
      "--reporter=json",
      `--outputFile.json=${reportFile}`,
      ...process.argv.slice(2),
    ],
    { LLM_REQUIRE_BUILD: "1" },
  );
  tests = readVitestReport(reportFile);
  if (!vitestOk && tests.failed === 0) {
    tests.failed = 1;
    tests.messages.push("vitest failed although no test did (see above)");
  }
}
rmSync(temporary, { recursive: true, force: true });

run.report();
const others = run.parts.filter((part) => !part.title.startsWith("tests"));
const passed = tests.passed + others.filter((part) => part.ok).length;
const failed = tests.failed + others.filter((part) => !part.ok).length;
for (const message of tests.messages) console.log(`FAILED  ${message.replaceAll(`${root}/`, "")}`);
if (tests.skipped > 0) console.log(`${tests.skipped} skipped`);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
