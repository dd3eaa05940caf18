import { OptionsError } from "./errors.js";

const units: Record<string, number> = {
  "": 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/**
 * Parses a size: "2GB" = 2·10⁹, "512 MiB" = 512·2²⁰, "1.5kb" = 1500, "4096" and 4096 = 4096 bytes. Case does not matter:
 * a "b" is always a byte.
 * @returns whole bytes ≥ 0, rounded down
 * @throws {OptionsError} anything else
 */
export function parseByteSize(size: string | number): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(String(size));
  const unit = match && units[match[2]!.toLowerCase()];
  const bytes = match && unit ? Math.floor(Number(match[1]) * unit) : Number.NaN;
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new OptionsError(
    `[parseByteSize] expected a size such as "2GB", "512MiB" or 4096, got ${JSON.stringify(size)}`,
    { size },
  );
}
