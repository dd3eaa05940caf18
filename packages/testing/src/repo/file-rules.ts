import { basename } from "node:path";

/** Longest source file, in lines. */
export const maxLines = 800;

/** Files that a program writes, or tables, that may be longer. Each needs its reason. */
const longFiles: ReadonlyMap<string, string> = new Map();

const sourceFile = /\.(ts|mjs|cpp|h|cu|cuh|inc)$/;
const textFile =
  /\.(ts|mts|mjs|cjs|js|json|jsonl|md|cpp|h|cu|cuh|inc|def|txt|yml|yaml|sh|py|html|css|cmake|ipynb|toml)$/;
const testFile = /(\.test(-d)?\.ts$)|(^packages\/testing\/src\/repo\/)|(^packages\/[^/]+\/test\/)|(^native\/tests\/)/;
const fixture = /(^|\/)fixtures\//;

/** True for a file whose text the rules read. */
export function isChecked(path: string): boolean {
  return (textFile.test(path) || sourceFile.test(path)) && !fixture.test(path) && path !== "LICENSE";
}

const machinePath = /(?:^|[\s"'`(=:,[]|file:\/\/)(\/(?:home|root|work|tmp)(?:\/[^\s"'`)]*|(?=["'`\s)]|$)))/;
const address = /[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b/;
const registry = /https?:\/\/[^\s"'`)/]*(?:registry|artifactory|verdaccio|nexus|npmjs|pypi)[^\s"'`)]*/i;
const reserved = /@(?:[\w-]+\.)*example\.(?:com|org|net)$/;

/** Everything in a file's name and text that is against the repository's rules, one line each. */
export function fileViolations(path: string, text: string): string[] {
  const violations: string[] = [];
  const name = basename(path);
  if (/^utils?\./.test(name)) violations.push(`${path}: no utils files; name it after what it does`);
  if (/^packages\/[^/]+\/src\/.*\.ts$/.test(path) && !/^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9-]+)*\.ts$/.test(name)) {
    violations.push(`${path}: expected a kebab-case name, got ${name}`);
  }

  const lines = text.split("\n");
  const count = lines.at(-1) === "" ? lines.length - 1 : lines.length;
  if (sourceFile.test(path) && count > maxLines && !longFiles.has(path)) {
    violations.push(`${path}: expected at most ${maxLines} lines, got ${count}; split it by subject`);
  }

  lines.forEach((line, index) => {
    const at = `${path}:${index + 1}`;
    if (line.length > 20_000) return;
    const host = registry.exec(line);
    if (host) violations.push(`${at}: no registry hosts, got ${host[0]}`);
    const mail = address.exec(line);
    if (mail && !reserved.test(mail[0])) violations.push(`${at}: no e-mail addresses, got ${mail[0]}`);
    if (testFile.test(path)) return;
    const machine = machinePath.exec(line);
    if (machine) violations.push(`${at}: no paths of one machine, got ${machine[1]}`);
  });
  return violations;
}
