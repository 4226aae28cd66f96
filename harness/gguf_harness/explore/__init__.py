"""The explorer: a live page on this machine that reads prompts with a model, and shows what happened inside."""
