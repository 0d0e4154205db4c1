# fish completion for flanneld, made by: flanneld completion fish

# Whether the command is one of these; '' is none, the daemon.
function __flanneld_command
    set -l words (commandline -opc)
    set -l command ''
    if set -q words[2]; and not string match -q -- '-*' $words[2]
        set command $words[2]
    end
    contains -- "$command" $argv
end

# Whether nothing is given yet, so that a command may follow.
function __flanneld_first
    test (count (commandline -opc)) -eq 1
end

complete -c flanneld -f
complete -c flanneld -n __flanneld_first -a status -d 'say how the daemon is, and what is wrong'
complete -c flanneld -n '__flanneld_command status' -o json -d 'print JSON, for programs'
complete -c flanneld -n '__flanneld_command status' -o ping -d 'send echo requests through the overlay to every peer, small ones and full-sized ones'
complete -c flanneld -n '__flanneld_command status' -o timeout -x -d 'wait so long for the daemon, and so long for the peers'
complete -c flanneld -n '__flanneld_command status' -o subnet-file -rF -d 'as the daemon has it'
complete -c flanneld -n '__flanneld_command status' -o status-socket -rF -d 'as the daemon has it'
complete -c flanneld -n __flanneld_first -a cleanup -d 'remove device, rules, routes and subnet file of a daemon that has ended'
complete -c flanneld -n '__flanneld_command cleanup' -o release -d 'delete this host\'s lease from etcd, too, so that another host may have the subnet at once'
complete -c flanneld -n __flanneld_first -a mk-docker-opts -d 'make Docker\'s options of the subnet file'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s f -rF -d 'read flannel\'s variables from FILE instead of /run/flannel/subnet.env'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s d -rF -d 'write Docker\'s options to FILE instead of /run/docker_opts.env'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s i -d 'write a variable for each option, such as DOCKER_OPT_MTU'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s c -d 'write one variable with all options'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s m -d 'leave out --ip-masq, which an old Docker does not know'
complete -c flanneld -n '__flanneld_command mk-docker-opts' -s k -x -d 'call the one variable NAME instead of DOCKER_OPTS'
complete -c flanneld -n __flanneld_first -a completion -d 'print a completion script for bash, zsh or fish'
complete -c flanneld -n '__flanneld_command completion' -a bash
complete -c flanneld -n '__flanneld_command completion' -a zsh
complete -c flanneld -n '__flanneld_command completion' -a fish
complete -c flanneld -n __flanneld_first -a man -d 'print this program\'s man page'
complete -c flanneld -n __flanneld_first -a version -d 'print the version'
complete -c flanneld -n __flanneld_first -a help -d 'print this'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-endpoints -x -d 'etcd servers, http://HOST:PORT or https://HOST:PORT, separated by commas'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-endpoint -x -d 'the same under the name it had in flannel 0.1'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-prefix -x -d 'where in etcd the network is'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-version -x -a 'auto 2 3' -d 'API of etcd that holds the network'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-keyfile -rF -d 'private key of the client certificate, PEM'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-certfile -rF -d 'client certificate, PEM'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-cafile -rF -d 'certificates of the authorities that may sign the server\'s, PEM'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-username -x -d 'user for etcd\'s authentication'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o etcd-password -x -d 'its password'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o iface -x -a '(ls /sys/class/net 2>/dev/null)' -d 'interface towards the other hosts, by name, by address or as a go-sockaddr template'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o iface-regex -x -d 'the same by a regular expression over addresses, then names, tried after all -iface'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o iface-can-reach -x -d 'the interface that leads to this address, tried last'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o public-ip -x -d 'IPv4 address that the other hosts send to'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o public-ipv6 -x -d 'the same for IPv6'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o subnet-file -rF -d 'where the subnet is written for Docker and others, and read at the next start'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o subnet-lease-renew-margin -x -d 'renew the lease of 24 hours when this much of it is left, 1 to 1439'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o keep-device -d 'leave the udp backend\'s device behind at the end, so that until the next start packets to the overlay wait or are lost rather than leave by the default route'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o accept-any-source -d 'let the backends udp and ipip take packets from any address and with any inner source, as flannel does'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o vxlan-tx-checksum -x -a 'auto on off' -d 'let network cards sum the packets inside VXLAN'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o wireguard-key-file -rF -d 'the wireguard backend\'s private key, made if it is not there'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o allow-extension -d 'run the commands that the network\'s configuration has for the extension backend, as this daemon\'s user'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o ip-masq -d 'masquerade what containers send out of the overlay network'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o ip-masq-fully-random-disable -d 'let masquerading keep the source port where it can, instead of a random one'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o iptables-forward-rules -d 'accept forwarding from and to the overlay network, which Docker\'s rules forbid'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o iptables-resync -x -d 'put back missing rules, and the blackhole route, this often'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o ip-blackhole-route -d 'a blackhole route for this host\'s own subnet, of the lowest priority'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o cleanup-on-exit -d 'do at the end what flanneld cleanup does'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o healthz-ip -x -d 'address for /healthz, /readyz and /metrics'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o healthz-port -x -d 'port for them'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o status-socket -rF -d 'Unix socket, for root alone, at which flanneld status asks'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -s v -x -d '1 and more'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o log-format -x -a 'text json' -d 'form of the log lines, which go to standard error'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o version -d 'print the version on standard error and end'
complete -c flanneld -n "__flanneld_command '' 'cleanup'" -o help -d 'print this and end'
