import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const root = fileURLToPath(new URL(".", import.meta.url));

/** Tests run on the sources: every `@llm/x` resolves to `packages/x/src/index.ts`, so no build is needed but the native core's. */
export default defineConfig({
  resolve: {
    alias: Object.fromEntries(
      readdirSync(`${root}packages`).map((name) => [`@llm/${name}`, `${root}packages/${name}/src/index.ts`]),
    ),
  },
  test: {
    include: ["packages/*/{src,test}/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
