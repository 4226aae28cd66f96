"""What was asked for: options, models, the ladder, texts, prompts and words."""
