# Completes dist-train in bash 4.4 or newer.
_dist_train_completion() {
    local IFS=$'\n' found type value
    found=$(COMP_WORDS=${COMP_LINE:0:COMP_POINT} COMP_BREAKS=$COMP_WORDBREAKS _DIST_TRAIN_COMPLETE=bash_complete \
        "$1" 2>/dev/null)
    COMPREPLY=()
    for value in $found; do
        type=${value%%,*} value=${value#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            *) COMPREPLY+=("$value") ;;
        esac
    done
    # What ends so goes on: no blank behind it.
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace
    fi
}
complete -o nosort -F _dist_train_completion dist-train
