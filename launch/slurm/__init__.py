"""All that we know about SLURM: its variables, programs and job states. The rest of launch/ uses these:

place        our place in a job, from the environment (allocation: a launcher on each node of an allocation)
submission   submits a job, with the script that `render` writes
queue        the state of jobs in the queue
stop         stops a job after a save (orphans: ends what an earlier start of a job left on this machine)
"""
