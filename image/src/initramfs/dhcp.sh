#!/bin/sh
# What udhcpc calls to set up an interface: for kernels that do not understand ip= themselves, and for
# whoever runs udhcpc in the default guest.

case $1 in
    deconfig)
        ip addr flush dev "$interface"
        ip link set "$interface" up
        ;;
    bound | renew)
        [ "$mtu" ] && ip link set "$interface" mtu "$mtu"
        [ "$1" = renew ] || ip addr flush dev "$interface"
        ip addr replace "$ip/${mask:-24}" ${broadcast:+broadcast "$broadcast"} dev "$interface"
        for gateway in $router; do
            # A gateway outside the network, as with /32 addresses, is still on this link.
            ip route replace default via "$gateway" dev "$interface" onlink
            break
        done
        {
            [ "$domain" ] && echo "search $domain"
            for server in $dns; do echo "nameserver $server"; done
        } >/etc/resolv.conf
        [ "$hostname" ] && [ "$(hostname)" = "(none)" ] && hostname "$hostname"
        ;;
esac
exit 0
