# Completion of rfctl for bash. Commands and options are what rfctl itself says that there are; names of models are those
# that the daemon has.

_rfctl_models() {
    rfctl ps 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_rfctl_options() { # [COMMAND]
    rfctl $1 --help 2>/dev/null | grep -oE '^  (-., )?--[a-z-]+' | grep -oE -- '--[a-z-]+'
}

_rfctl() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --name | --as | --device | --dequant | --layout | --tp | --wait-for-memory | --ttl | --deadline | --trace | --metadata | \
                --socket | --count | -c) ((i++)) ;;
            -*) ;;
            *)
                command=${COMP_WORDS[i]}
                break
                ;;
        esac
    done
    case $before in
        --as) mapfile -t COMPREPLY < <(compgen -W 'auto native f32 f16 bf16' -- "$word") && return ;;
        --dequant) mapfile -t COMPREPLY < <(compgen -W 'auto cpu gpu' -- "$word") && return ;;
        --layout) mapfile -t COMPREPLY < <(compgen -W 'vllm hf' -- "$word") && return ;;
        --device)
            mapfile -t COMPREPLY < <(compgen -W "auto $(rfctl devices 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$word")
            return
            ;;
        --socket | --trace) mapfile -t COMPREPLY < <(compgen -f -- "$word") && return ;;
        --name | --wait-for-memory | --ttl | --deadline | --metadata | --count | -c) return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_rfctl_options "$command")" -- "$word")
        return
    fi
    case $command in
        '')
            mapfile -t COMPREPLY < <(compgen -W "$(rfctl --help 2>/dev/null | awk '/^  [a-z]/ { print $1 }')" -- "$word")
            ;;
        load | plan | inspect)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            ;;
        show | unload | pin | unpin | ttl | cancel | verify | dump)
            mapfile -t COMPREPLY < <(compgen -W "$(_rfctl_models)" -- "$word")
            ;;
        run)
            mapfile -t COMPREPLY < <(compgen -c -- "$word")
            ;;
    esac
}

# A colon is part of a name of a model, and of a device.
COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}
complete -F _rfctl rfctl
