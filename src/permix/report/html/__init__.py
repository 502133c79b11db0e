"""The HTML page of a report: one file with its data and scripts, and transcripts in separate files."""
