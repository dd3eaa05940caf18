/** Every op case. */
import { elementwiseCases } from "./cases-elementwise.js";
import { layerCases } from "./cases-layers.js";
import { lossCases } from "./cases-loss.js";
import { matmulCases } from "./cases-matmul.js";
import { fp8Cases } from "./cases-fp8.js";
import { quantCases } from "./cases-quant.js";
import { servingCases } from "./cases-serving.js";
import type { OpCase } from "./op-case.js";

export const opCases: readonly OpCase[] = [
  ...elementwiseCases,
  ...matmulCases,
  ...layerCases,
  ...lossCases,
  ...quantCases,
  ...fp8Cases,
  ...servingCases,
];
