"""The page: one HTML file that draws itself from what it carries, and transcripts beside it."""
