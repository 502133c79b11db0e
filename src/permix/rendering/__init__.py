"""Draws tables and figures for model cards and reports."""
