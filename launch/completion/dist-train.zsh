#compdef dist-train
# Completes dist-train in zsh.
_dist_train_completion() {
    local -a found plain open
    local type value help
    found=("${(@f)$(COMP_WORDS="${words[1,CURRENT]}" COMP_CWORD=$((CURRENT - 1)) _DIST_TRAIN_COMPLETE=zsh_complete \
        "${words[1]}" 2>/dev/null)}")
    for type value help in $found; do
        case $type in
            dir) _path_files -/ ;;
            file) compset -P 1 '*='; _path_files -f ;;
            *)
                [[ $help == _ ]] && value=${value//:/\\:} help= # click escapes a colon where there is a help text
                # What ends so goes on: no blank behind it.
                if [[ $value == *[=./] ]]; then open+=("$value:$help"); else plain+=("$value:$help"); fi
                ;;
        esac
    done
    (( $#plain )) && _describe -V dist-train plain -U
    (( $#open )) && _describe -V dist-train-open open -U -S ''
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _dist_train_completion "$@"
else
    compdef _dist_train_completion dist-train
fi
