# Completion of tstunnel for fish. What stands between braces is written by `make pages`.

# The hosts that the client's configuration names one by one.
function __tstunnel_hosts
    set -l files $TSTUNNEL_CONFIG
    if test -z "$files"
        set -l folder $XDG_CONFIG_HOME
        test -n "$folder"; or set folder $HOME/.config
        set files $folder/tstunnel/config.toml /etc/tstunnel/config.toml
    end
    sed -n "s/^[[:space:]]*\[host\.[\"']\{0,1\}\([^]\"'*?]*\)[\"']\{0,1\}\].*/\1/p" $files 2>/dev/null
end

# Prints the command before the cursor, and a line for each of its operands.
function __tstunnel_words
    # {valued}
    set -l valued --as --ca --cert --config --dir --endpoint --env --exit-status --key --mode --shell --sni --source --target --upgrade-base --user
    # {/valued}
    set -l words (commandline -opc)[2..]
    set -l found
    set -l is_value no
    for word in $words
        if test $is_value = yes
            set is_value no
        else if contains -- "$word" $valued
            set is_value yes
        else if not string match -q -- '-*' "$word"
            set -a found $word
        end
    end
    # {groups}
    set -l groups pki
    # {/groups}
    if contains -- "$found[1]" $groups; and set -q found[2]
        set found "$found[1] $found[2]" $found[3..]
    end
    string join -- \n $found
end

# Whether the cursor stands behind this command, and before the second operand where that begins a remote command.
function __tstunnel_in
    set -l found (__tstunnel_words)
    test "$found[1]" = "$argv[1]"; or return
    test "$argv[2]" != before; or not set -q found[3]
end

# Whether the cursor stands at this operand, counted from 1, of this command.
function __tstunnel_at
    set -l found (__tstunnel_words)
    test "$found[1]" = "$argv[1]"; and test (count $found) = $argv[2]
end

