"""Rules: one small class each, in a file of its own."""
