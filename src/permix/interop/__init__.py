"""Read and write logs and files of other programs."""
