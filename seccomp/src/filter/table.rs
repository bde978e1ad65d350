//! The table: every refusal of the workload's filter, with its errno and its reason.
//!
//! EPERM is the ordinary answer. ENOSYS where a program falls back to an older call (clone3,
//! io_uring). EAFNOSUPPORT and EPROTONOSUPPORT where a kernel without that family would say so, which
//! programs already handle.

use libc::{
    SYS_acct, SYS_add_key, SYS_bpf, SYS_clock_adjtime, SYS_clock_settime, SYS_clone, SYS_clone3,
    SYS_delete_module, SYS_finit_module, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_init_module,
    SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_kcmp, SYS_kexec_file_load,
    SYS_kexec_load, SYS_keyctl, SYS_lookup_dcookie, SYS_memfd_create, SYS_mount, SYS_mount_setattr,
    SYS_move_mount, SYS_open_by_handle_at, SYS_open_tree, SYS_perf_event_open, SYS_personality,
    SYS_pidfd_getfd, SYS_pivot_root, SYS_prctl, SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace,
    SYS_quotactl, SYS_quotactl_fd, SYS_reboot, SYS_request_key, SYS_seccomp, SYS_setdomainname,
    SYS_sethostname, SYS_setns, SYS_settimeofday, SYS_socket, SYS_socketpair, SYS_swapoff, SYS_swapon,
    SYS_syslog, SYS_umount2, SYS_unshare, SYS_userfaultfd, SYS_vhangup,
};
#[cfg(target_arch = "x86_64")]
use libc::{SYS_ioperm, SYS_iopl, SYS_modify_ldt, SYS_uselib};

/// A comparison of one argument. Arguments are compared as 32 bits: every argument tested here is an
/// `int` or flags the kernel cuts to 32 bits, so set high bits must not change the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The argument equals the value.
    Eq,
    /// The argument differs from the value.
    Ne,
    /// The argument under this mask equals the value.
    Masked(u32),
}

/// One condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub value: u32,
}

/// The knob that a row depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// In every filter.
    Always,
    /// With `netlink: route`.
    NetlinkRoute,
    /// With `netlink: deny`.
    NetlinkDeny,
    /// When memory files may not be executed.
    MemfdExecOff,
    /// When processes may not trace one another.
    TracingOff,
}

/// One refusal.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Names the row in tests and in output: the call, and what about it is refused.
    pub name: &'static str,
    /// The call's number on this architecture.
    pub syscall: i64,
    /// Refused when all conditions of any of these groups hold; no group at all: always.
    pub when: &'static [&'static [Arg]],
    /// The errno the caller gets.
    pub errno: i32,
    /// The knob the row depends on.
    pub on: On,
    /// Why.
    pub why: &'static str,
}

impl Row {
    /// The call's name.
    pub fn call(&self) -> &'static str {
        self.name.split(':').next().unwrap_or(self.name)
    }
}

const fn eq(index: u8, value: i32) -> Arg {
    Arg { index, op: Op::Eq, value: value as u32 }
}
const fn ne(index: u8, value: i32) -> Arg {
    Arg { index, op: Op::Ne, value: value as u32 }
}
const fn masked(index: u8, mask: u32, value: u32) -> Arg {
    Arg { index, op: Op::Masked(mask), value }
}
/// The flag is set.
const fn has(index: u8, flag: i32) -> Arg {
    masked(index, flag as u32, flag as u32)
}

const fn row(
    name: &'static str,
    syscall: i64,
    when: &'static [&'static [Arg]],
    errno: i32,
    why: &'static str,
) -> Row {
    Row { name, syscall, when, errno, on: On::Always, why }
}
const fn knob(on: On, row: Row) -> Row {
    Row { on, ..row }
}

const ALWAYS: &[&[Arg]] = &[];
const EPERM: i32 = libc::EPERM;
const ENOSYS: i32 = libc::ENOSYS;

/// The highest system call of the kernel this table was written against (6.18: `file_setattr`). Later
/// ones answer ENOSYS, which every program takes for an older kernel. It covers the x32 entry as well.
pub const HIGHEST_KNOWN_CALL: u32 = 469;

// Numbers above 423 are the same on every architecture; libc does not name this one yet.
const SYS_OPEN_TREE_ATTR: i64 = 467;

