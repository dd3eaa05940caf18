import * as v from "valibot";
export const distillSettingsSchema = v.strictObject({ teacher: v.string() });
export type DistillSettings = v.InferInput<typeof distillSettingsSchema>;
export async function prepareTeacher(_s: DistillSettings, _m: unknown, _t: unknown): Promise<{ options: object; dispose(): void }> {
  throw new Error("pending");
}
