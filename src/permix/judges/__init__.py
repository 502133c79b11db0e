"""LLM judges: the prompts that they are sent, the scores that they return, and the controls that validate these scores."""
