# ---- From here on all scripts of dist-train are the same (launch/slurm/body.sh); slurm/README.md explains each line.
# It takes over prefix, python, site and grace; "$@" is for `dist-train train`.
if [[ -n $site ]]; then
    # shellcheck source=/dev/null
    source "$site" || exit 2
fi
set -u # not before: what a site reads, such as its module system, may not bear it
# More options for srun, for containers that are some of them.
read -ra options <<<"${DIST_TRAIN_SRUN:-}"
command=(${prefix[@]+"${prefix[@]}"} "$python" -m dist_train.launch train --grace "$grace" "$@")

# srun does not take sbatch's --cpus-per-task over by itself.
[[ -n ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

job=$SLURM_JOB_ID
[[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
echo "job $job on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${command[*]}"

# USR1, the time limit is near, comes to this shell alone: srun hands it on to every supervisor, which saves and ends
# with 75. TERM, a scancel or a preemption, SLURM gives to the supervisors itself, and a second one would mean "at once":
# here this shell has only to outlive them.
step='' signalled='' time_is_up='' asked=''
trap 'signalled=yes asked=yes time_is_up=yes; [[ -n $step ]] && kill -USR1 "$step"' USR1
trap 'signalled=yes asked=yes' TERM

for try in 1 2 3; do
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --kill-on-bad-exit=0 --wait=300 --unbuffered ${options[@]+"${options[@]}"} "${command[@]}" &
    step=$!
    [[ -n $time_is_up ]] && kill -USR1 "$step"
    while :; do
        signalled=
        wait "$step"
        code=$?
        [[ -n $signalled ]] || break # a trapped signal ended the wait, not the step
    done
    # Codes from 160 to 254 are srun's own: SLURM could not start the launchers, since a node was slow to answer, say.
    if ((code < 160 || code == 255 || try == 3)) || [[ -n $asked ]]; then break; fi
    echo "srun could not start the launchers (its exit code is $code): once more" >&2
done

# 75: start me again, from what is saved. 137: a supervisor was killed, which says nothing against the training. 1, 138
# and srun's own: USR1 came before a supervisor could take it. The next start gives up when three in a row have saved
# nothing new.
((code == 75 || code == 137)) && again=yes || again=
((code == 1 || code == 138 || (code >= 160 && code < 255))) && again=$time_is_up
if [[ -n $again ]]; then
    # From here alone, and not when the job has been cancelled or put back already, which its state tells.
    if ! command -v scontrol >/dev/null; then
        echo "to be started again (exit code 75), but this node has no scontrol. To go on: scontrol requeue $job" >&2
        code=75
    elif ! state=$(scontrol --oneliner show job "$job"); then
        echo "to be started again (exit code 75), but scontrol gets no answer. To go on: scontrol requeue $job" >&2
        code=75
    elif [[ $state == *" Requeue=0 "* ]]; then
        echo "not started again, as asked (dist-train stop, or --no-requeue)"
        code=143
    elif [[ $state != *" JobState=RUNNING "* ]]; then
        echo "not started again from here: the job was cancelled, or requeued from outside"
    elif echo "back into the queue" && ! scontrol requeue "$job"; then
        echo "to be started again (exit code 75), but SLURM refused. To go on: sbatch it anew with --resume RUN" >&2
        code=75
    fi
fi
exit "$code"
