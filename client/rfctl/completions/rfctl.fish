# Completion of rfctl for fish. Commands and options are what rfctl itself says that there are; names of models are those
# that the daemon has.

function __rfctl_command
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word --name --as --device --dequant --layout --tp --wait-for-memory --ttl --deadline --trace --metadata --socket --count -c
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
            return
        end
    end
end

function __rfctl_no_command
    test -z (__rfctl_command)
end

function __rfctl_command_is
    contains -- (__rfctl_command) $argv
end

function __rfctl_options
    rfctl (__rfctl_command) --help 2>/dev/null | string match -r -- '^  (?:-., )?(--[a-z-]+)' | string match -- '--*'
end

complete -c rfctl -f
complete -c rfctl -n __rfctl_no_command -a "(rfctl --help 2>/dev/null | string match -r '^  [a-z]+' | string trim)"
complete -c rfctl -n 'string match -q -- "-*" (commandline -ct)' -a '(__rfctl_options)'
complete -c rfctl -n '__rfctl_command_is load plan inspect run' -F
complete -c rfctl -n '__rfctl_command_is show unload pin unpin ttl cancel verify dump' \
    -a "(rfctl ps 2>/dev/null | awk 'NR > 1 { print \$1 }')"
complete -c rfctl -l as -x -a 'auto native f32 f16 bf16'
complete -c rfctl -l dequant -x -a 'auto cpu gpu'
complete -c rfctl -l layout -x -a 'vllm hf'
complete -c rfctl -l tp -x
complete -c rfctl -l device -x -a "auto (rfctl devices 2>/dev/null | awk 'NR > 1 { print \$1 }')"
complete -c rfctl -l socket -r -F
complete -c rfctl -l trace -r -F
for option in name wait-for-memory ttl deadline metadata count
    complete -c rfctl -l $option -x
end
