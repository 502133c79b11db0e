"""`permix view`: shows a folder of runs in a browser on this machine while the runs go on. It only reads and never writes."""
