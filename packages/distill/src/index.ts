export {
  type DistillContext,
  type DistillObjective,
  distillObjective,
  DistillOptions,
  type DistillResult,
  type Student,
  type Teacher,
} from "./objective.js";
export { AlphaSchedule, alphaSchedule } from "./alpha.js";
export { checkSameVocabulary } from "./vocabulary.js";
export { createStudent, CreateStudentOptions } from "./student.js";
