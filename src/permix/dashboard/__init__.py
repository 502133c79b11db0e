"""`permix view`: show a folder of runs in a browser on this machine while the runs go on. It never writes to the folder."""
