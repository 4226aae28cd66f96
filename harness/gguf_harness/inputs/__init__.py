"""What was requested: options, models, the ladder, texts, prompts and words."""
