/** What a training run says about its teacher. */
import { OptionsError } from "@llm/core";
import { createStudent, CreateStudentOptions, distillObjective, DistillOptions } from "@llm/distill";
import { type CausalLM, LoadModelOptions } from "@llm/models";
import * as v from "valibot";
import { openModel } from "./open-model.js";

export const distillSettingsSchema = v.strictObject({
  ...v.partial(v.omit(DistillOptions, ["teacher"])).entries,
  /** Folder or hub name of the teacher; a PEFT folder loads its base. */
  teacher: v.pipe(v.string(), v.nonEmpty()),
  /** How the teacher is loaded. */
  teacherLoad: v.optional(v.partial(LoadModelOptions)),
  /** Make the student from the teacher's architecture, instead of loading `model`. */
  student: v.optional(v.partial(CreateStudentOptions)),
});

export type DistillSettings = v.InferInput<typeof distillSettingsSchema>;

export interface Teaching {
  teacher: CausalLM;
  objective: ReturnType<typeof distillObjective>;
}

/**
 * Loads the teacher and makes the objective.
 * @param device  of the student: the teacher's too
 * @throws {OptionsError} the settings name another for the teacher
 */
export async function openTeacher(
  settings: DistillSettings,
  device: LoadModelOptions["device"],
  where: string,
): Promise<Teaching> {
  const { teacher: name, teacherLoad, student: _student, ...options } = settings;
  const own = teacherLoad?.device;
  if (own !== undefined && own !== (device ?? "auto"))
    throw new OptionsError(
      `[${where}] distill.teacherLoad.device: expected the student's device, ${device ?? "auto"}, got ${own}; name it in load.device`,
    );
  const teacher = await openModel(name, { ...teacherLoad, ...(device === undefined ? {} : { device }) });
  return { teacher, objective: distillObjective({ ...options, teacher }) };
}

/** The student that the settings describe. @throws {OptionsError} they describe none */
export function makeStudent(settings: DistillSettings, teacher: CausalLM, where: string): CausalLM {
  if (settings.student === undefined)
    throw new OptionsError(`[${where}] expected a student: its folder, or sizes to make one of (--student-layers …)`);
  return createStudent(teacher, settings.student);
}
