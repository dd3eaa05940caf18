import { OptionsError, parseOptions } from "@llm/core";
import { loadCustomSet } from "../custom-set.js";
import type { Row } from "../rows.js";
import type { Task } from "../task.js";
import { multipleChoice, multipleChoiceOptionsSchema, type MultipleChoiceOptions } from "./multiple-choice.js";
import { questionAnswer, questionAnswerOptionsSchema, type QuestionAnswerOptions } from "./question-answer.js";

/**
 * A set whose kind its file decides: columns A, B … (or `data_type` in the meta file) make it `multipleChoice`, else it
 * is `questionAnswer`. Options that the kind does not have are errors.
 * @throws {OptionsError | FormatError | IoError | UnsupportedError}
 */
export async function customSet(
  source: string | readonly Row[],
  options: MultipleChoiceOptions & QuestionAnswerOptions = {},
): Promise<Task> {
  if (typeof options !== "object" || options === null) throw new OptionsError("[customSet] expected an options object");
  const set = await loadCustomSet(source, { metaFile: options.metaFile });
  if (set.dataType === "mcq") {
    parseOptions(multipleChoiceOptionsSchema, options, "customSet: multiple choice");
    return multipleChoice(source, options) as Task;
  }
  parseOptions(questionAnswerOptionsSchema, options, "customSet: question and answer");
  return questionAnswer(source, options) as Task;
}
