"""SLURM, all that is known of it: its variables, programs and job states. The rest of launch/ uses these:

place        our place in a job, from the environment; allocation and start: a launcher on each node of an allocation
submission   submits a job, whose script is `render`'s
queue        looks: what the queue says of jobs; jobs: what a run directory knows of its own
stop         stops a job with a save; orphans: what an earlier start of a job has left on this machine
"""
