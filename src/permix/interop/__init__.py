"""Logs and files of other programs, read and written."""
