//! What a network administrator of a namespace may try. The scripts are told `LINK`, `SELF`, `GATE` (the host),
//! `BESIDE` (another sandbox), `GATE_MAC`, `BESIDE_MAC`, and run with the rules flushed.

/// One thing to try.
pub(crate) struct Act {
    pub(crate) name: &'static str,
    /// For a kind of link that a kernel may lack: the command that makes it, and what follows if it could be made.
    pub(crate) made_by: Option<(&'static str, &'static str)>,
    /// What else is done.
    pub(crate) script: &'static str,
    /// Whether packets come out of the link by it: those must be seen to be dropped.
    pub(crate) leaves: bool,
}

/// Writes packets and frames by hand.
pub(crate) const FRAMES: &str = include_str!("frames.py");

const fn act(name: &'static str, script: &'static str) -> Act {
    Act { name, made_by: None, script, leaves: true }
}

/// A link named `t0`. Made, it is brought up, gets an address and the ways to everywhere.
const fn link(name: &'static str, made_by: &'static str, leaves: bool) -> Act {
    const UP: &str = "
        ip addr add 10.77.0.1/24 dev t0; ip addr add fd77::1/64 dev t0 nodad; ip link set t0 up
        ip route replace $BESIDE dev t0 src 10.77.0.1; ip route replace $GATE/32 dev t0 src 10.77.0.1 || true
        ip -6 route replace $BESIDE6 dev t0; ";
    Act { name, made_by: Some((made_by, UP)), script: "", leaves }
}

/// All that is tried.
pub(crate) const ACTS: &[Act] = &[
    act("rules flushed", "ip route replace default via $GATE dev $LINK onlink"),
    act(
        "rules of its own",
        "nft add table inet mine
         nft add chain inet mine out '{ type filter hook output priority -400; policy accept; }'
         nft add rule inet mine out meta priority set 1:1 accept
         ip route replace default via $GATE dev $LINK onlink",
    ),
    act(
        "its source rewritten",
        "nft add table ip mine
         nft add chain ip mine post '{ type nat hook postrouting priority 100; }'
         nft add rule ip mine post snat to $BESIDE
         ip route replace default via $GATE dev $LINK onlink",
    ),
    act(
        "another address",
        "ip addr flush dev $LINK scope global; ip addr add 10.9.0.77/16 dev $LINK; ip addr add fd09::77/48 dev $LINK nodad
         ip route replace default via $GATE dev $LINK onlink src 10.9.0.77",
    ),
    act(
        "its neighbour's address",
        "ip addr add 10.9.1.3/24 dev $LINK; ip addr add $BESIDE6/64 dev $LINK nodad; ip addr del $BESIDE6/64 dev $LINK
         ip route replace default via $GATE dev $LINK onlink src 10.9.1.3",
    ),
    act(
        "another link-layer address",
        "ip link set $LINK down; ip link set $LINK address 02:00:00:00:00:99; ip link set $LINK up
         ip route replace default via $GATE dev $LINK onlink",
    ),
    act(
        "its neighbour's link-layer address",
        "ip link set $LINK down; ip link set $LINK address $BESIDE_MAC; ip link set $LINK up
         ip route replace default via $GATE dev $LINK onlink",
    ),
    act(
        "neighbours written by hand",
        "for other in $GATE $BESIDE; do ip neigh replace $other lladdr $GATE_MAC nud permanent dev $LINK || true; done
         for other in $GATE6 $BESIDE6; do ip neigh replace $other lladdr ff:ff:ff:ff:ff:ff nud permanent dev $LINK || true; done
         ip route replace $BESIDE dev $LINK; ip -6 route replace $BESIDE6 dev $LINK",
    ),
    act("spoofed ARP and neighbour discovery", "python3 $FRAMES neighbours"),
    act("encapsulations written by hand", "python3 $FRAMES tunnels"),
    act("packets that resemble the admitted one", "python3 $FRAMES disguises"),
    act("tagged frames and frames of other protocols", "python3 $FRAMES tags"),
    act(
        "routes and rules",
        "ip rule add from all lookup 77 priority 1; ip route add default dev $LINK table 77
         ip -6 rule add from all lookup 77 priority 1; ip -6 route add default dev $LINK table 77",
    ),
    act(
        "forwarding",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.proxy_arp=1 \\
           net.ipv4.conf.all.accept_source_route=1 net.ipv4.conf.all.route_localnet=1
         ip route replace default via $GATE dev $LINK onlink",
    ),
    link("veth pair", "ip link add t0 type veth peer name t1 && ip link set t1 up", false),
    link("bridge", "ip link add t0 type bridge", false),
    Act {
        name: "bridge over its link",
        made_by: Some((
            "ip link add br0 type bridge",
            "
            ip link add t0 type veth peer name t1; ip link set t1 master br0
            # `lo` cannot be put into a bridge.
            ip link set $LINK master br0 || [ $LINK = lo ]
            ip link set br0 up; ip link set t1 up; ip link set t0 up
            ip addr flush dev $LINK scope global; ip addr add 10.9.0.2/24 dev t0; ip route replace default via 10.9.0.1 dev t0",
        )),
        script: "",
        leaves: true,
    },
    link("dummy", "ip link add t0 type dummy", false),
    link("macvlan", "[ $LINK != lo ] || ip link add v0 type veth peer name v1; ip link add link ${LINK/lo/v0} name t0 type macvlan", true),
    link("macvtap", "[ $LINK != lo ] || ip link add v0 type veth peer name v1; ip link add link ${LINK/lo/v0} name t0 type macvtap", true),
    link("ipvlan", "ip link add link $LINK name t0 type ipvlan", true),
    link("vlan", "ip link add link $LINK name t0 type vlan id 7", true),
    link("bond", "ip link add t0 type bond", false),
    link("ifb", "ip link add t0 type ifb", false),
    link("vrf", "ip link add t0 type vrf table 10", false),
    link("ipip", "ip link add t0 type ipip local $SELF remote $GATE", true),
    link("gre", "ip link add t0 type gre local $SELF remote $GATE", true),
    link("gretap", "ip link add t0 type gretap local $SELF remote $GATE", true),
    link("sit", "ip link add t0 type sit local $SELF remote $GATE", true),
    link("ip6tnl", "ip link add t0 type ip6tnl local $SELF6 remote $GATE6", true),
    link("vxlan", "ip link add t0 type vxlan id 5 local $SELF remote $GATE dstport 4789 dev $LINK", true),
    link("geneve", "ip link add t0 type geneve id 5 remote $GATE", true),
    link("wireguard", "ip link add t0 type wireguard", false),
    link("xfrm", "ip link add t0 type xfrm dev $LINK if_id 3", true),
    link("tun", "ip tuntap add dev t0 mode tun", false),
    link("tap", "ip tuntap add dev t0 mode tap", false),
];
