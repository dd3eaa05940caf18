export { BlockPool } from "./block-pool.js";
export { SequenceBlocks } from "./block-table.js";
export type { BlockCopy } from "./block-table.js";
export { kvBlockBytes, kvBudgetSchema, kvDtypes, planKvBudget } from "./budget.js";
export type { KvBudgetOptions, KvDtype } from "./budget.js";
export { PrefixCache } from "./prefix-cache.js";
export type { PrefixMatch, PrefixNode } from "./prefix-cache.js";
export { PagedCache } from "./paged-cache.js";
export type { PagedCacheOptions, PagedStep } from "./paged-cache.js";
