# Completion of tstunnel for bash 4 and later. What stands between braces is written by `make pages`.
# shellcheck shell=bash

# The hosts that the client's configuration names one by one.
_tstunnel_hosts() {
    local files=("${TSTUNNEL_CONFIG:-${XDG_CONFIG_HOME:-$HOME/.config}/tstunnel/config.toml}")
    [[ ${TSTUNNEL_CONFIG-} ]] || files+=(/etc/tstunnel/config.toml)
    sed -n "s/^[[:space:]]*\[host\.[\"']\{0,1\}\([^]\"'*?]*\)[\"']\{0,1\}\].*/\1/p" "${files[@]}" 2>/dev/null
}

_tstunnel() {
    # To readline `=` and `:` are words of their own, and only what stands behind the last of them is replaced.
    local piece is_joined='' words=() current=${COMP_WORDS[COMP_CWORD]}
    [[ $current == *[!=:]* ]] || current=''
    for piece in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if ((${#words[@]})) && [[ $is_joined || $piece == [=:]* ]]; then
            words[${#words[@]} - 1]+=$piece
        else
            words+=("$piece")
        fi
        is_joined=''
        [[ $piece != [=:]* ]] || is_joined=yes
    done

    local last=$((${#words[@]} - 1)) next=1 name=${words[0]} commands='' behind='' operands=() flags='' valued=''
    local names
    # {names}
    names='ssh scp connect exec upload check classify mutagen status serve pki help'
    # {/names}
    if ((last == 0)); then
        [[ $current != -* ]] || names='--help --version'
        mapfile -t COMPREPLY < <(compgen -W "$names" -- "$current")
        return
    fi
    case $name in
        # {groups}
        pki) commands='init server client revoke' ;;
        # {/groups}
    esac
    if [[ $commands ]]; then
        if ((last == 1)); then
            [[ $current != -* ]] || commands='--help'
            mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
            return
        fi
        name+=" ${words[1]}" next=2
    fi
    case $name in
        # {commands}
        'ssh')
            operands=(program)
            ;;
        'scp')
            operands=(program)
            ;;
        'connect')
            operands=(host)
            flags='--target --raw --endpoint --cert --key --ca --user --sni --upgrade-base --config --help'
            valued='--target:text --endpoint:text --cert:file --key:file --ca:file --user:text --sni:text --upgrade-base:text --config:file'
            ;;
        'exec')
            operands=(host text)
            flags='--env --raw --endpoint --cert --key --ca --user --sni --upgrade-base --config --help'
            valued='--env:text --endpoint:text --cert:file --key:file --ca:file --user:text --sni:text --upgrade-base:text --config:file'
            behind=yes
            ;;
        'upload')
            operands=(file host)
            flags='--mode --no-compress --endpoint --cert --key --ca --user --sni --upgrade-base --config --help'
            valued='--mode:text --endpoint:text --cert:file --key:file --ca:file --user:text --sni:text --upgrade-base:text --config:file'
            ;;
        'check')
            operands=(host)
            flags='--target --throughput --mutagen --json --endpoint --cert --key --ca --user --sni --upgrade-base --config --help'
            valued='--target:text --endpoint:text --cert:file --key:file --ca:file --user:text --sni:text --upgrade-base:text --config:file'
            ;;
        'classify')
            operands=()
            flags='--exit-status --json --help'
            valued='--exit-status:text'
            ;;
        'mutagen')
            operands=(program)
            ;;
        'status')
            operands=()
            flags='--json --help'
            valued=''
            ;;
        'serve')
            operands=(text text)
            flags='--config --check --as --user --source --authorize --help'
            valued='--config:file --as:text --user:text --source:text'
            behind=yes
            ;;
        'pki init')
            operands=(text)
            flags='--dir --help'
            valued='--dir:folder'
            ;;
        'pki server')
            operands=(text)
            flags='--dir --help'
            valued='--dir:folder'
            ;;
        'pki client')
            operands=(text)
            flags='--dir --help'
            valued='--dir:folder'
            ;;
        'pki revoke')
            operands=(text)
            flags='--dir --help'
            valued='--dir:folder'
            ;;
        'help')
            operands=(name)
            flags='--help'
            valued=''
            ;;
        # {/commands}
    esac

    # Which option waits for its value, and how many operands there are before the cursor.
    local word option='' count=0
    for word in "${words[@]:next:last-next}"; do
        if [[ $option ]]; then
            option=''
        elif [[ $word == -* ]]; then
            [[ " $valued " != *" $word:"* ]] || option=$word
        else
            ((++count))
        fi
    done
    # Nothing behind the first word of a remote command is tstunnel's.
    [[ ! $behind ]] || ((count < 2)) || return

    local kind=${operands[count]-} value=${words[last]}
    if [[ $value == --*=* ]]; then
        option=${value%%=*} value=${value#*=}
    fi
    # What stands behind a colon, as in HOST:NAME, is nothing that is known here.
    [[ $value == "$current" ]] || return
    if [[ $option ]]; then
        kind=" $valued "
        kind=${kind#*" $option:"}
        kind=${kind%% *}
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$current")
        return
    fi
    case $kind in
        file) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        folder) mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
        host) mapfile -t COMPREPLY < <(compgen -W "$(_tstunnel_hosts)" -- "$current") ;;
        name) mapfile -t COMPREPLY < <(compgen -W "$names" -- "$current") ;;
        # Another program, which may have a completion of its own.
        program) ! declare -F _command_offset >/dev/null || _command_offset 1 ;;
    esac
    case $kind in file | folder) compopt -o filenames ;; esac
}
complete -F _tstunnel tstunnel
