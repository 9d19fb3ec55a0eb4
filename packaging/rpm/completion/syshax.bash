# bash completion of syshax(1). Written by `make manuals`.
_syshax() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words
    case $before in
        --config|--socket) COMPREPLY=($(compgen -f -- "$word")); return ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="init config check-config run status reload drain pd units interfaces model image doctor explain simulate estimate bench version"
    elif [ "${COMP_WORDS[1]}" = units ] && [ "$COMP_CWORD" -eq 3 ]; then
        words=$(syshax interfaces --json 2>/dev/null | sed -n 's/.*"unit": "\([^"]*\)".*/\1/p')
    else
        case ${COMP_WORDS[1]} in
            init) words="--model --name --force --print --config --help" ;;
            config) words="--unset --config --json --help" ;;
            check-config) words="--print --all --host -q --quiet --config --json --help" ;;
            run) words="--config --help" ;;
            status) words="--watch --interval --config --socket --json --help" ;;
            reload) words="--wait --timeout --config --socket --json --help" ;;
            drain) words="--timeout --config --socket --json --help" ;;
            pd) words="check --help" ;;
            units) words="list show restart stop start logs --command -n --lines --config --socket --json --help" ;;
            interfaces) words="--config --socket --json --help" ;;
            model) words="--config --socket --json --help" ;;
            image) words="list save load --engine --socket --config --json --help" ;;
            doctor) words="--config --json --help" ;;
            explain) words="--chrome-trace --config --socket --json --help" ;;
            simulate) words="--host --rate --requests --longest --flex-share --clients --seed --all --json --help" ;;
            estimate) words="--host --prompt --output --tpot-ms --json --help" ;;
            bench) words="serve dataset calibrate --help" ;;
            version) words="--json --help" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -F _syshax syshax
