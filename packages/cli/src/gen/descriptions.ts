export const descriptions: Readonly<Record<string, Readonly<Record<string, readonly [string, string?]>>>> = {};
