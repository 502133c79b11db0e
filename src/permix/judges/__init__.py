"""LLM judges: the prompts that they receive, the scores that they return, and the controls that validate these scores."""
