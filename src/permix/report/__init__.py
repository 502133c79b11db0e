"""From run directories to a report: one document, its tables, its page."""
