export { defineConfig, type TrainConfig } from "./define-config.js";
