# Completes dist-train in fish.
function _dist_train_completion
    set -l found (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -ct) _DIST_TRAIN_COMPLETE=fish_complete \
        dist-train 2>/dev/null)
    for item in $found
        set -l part (string split -m 1 , -- $item)
        switch $part[1]
            case dir
                __fish_complete_directories $part[2]
            case file
                set -l key (string match -r -- '^.*=' $part[2])
                __fish_complete_path (string replace -- "$key" "" $part[2]) | string replace -r '^' -- "$key"
            case '*'
                echo $part[2]
        end
    end
end
complete --no-files --command dist-train --arguments '(_dist_train_completion)'
