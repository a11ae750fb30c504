"""Where runs are kept: in memory for tests, in a SQL database for everything else."""
