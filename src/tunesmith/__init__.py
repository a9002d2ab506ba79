"""Tunesmith: from a base language model and your examples to a verified, merged LoRA adapter."""
