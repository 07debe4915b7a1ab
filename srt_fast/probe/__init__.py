"""`srt-fast probe`: can a model train on its own vote on a task? Answers before any training."""