complete -c tstunnel -f
# {commands}
complete -c tstunnel -n '__tstunnel_at "" 0' -a ssh -d 'stand in for OpenSSH\'s ssh'
complete -c tstunnel -n '__tstunnel_at "" 0' -a scp -d 'stand in for OpenSSH\'s scp, to put files there'
complete -c tstunnel -n '__tstunnel_at "" 0' -a connect -d 'join stdin and stdout to a stream on a host'
complete -c tstunnel -n '__tstunnel_at "" 0' -a exec -d 'run a command on a host; its exit status counts'
complete -c tstunnel -n '__tstunnel_at "" 0' -a upload -d 'put a file into the account\'s home directory'
complete -c tstunnel -n '__tstunnel_at "" 0' -a check -d 'look at the way to a host, step by step'
complete -c tstunnel -n '__tstunnel_at "" 0' -a classify -d 'say what a failed command\'s stderr means'
complete -c tstunnel -n '__tstunnel_at "" 0' -a mutagen -d 'run mutagen, and take tstunnel:// URLs'
complete -c tstunnel -n '__tstunnel_at "" 0' -a status -d 'list the live tunnels of this account'
complete -c tstunnel -n '__tstunnel_at "" 0' -a serve -d 'run the server'
complete -c tstunnel -n '__tstunnel_at "" 0' -a pki -d 'a small certificate authority'
complete -c tstunnel -n '__tstunnel_at "" 0' -a help -d 'show what there is, or what a command takes'
complete -c tstunnel -n '__tstunnel_at "" 0' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at "" 0' -s V -l version -d 'print the version'
complete -c tstunnel -n '__tstunnel_at pki 1' -a init -d 'make a certificate authority'
complete -c tstunnel -n '__tstunnel_at pki 1' -a server -d 'make a server\'s certificate for DNS names'
complete -c tstunnel -n '__tstunnel_at pki 1' -a client -d 'make a client\'s certificate'
complete -c tstunnel -n '__tstunnel_at pki 1' -a revoke -d 'revoke certificates, and renew the list'
complete -c tstunnel -n '__tstunnel_in ssh' -a '(__fish_complete_subcommand --fcs-skip=1)'
complete -c tstunnel -n '__tstunnel_in scp' -a '(__fish_complete_subcommand --fcs-skip=1)'
complete -c tstunnel -n '__tstunnel_in connect' -l target -x -d 'tcp:HOST:PORT or unix:PATH; default: the host\'s own'
complete -c tstunnel -n '__tstunnel_in connect' -l raw -d 'send plain bytes: no stderr, exit status or resuming'
complete -c tstunnel -n '__tstunnel_in connect' -l endpoint -x -d 'where to connect'
complete -c tstunnel -n '__tstunnel_in connect' -l cert -r -F -d 'the client\'s certificate chain, PEM'
complete -c tstunnel -n '__tstunnel_in connect' -l key -r -F -d 'the client\'s private key, PEM'
complete -c tstunnel -n '__tstunnel_in connect' -l ca -r -F -d 'the trust anchors, PEM; default: the system\'s'
complete -c tstunnel -n '__tstunnel_in connect' -l user -x -d 'the account to ask for'
complete -c tstunnel -n '__tstunnel_in connect' -l sni -x -d 'the server name, where it is not HOST.ENDPOINT'
complete -c tstunnel -n '__tstunnel_in connect' -l upgrade-base -x -d 'the path prefix of requests; default: /tinyscale/v1'
complete -c tstunnel -n '__tstunnel_in connect' -l config -r -F -d 'read this file alone, not the user\'s and the system\'s'
complete -c tstunnel -n '__tstunnel_in connect' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at connect 1' -a '(__tstunnel_hosts)'
complete -c tstunnel -n '__tstunnel_in exec before' -l env -x -d 'send a variable that the host allows; repeatable'
complete -c tstunnel -n '__tstunnel_in exec before' -l raw -d 'send plain bytes: no stderr, exit status or resuming'
complete -c tstunnel -n '__tstunnel_in exec before' -l endpoint -x -d 'where to connect'
complete -c tstunnel -n '__tstunnel_in exec before' -l cert -r -F -d 'the client\'s certificate chain, PEM'
complete -c tstunnel -n '__tstunnel_in exec before' -l key -r -F -d 'the client\'s private key, PEM'
complete -c tstunnel -n '__tstunnel_in exec before' -l ca -r -F -d 'the trust anchors, PEM; default: the system\'s'
complete -c tstunnel -n '__tstunnel_in exec before' -l user -x -d 'the account to ask for'
complete -c tstunnel -n '__tstunnel_in exec before' -l sni -x -d 'the server name, where it is not HOST.ENDPOINT'
complete -c tstunnel -n '__tstunnel_in exec before' -l upgrade-base -x -d 'the path prefix of requests; default: /tinyscale/v1'
complete -c tstunnel -n '__tstunnel_in exec before' -l config -r -F -d 'read this file alone, not the user\'s and the system\'s'
complete -c tstunnel -n '__tstunnel_in exec before' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at exec 1' -a '(__tstunnel_hosts)'
complete -c tstunnel -n '__tstunnel_in upload' -l mode -x -d 'permission bits in octal; default: the file\'s own'
complete -c tstunnel -n '__tstunnel_in upload' -l no-compress -d 'send the file as it is'
complete -c tstunnel -n '__tstunnel_in upload' -l endpoint -x -d 'where to connect'
complete -c tstunnel -n '__tstunnel_in upload' -l cert -r -F -d 'the client\'s certificate chain, PEM'
complete -c tstunnel -n '__tstunnel_in upload' -l key -r -F -d 'the client\'s private key, PEM'
complete -c tstunnel -n '__tstunnel_in upload' -l ca -r -F -d 'the trust anchors, PEM; default: the system\'s'
complete -c tstunnel -n '__tstunnel_in upload' -l user -x -d 'the account to ask for'
complete -c tstunnel -n '__tstunnel_in upload' -l sni -x -d 'the server name, where it is not HOST.ENDPOINT'
complete -c tstunnel -n '__tstunnel_in upload' -l upgrade-base -x -d 'the path prefix of requests; default: /tinyscale/v1'
complete -c tstunnel -n '__tstunnel_in upload' -l config -r -F -d 'read this file alone, not the user\'s and the system\'s'
complete -c tstunnel -n '__tstunnel_in upload' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at upload 1' -F
complete -c tstunnel -n '__tstunnel_at upload 2' -a '(__tstunnel_hosts)'
complete -c tstunnel -n '__tstunnel_in check' -l target -x -d 'see whether this target takes connections'
complete -c tstunnel -n '__tstunnel_in check' -l throughput -d 'measure it with so many bytes; default: 32M'
complete -c tstunnel -n '__tstunnel_in check' -l mutagen -d 'look at Mutagen and its daemon too'
complete -c tstunnel -n '__tstunnel_in check' -l json -d 'print a JSON object'
complete -c tstunnel -n '__tstunnel_in check' -l endpoint -x -d 'where to connect'
complete -c tstunnel -n '__tstunnel_in check' -l cert -r -F -d 'the client\'s certificate chain, PEM'
complete -c tstunnel -n '__tstunnel_in check' -l key -r -F -d 'the client\'s private key, PEM'
complete -c tstunnel -n '__tstunnel_in check' -l ca -r -F -d 'the trust anchors, PEM; default: the system\'s'
complete -c tstunnel -n '__tstunnel_in check' -l user -x -d 'the account to ask for'
complete -c tstunnel -n '__tstunnel_in check' -l sni -x -d 'the server name, where it is not HOST.ENDPOINT'
complete -c tstunnel -n '__tstunnel_in check' -l upgrade-base -x -d 'the path prefix of requests; default: /tinyscale/v1'
complete -c tstunnel -n '__tstunnel_in check' -l config -r -F -d 'read this file alone, not the user\'s and the system\'s'
complete -c tstunnel -n '__tstunnel_in check' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at check 1' -a '(__tstunnel_hosts)'
complete -c tstunnel -n '__tstunnel_in classify' -l exit-status -x -d 'the exit status that the command had'
complete -c tstunnel -n '__tstunnel_in classify' -l json -d 'print JSON: code, install, windows, retry, hint'
complete -c tstunnel -n '__tstunnel_in classify' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in mutagen' -a '(__fish_complete_subcommand --fcs-skip=1)'
complete -c tstunnel -n '__tstunnel_in status' -l json -d 'print a JSON list'
complete -c tstunnel -n '__tstunnel_in status' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in serve before' -l config -r -F -d 'default: /etc/tstunnel/server.toml'
complete -c tstunnel -n '__tstunnel_in serve before' -l check -d 'read everything, say what it comes to, and start nothing'
complete -c tstunnel -n '__tstunnel_in serve before' -l as -x -d 'with --check: whose question it is'
complete -c tstunnel -n '__tstunnel_in serve before' -l user -x -d 'with --as: the account to ask for'
complete -c tstunnel -n '__tstunnel_in serve before' -l source -x -d 'with --as: where from; default: 127.0.0.1'
complete -c tstunnel -n '__tstunnel_in serve before' -l authorize -d 'with --as: ask the `authorize` command too'
complete -c tstunnel -n '__tstunnel_in serve before' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in "pki init"' -l dir -x -a '(__fish_complete_directories)' -d 'the authority\'s folder; default: ./tstunnel-pki'
complete -c tstunnel -n '__tstunnel_in "pki init"' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in "pki server"' -l dir -x -a '(__fish_complete_directories)' -d 'the authority\'s folder; default: ./tstunnel-pki'
complete -c tstunnel -n '__tstunnel_in "pki server"' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in "pki client"' -l dir -x -a '(__fish_complete_directories)' -d 'the authority\'s folder; default: ./tstunnel-pki'
complete -c tstunnel -n '__tstunnel_in "pki client"' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in "pki revoke"' -l dir -x -a '(__fish_complete_directories)' -d 'the authority\'s folder; default: ./tstunnel-pki'
complete -c tstunnel -n '__tstunnel_in "pki revoke"' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_in help' -s h -l help -d 'show this'
complete -c tstunnel -n '__tstunnel_at help 1' -a '(complete -C "tstunnel ")'
# {/commands}
