"""`permix view`: a folder of runs, looked at from a browser on this machine while they go on. Reads, and never writes."""