const SOCK_TYPE_MASK: u32 = 0xf;
const SOCK_RAW: u32 = libc::SOCK_RAW as u32;
const SOCK_PACKET: u32 = 10;
const MFD_NOEXEC_SEAL: u32 = 0x8;
const CLONE_NEWTIME: i32 = 0x80;
/// Clocks of devices, named by a descriptor, are negative numbers.
const DEVICE_CLOCK: u32 = 0x8000_0000;
const UNAME26: i32 = 0x002_0000;
const ADDR_NO_RANDOMIZE: i32 = 0x004_0000;
const PER_LINUX32: i32 = 0x8;

/// Every family but these four.
const OTHER_FAMILIES: &[&[Arg]] =
    &[&[ne(0, libc::AF_UNIX), ne(0, libc::AF_INET), ne(0, libc::AF_INET6), ne(0, libc::AF_NETLINK)]];

const fn other_protocols(family: i32) -> [Arg; 7] {
    [
        eq(0, family),
        ne(2, 0),
        ne(2, libc::IPPROTO_ICMP),
        ne(2, libc::IPPROTO_TCP),
        ne(2, libc::IPPROTO_UDP),
        ne(2, libc::IPPROTO_ICMPV6),
        ne(2, libc::IPPROTO_MPTCP),
    ]
}

/// What an internet socket may be beside a stream, datagrams and raw: `SOCK_RDM`, `SOCK_SEQPACKET`, `SOCK_DCCP`.
const OTHER_TYPES: &[&[Arg]] = &[
    &[eq(0, libc::AF_INET), masked(1, SOCK_TYPE_MASK, 4)],
    &[eq(0, libc::AF_INET), masked(1, SOCK_TYPE_MASK, 5)],
    &[eq(0, libc::AF_INET), masked(1, SOCK_TYPE_MASK, 6)],
    &[eq(0, libc::AF_INET6), masked(1, SOCK_TYPE_MASK, 4)],
    &[eq(0, libc::AF_INET6), masked(1, SOCK_TYPE_MASK, 5)],
    &[eq(0, libc::AF_INET6), masked(1, SOCK_TYPE_MASK, 6)],
];
const OTHER_PROTOCOLS: &[&[Arg]] = &[&other_protocols(libc::AF_INET), &other_protocols(libc::AF_INET6)];

/// Any flag that makes a namespace, for `clone` and `unshare` (both take flags first).
const NEW_NAMESPACE: &[&[Arg]] = &[
    &[has(0, libc::CLONE_NEWNS)],
    &[has(0, libc::CLONE_NEWUTS)],
    &[has(0, libc::CLONE_NEWIPC)],
    &[has(0, libc::CLONE_NEWUSER)],
    &[has(0, libc::CLONE_NEWPID)],
    &[has(0, libc::CLONE_NEWNET)],
    &[has(0, libc::CLONE_NEWCGROUP)],
];

/// Everything but the personalities a container may have, reading the present one (-1), and gdb's
/// wish for fixed addresses.
const ODD_PERSONALITY: &[&[Arg]] = &[&[
    ne(0, 0),
    ne(0, PER_LINUX32),
    ne(0, UNAME26),
    ne(0, UNAME26 | PER_LINUX32),
    ne(0, ADDR_NO_RANDOMIZE),
    ne(0, -1),
]];

