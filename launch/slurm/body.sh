# ---- From here on all scripts of dist-train are the same (launch/slurm/body.sh); slurm/README.md explains each line.
# It takes over prefix, python, site and grace; "$@" is for `dist-train train`.
if [[ -n $site ]]; then
    # shellcheck source=/dev/null
    source "$site" || exit 2
fi
set -u # not before: what a site reads, such as its module system, may not bear it
command=(${prefix[@]+"${prefix[@]}"} "$python" -m launch train --grace "$grace" "$@")

# srun does not take sbatch's --cpus-per-task over by itself.
[[ -n ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

job=$SLURM_JOB_ID
[[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
echo "job $job on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${command[*]}"

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --kill-on-bad-exit=0 --wait=300 --unbuffered "${command[@]}" &
step=$!

# USR1, the time limit is near, comes to this shell alone: srun hands it on to every supervisor, which saves and ends
# with 75. TERM, a scancel or a preemption, SLURM gives to the supervisors itself, and a second one would mean "at once":
# here this shell has only to outlive them.
trap 'signalled=yes; kill -USR1 "$step"' USR1
trap 'signalled=yes' TERM
while :; do
    signalled=
    wait "$step"
    code=$?
    [[ -n $signalled ]] || break # a trapped signal ended the wait, not the step
done

# 75: saved, start me again. From here alone, and not when the job has been cancelled, which its state tells.
if ((code == 75)); then
    if ! state=$(scontrol --oneliner show job "$job"); then
        echo "saved, but scontrol does not answer here. To go on: scontrol requeue $job" >&2
    elif [[ $state == *" Requeue=0 "* ]]; then
        echo "saved; not started again, as asked (dist-train stop, or --no-requeue)"
    elif [[ $state == *" JobState=RUNNING "* ]]; then
        echo "saved; back into the queue"
        scontrol requeue "$job"
    else
        echo "saved; not started again, since the job was cancelled or requeued from outside"
    fi
fi
exit "$code"
