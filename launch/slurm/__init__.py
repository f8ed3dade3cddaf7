"""SLURM from the outside: the script of a job (render), the queue (queue), what a run knows of its job (jobs)."""
