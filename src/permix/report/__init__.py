"""Turns run directories into a report: one document, its tables, figures and HTML page."""
