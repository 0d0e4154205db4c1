# bash completion for flanneld, made by: flanneld completion bash

_flanneld() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  local command='' flag='' before='' equals='' words=''
  COMPREPLY=()
  if ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[1]} != -* ]]; then
    command=${COMP_WORDS[1]}
  fi

  # -flag VALUE, or -flag=VALUE, which is three words where = is in COMP_WORDBREAKS.
  if [[ $cur == -*=* ]]; then
    flag=${cur%%=*} before=${cur%%=*}= cur=${cur#*=} equals=1
  elif [[ $cur == = ]]; then
    flag=$prev cur='' equals=1
  elif [[ $prev == = ]] && ((COMP_CWORD > 2)); then
    flag=${COMP_WORDS[COMP_CWORD-2]} equals=1
  elif [[ $prev == -* ]]; then
    flag=$prev
  fi
  flag=${flag#-} flag=${flag#-}
  case $flag in
    etcd-endpoints|etcd-endpoint|etcd-prefix|etcd-username|etcd-password|iface-regex|iface-can-reach|public-ip|public-ipv6|subnet-lease-renew-margin|iptables-resync|healthz-ip|healthz-port|v|timeout|k)
      return ;;
    etcd-version)
      mapfile -t COMPREPLY < <(compgen -P "$before" -W 'auto 2 3' -- "$cur")
      return ;;
    etcd-keyfile|etcd-certfile|etcd-cafile|subnet-file|wireguard-key-file|status-socket|f|d)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -P "$before" -f -- "$cur")
      return ;;
    iface)
      mapfile -t COMPREPLY < <(compgen -P "$before" -W "$(cd /sys/class/net 2>/dev/null && echo *)" -- "$cur")
      return ;;
    keep-device|accept-any-source|allow-extension|ip-masq|ip-masq-fully-random-disable|iptables-forward-rules|ip-blackhole-route|cleanup-on-exit|version|help)
      if [[ $equals ]]; then
        mapfile -t COMPREPLY < <(compgen -P "$before" -W 'true false' -- "$cur")
        return
      fi ;;
    vxlan-tx-checksum)
      mapfile -t COMPREPLY < <(compgen -P "$before" -W 'auto on off' -- "$cur")
      return ;;
    log-format)
      mapfile -t COMPREPLY < <(compgen -P "$before" -W 'text json' -- "$cur")
      return ;;
  esac

  case $command in
    '') words='-etcd-endpoints -etcd-endpoint -etcd-prefix -etcd-version -etcd-keyfile -etcd-certfile -etcd-cafile -etcd-username -etcd-password -iface -iface-regex -iface-can-reach -public-ip -public-ipv6 -subnet-file -subnet-lease-renew-margin -keep-device -accept-any-source -vxlan-tx-checksum -wireguard-key-file -allow-extension -ip-masq -ip-masq-fully-random-disable -iptables-forward-rules -iptables-resync -ip-blackhole-route -cleanup-on-exit -healthz-ip -healthz-port -status-socket -v -log-format -version -help' ;;
    status) words='-json -ping -timeout -subnet-file -status-socket' ;;
    cleanup) words='-release -etcd-endpoints -etcd-endpoint -etcd-prefix -etcd-version -etcd-keyfile -etcd-certfile -etcd-cafile -etcd-username -etcd-password -iface -iface-regex -iface-can-reach -public-ip -public-ipv6 -subnet-file -subnet-lease-renew-margin -keep-device -accept-any-source -vxlan-tx-checksum -wireguard-key-file -allow-extension -ip-masq -ip-masq-fully-random-disable -iptables-forward-rules -iptables-resync -ip-blackhole-route -cleanup-on-exit -healthz-ip -healthz-port -status-socket -v -log-format -version -help' ;;
    mk-docker-opts) words='-f -d -i -c -m -k' ;;
    completion) words='bash zsh fish' ;;
    man) words='' ;;
    version) words='' ;;
    help) words='' ;;
  esac
  if ((COMP_CWORD == 1)); then # commands come first
    words+=' status cleanup mk-docker-opts completion man version help'
  fi
  if [[ $cur == --* ]]; then # the same flags with two dashes
    words=" $words" words=${words// -/ --}
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _flanneld flanneld