/// The table.
#[rustfmt::skip] // one row, one refusal: the columns are read downwards
pub const ROWS: &[Row] = &[
    // Sockets: what the fence does not see must not be opened.
    row("socket: family", SYS_socket, OTHER_FAMILIES, libc::EAFNOSUPPORT,
        "packet, vsock, Bluetooth, ALG, XDP, TIPC, SMC … leave beside the fence or widen the kernel's surface"),
    row("socketpair: family", SYS_socketpair, OTHER_FAMILIES, libc::EAFNOSUPPORT,
        "as for socket; TIPC makes pairs too"),
    row("socket: raw inet", SYS_socket,
        &[&[eq(0, libc::AF_INET), masked(1, SOCK_TYPE_MASK, SOCK_RAW)],
          &[eq(0, libc::AF_INET6), masked(1, SOCK_TYPE_MASK, SOCK_RAW)]],
        EPERM, "raw packets carry forged headers; EPERM is what an unprivileged program gets"),
    row("socket: packet", SYS_socket, &[&[masked(1, SOCK_TYPE_MASK, SOCK_PACKET)]],
        EPERM, "the old way to packet sockets, through any family"),
    row("socket: inet protocol", SYS_socket, OTHER_PROTOCOLS, libc::EPROTONOSUPPORT,
        "SCTP, DCCP, L2TP, SMC …: modules loaded on demand, and connects the witness does not see"),
    row("socket: inet type", SYS_socket, OTHER_TYPES, libc::EPROTONOSUPPORT,
        "SEQPACKET and DCCP without a protocol are SCTP and DCCP where a module is loaded"),
    knob(On::NetlinkRoute, row("socket: netlink protocol", SYS_socket,
        &[&[eq(0, libc::AF_NETLINK), ne(2, libc::NETLINK_ROUTE)]], libc::EPROTONOSUPPORT,
        "netfilter, audit, generic …; libaudit and libnl take this errno for a kernel without them")),
    knob(On::NetlinkDeny, row("socket: netlink", SYS_socket, &[&[eq(0, libc::AF_NETLINK)]],
        libc::EAFNOSUPPORT, "the policy says netlink: deny")),

    // Ways around this filter, the witness or the namespace.
    row("io_uring_setup", SYS_io_uring_setup, ALWAYS, ENOSYS, "its operations pass no seccomp filter"),
    row("io_uring_enter", SYS_io_uring_enter, ALWAYS, ENOSYS, "as io_uring_setup, on an inherited ring"),
    row("io_uring_register", SYS_io_uring_register, ALWAYS, ENOSYS, "as io_uring_setup"),
    row("setns", SYS_setns, ALWAYS, EPERM, "enters another namespace, with another network"),
    row("unshare: namespaces", SYS_unshare, NEW_NAMESPACE, EPERM,
        "a user namespace gives every capability inside it"),
    row("unshare: time", SYS_unshare, &[&[has(0, CLONE_NEWTIME)]], EPERM, "as the other namespaces"),
    row("clone: namespaces", SYS_clone, NEW_NAMESPACE, EPERM, "as unshare"),
    row("clone3", SYS_clone3, ALWAYS, ENOSYS,
        "its flags are behind a pointer; libc falls back to clone on ENOSYS and on nothing else"),
    row("seccomp: listener", SYS_seccomp,
        &[&[eq(0, libc::SECCOMP_SET_MODE_FILTER as i32), has(1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as i32)]],
        libc::EBUSY,
        "would answer its children's calls in the witness's place; EBUSY is what the kernel says where one listens already"),
    row("ioctl: TIOCSTI", SYS_ioctl, &[&[eq(1, libc::TIOCSTI as i32)]], EPERM,
        "types into the terminal that started the sandbox"),
    row("ioctl: TIOCLINUX", SYS_ioctl, &[&[eq(1, libc::TIOCLINUX as i32)]], EPERM,
        "pastes into the console"),
    row("ioctl: TIOCSETD", SYS_ioctl, &[&[eq(1, TIOCSETD)]], EPERM,
        "loads line disciplines, old drivers with a record of holes"),

    // Other processes.
    knob(On::TracingOff, row("ptrace", SYS_ptrace, ALWAYS, EPERM,
        "nothing else keeps tracing inside the sandbox on this kernel")),
    knob(On::TracingOff, row("process_vm_readv", SYS_process_vm_readv, ALWAYS, EPERM, "as ptrace")),
    knob(On::TracingOff, row("process_vm_writev", SYS_process_vm_writev, ALWAYS, EPERM, "as ptrace")),
    knob(On::TracingOff, row("pidfd_getfd", SYS_pidfd_getfd, ALWAYS, EPERM,
        "takes a socket of the host's network from a process of the same user")),
    knob(On::TracingOff, row("kcmp", SYS_kcmp, ALWAYS, EPERM, "as ptrace")),

    row("prctl: PR_SET_MM", SYS_prctl, &[&[eq(0, libc::PR_SET_MM)]], EPERM,
        "points /proc/self/exe at another file, and identity goes by it; CRIU's alone"),

    // The kernel itself.
    row("bpf", SYS_bpf, ALWAYS, EPERM, "programs in the kernel"),
    row("perf_event_open", SYS_perf_event_open, ALWAYS, EPERM, "watches other processes and the kernel"),
    row("userfaultfd", SYS_userfaultfd, ALWAYS, EPERM, "holds the kernel still in the middle of a copy"),
    row("keyctl", SYS_keyctl, ALWAYS, EPERM, "key rings are shared by user id, not by sandbox"),
    row("add_key", SYS_add_key, ALWAYS, EPERM, "as keyctl"),
    row("request_key", SYS_request_key, ALWAYS, EPERM, "as keyctl; runs a helper on the host"),
    row("init_module", SYS_init_module, ALWAYS, EPERM, "kernel modules"),
    row("finit_module", SYS_finit_module, ALWAYS, EPERM, "kernel modules"),
    row("delete_module", SYS_delete_module, ALWAYS, EPERM, "kernel modules"),
    row("kexec_load", SYS_kexec_load, ALWAYS, EPERM, "replaces the kernel"),
    row("kexec_file_load", SYS_kexec_file_load, ALWAYS, EPERM, "replaces the kernel"),
    row("reboot", SYS_reboot, ALWAYS, EPERM, "stops the host"),
    row("syslog", SYS_syslog, ALWAYS, EPERM, "the kernel's log holds the traffic of other sandboxes"),
    row("lookup_dcookie", SYS_lookup_dcookie, ALWAYS, EPERM, "paths of files that other processes map"),
    row("vhangup", SYS_vhangup, ALWAYS, EPERM, "takes the terminal from whoever started the sandbox"),
    row("acct", SYS_acct, ALWAYS, EPERM, "process accounting of the whole host"),
    row("swapon", SYS_swapon, ALWAYS, EPERM, "memory of the whole host"),
    row("swapoff", SYS_swapoff, ALWAYS, EPERM, "memory of the whole host"),
    row("quotactl", SYS_quotactl, ALWAYS, EPERM, "disk quotas of the host"),
    row("quotactl_fd", SYS_quotactl_fd, ALWAYS, EPERM, "disk quotas of the host"),
    row("settimeofday", SYS_settimeofday, ALWAYS, EPERM, "the host's clock"),
    row("clock_settime", SYS_clock_settime, ALWAYS, EPERM,
        "the host's clock; adjtimex stays, as it also reads, and lacks CAP_SYS_TIME"),
    row("clock_adjtime: device", SYS_clock_adjtime, &[&[masked(0, DEVICE_CLOCK, DEVICE_CLOCK)]], EPERM,
        "a network card's clock asks for no capability, only for its file"),
    row("sethostname", SYS_sethostname, ALWAYS, EPERM, "the host's name"),
    row("setdomainname", SYS_setdomainname, ALWAYS, EPERM, "the host's name"),
    row("personality", SYS_personality, ODD_PERSONALITY, EPERM,
        "READ_IMPLIES_EXEC and mmap at zero make holes usable"),
    #[cfg(target_arch = "x86_64")]
    row("modify_ldt", SYS_modify_ldt, ALWAYS, EPERM, "16-bit segments: old holes, and no 64-bit program's need"),
    #[cfg(target_arch = "x86_64")]
    row("uselib", SYS_uselib, ALWAYS, EPERM, "libraries of formats older than ELF"),
    #[cfg(target_arch = "x86_64")]
    row("iopl", SYS_iopl, ALWAYS, EPERM, "hardware ports"),
    #[cfg(target_arch = "x86_64")]
    row("ioperm", SYS_ioperm, ALWAYS, EPERM, "hardware ports"),

    // The file tree.
    row("mount", SYS_mount, ALWAYS, EPERM, "uncovers or replaces what the sandbox was given"),
    row("umount2", SYS_umount2, ALWAYS, EPERM, "as mount"),
    row("pivot_root", SYS_pivot_root, ALWAYS, EPERM, "as mount"),
    row("open_tree", SYS_open_tree, ALWAYS, EPERM, "the new mount calls, as mount"),
    row("open_tree_attr", SYS_OPEN_TREE_ATTR, ALWAYS, EPERM, "as open_tree"),
    row("move_mount", SYS_move_mount, ALWAYS, EPERM, "as open_tree"),
    row("fsopen", SYS_fsopen, ALWAYS, EPERM, "as open_tree"),
    row("fsconfig", SYS_fsconfig, ALWAYS, EPERM, "as open_tree"),
    row("fsmount", SYS_fsmount, ALWAYS, EPERM, "as open_tree"),
    row("fspick", SYS_fspick, ALWAYS, EPERM, "as open_tree"),
    row("mount_setattr", SYS_mount_setattr, ALWAYS, EPERM, "as open_tree"),
    row("open_by_handle_at", SYS_open_by_handle_at, ALWAYS, EPERM,
        "opens files by number, past every path rule (the container escape named Shocker)"),
    knob(On::MemfdExecOff, row("memfd_create: executable", SYS_memfd_create,
        &[&[masked(1, MFD_NOEXEC_SEAL, 0)]], libc::EACCES,
        "the policy forbids executing memory files; EACCES is the kernel's own answer under vm.memfd_noexec=2")),
];

/// `TIOCSETD` (asm-generic/ioctls.h); libc names it for some targets only.
const TIOCSETD: i32 = 0x5423;
