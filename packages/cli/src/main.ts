#!/usr/bin/env node
import { runCli, watchProcess } from "./run.js";

void runCli(process.argv.slice(2), watchProcess()).then((code) => {
  process.exitCode = code;
});
