import { expect, test } from "vitest";
import { Conversation } from "./conversation.js";

test("a conversation is reset, gets another system message, and ends by command", () => {
  const conversation = new Conversation("be brief");
  conversation.messages.push({ role: "user", content: "hi" });
  expect(conversation.command("/reset")).toEqual({ say: "forgotten" });
  expect(conversation.messages).toEqual([{ role: "system", content: "be brief" }]);
  expect(conversation.command("/system speak\nFrench")).toEqual({ say: "system message set" });
  expect(conversation.messages).toEqual([{ role: "system", content: "speak\nFrench" }]);
  expect(conversation.command("/system")).toEqual({ say: "no system message" });
  expect(conversation.messages).toEqual([]);
  expect(conversation.command("/rest")).toEqual({ say: expect.stringMatching(/^no command \/rest\n\/reset/) });
  expect(conversation.command("/exit")).toBe("exit");
});
