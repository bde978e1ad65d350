//! What each row of the table is held against: forms it refuses, forms it lets through.
//!
//! The calls are chosen to do nothing where no filter stops them: bad descriptors, bad magic, missing
//! paths.

use super::ROWS;
use std::ffi::CStr;

/// A call's number and its arguments.
pub(super) type Call = (i64, [i64; 6]);

/// What a row is held against.
pub(super) struct Case {
    pub(super) row: &'static str,
    /// Refused by the row; without a filter each gets another answer.
    pub(super) refused: Vec<Call>,
    /// Refused by the row; what this kernel would answer depends on its modules.
    pub(super) also_refused: Vec<Call>,
    /// Let through.
    pub(super) allowed: Vec<Call>,
}

pub(super) fn call(number: i64, args: &[i64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    (number, all)
}

/// A call that the row refuses whatever its arguments.
fn always(row: &'static str, args: &[i64]) -> Case {
    let number = ROWS.iter().find(|known| known.name == row).expect(row).syscall;
    Case { row, refused: vec![call(number, args)], also_refused: vec![], allowed: vec![] }
}

fn case(row: &'static str, number: i64, refused: &[&[i64]], allowed: &[&[i64]]) -> Case {
    let calls = |all: &[&[i64]]| all.iter().map(|args| call(number, args)).collect();
    Case { row, refused: calls(refused), also_refused: vec![], allowed: calls(allowed) }
}

fn text(text: &'static CStr) -> i64 {
    text.as_ptr() as i64
}

impl Case {
    fn and_refused(self, also_refused: Vec<Call>) -> Self {
        Self { also_refused, ..self }
    }
}

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [sockets(), ways_around(), kernel(), file_tree()].into_iter().flatten().collect()
}

const BAD: i64 = -1;
const NOBODY: i64 = 0x7fff_fff0;
const HIGH_BITS: i64 = 1 << 40;
const MISSING: &CStr = c"/no/such/path";

#[rustfmt::skip] // one row, one case
fn sockets() -> Vec<Case> {
    let sock = libc::SYS_socket;
    let [unix, inet, inet6, netlink] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(i64::from);
    let [stream, dgram, raw] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW].map(i64::from);
    let (packet_type, cloexec) = (10, i64::from(libc::SOCK_CLOEXEC));
    let (audit, netfilter) = (i64::from(libc::NETLINK_AUDIT), i64::from(libc::NETLINK_NETFILTER));
    let packet = i64::from(libc::AF_PACKET);
    let other_families = [31, 38, 40, 44, 30, 41, 21, 43, 29, 15, 0, 45, 999].map(|family| call(sock, &[family, raw, 0]));
    vec![
        Case {
            also_refused: other_families.to_vec(),
            ..case("socket: family", sock, &[&[packet, raw, 0], &[packet | HIGH_BITS, raw, 0]],
                &[&[unix, stream, 0], &[unix, dgram | cloexec, 0], &[inet, stream, 0], &[inet, stream | cloexec, 6],
                  &[inet6, dgram, 17], &[inet6, stream, 0], &[netlink, raw, 0]])
        },
        case("socketpair: family", libc::SYS_socketpair, &[&[packet, dgram, 0, 8]], &[&[unix, stream, 0, 8]]),
        case("socket: raw inet", sock,
            &[&[inet, raw, 1], &[inet, raw | cloexec, 255], &[inet6, raw, 58], &[inet, raw | HIGH_BITS, 1]],
            &[&[unix, raw, 0], &[netlink, raw, 0], &[inet, dgram, 1]]),
        case("socket: packet", sock, &[&[inet, packet_type, 0x300], &[unix, packet_type, 0]], &[&[inet, stream, 0]]),
        case("socket: inet protocol", sock, &[&[inet, dgram, 136], &[inet6, dgram, 136]],
            &[&[inet, stream, 262], &[inet, dgram, 17], &[inet6, dgram, 58], &[unix, stream, 0]]).and_refused(vec![
                call(sock, &[inet, stream, 132]), call(sock, &[inet, 6, 33]), call(sock, &[inet, dgram, 115]), call(sock, &[inet, stream, 256]),
            ]),
        case("socket: inet type", sock, &[&[inet, 5, 0], &[inet6, 5 | cloexec, 0], &[inet, 4, 0], &[inet6, 4, 0], &[inet | HIGH_BITS, 5 | HIGH_BITS, 0]],
            &[&[inet, stream, 0], &[inet6, dgram, 0], &[unix, 5, 0]]).and_refused(vec![
                call(sock, &[inet, 6, 0]), call(sock, &[inet6, 6, 0]), call(sock, &[inet, 5, 132]),
            ]),
        case("socket: netlink protocol", sock, &[&[netlink, raw, netfilter], &[netlink, dgram, 16]], &[&[netlink, raw, 0], &[netlink, dgram, 0]])
            .and_refused(vec![call(sock, &[netlink, raw, audit])]),
        case("socket: netlink", sock, &[&[netlink, raw, 0], &[netlink, dgram, 16]], &[&[unix, stream, 0]]),
    ]
}

#[rustfmt::skip] // one row, one case
fn ways_around() -> Vec<Case> {
    let namespaces = [0x2_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x200_0000];
    // Without CLONE_VM this is an error, so no test clones.
    let sighand = i64::from(libc::CLONE_SIGHAND);
    let clones: Vec<_> = namespaces.iter().map(|flag| call(libc::SYS_clone, &[flag | sighand])).collect();
    let unshares: Vec<_> = namespaces.iter().map(|flag| call(libc::SYS_unshare, &[*flag])).collect();
    let (tiocsti, tioclinux, tiocsetd) = (0x5412, 0x541c, 0x5423);
    let ioctl = |row, request: i64| {
        case(row, libc::SYS_ioctl, &[&[BAD, request], &[BAD, request | HIGH_BITS]], &[&[BAD, 0x5401]])
    };
    vec![
        always("io_uring_setup", &[0, 0]),
        always("io_uring_enter", &[BAD]),
        always("io_uring_register", &[BAD]),
        always("setns", &[BAD, 0]),
        Case { row: "unshare: namespaces", refused: unshares, also_refused: vec![], allowed: vec![call(libc::SYS_unshare, &[i64::from(libc::CLONE_FILES)])] },
        case("unshare: time", libc::SYS_unshare, &[&[0x80]], &[&[i64::from(libc::CLONE_FS)]]),
        Case { row: "clone: namespaces", refused: clones, also_refused: vec![], allowed: vec![call(libc::SYS_clone, &[sighand])] },
        always("clone3", &[0, 0]),
        case("seccomp: listener", libc::SYS_seccomp, &[&[1, 8, 0], &[1, 8 | 1 << 5, 0], &[1 | HIGH_BITS, 8 | HIGH_BITS, 0]],
            &[&[1, 0, 0], &[1, 1, 0], &[2, 8, 0]]),
        ioctl("ioctl: TIOCSTI", tiocsti),
        ioctl("ioctl: TIOCLINUX", tioclinux),
        ioctl("ioctl: TIOCSETD", tiocsetd),
        always("ptrace", &[16, NOBODY]),
        always("process_vm_readv", &[NOBODY, 8, 1, 8, 1, 0]),
        always("process_vm_writev", &[NOBODY, 8, 1, 8, 1, 0]),
        always("pidfd_getfd", &[BAD]),
        always("kcmp", &[NOBODY, NOBODY]),
        case("prctl: PR_SET_MM", libc::SYS_prctl, &[&[35, 0, 0, 0, 1], &[0x23 | HIGH_BITS, 0, 0, 0, 1]], &[&[38], &[3]]),
    ]
}

#[rustfmt::skip] // one row, one case
fn kernel() -> Vec<Case> {
    let missing = text(MISSING);
    vec![
        always("bpf", &[0xffff, 0, 0]),
        always("perf_event_open", &[0, 0, 0, BAD, 0]),
        always("userfaultfd", &[0xffff_ffff]),
        always("keyctl", &[0xffff]),
        always("add_key", &[0]),
        always("request_key", &[0]),
        always("init_module", &[0, 0, 0]),
        always("finit_module", &[BAD, 0, 0xffff]),
        always("delete_module", &[0, 0]),
        always("kexec_load", &[0, 0, 0, 0xffff_ffff]),
        always("kexec_file_load", &[BAD, BAD, 0, 0, 0xffff_ffff]),
        always("reboot", &[0, 0, 0, 0]),
        always("syslog", &[10]),
        always("lookup_dcookie", &[0, 0, 0]),
        always("vhangup", &[]),
        always("acct", &[missing]),
        always("swapon", &[missing, 0]),
        always("swapoff", &[missing]),
        always("quotactl", &[0xff, 0, 0, 0]),
        always("quotactl_fd", &[0xffff_ffff, 0xff, 0, 0]),
        always("settimeofday", &[8, 0]),
        always("clock_settime", &[9999, 8]),
        case("clock_adjtime: device", libc::SYS_clock_adjtime, &[&[-5, 8], &[0xffff_fffb, 8]], &[&[0, 8], &[1, 8]]),
        always("sethostname", &[0, BAD]),
        always("setdomainname", &[0, BAD]),
        case("personality", libc::SYS_personality, &[&[0x40_0000], &[0x10_0000], &[0x44_0000]],
            &[&[0xffff_ffff], &[0], &[0x4_0000], &[8], &[0x2_0000]]),
        #[cfg(target_arch = "x86_64")]
        always("modify_ldt", &[0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        always("uselib", &[missing]),
        #[cfg(target_arch = "x86_64")]
        always("iopl", &[4]),
        #[cfg(target_arch = "x86_64")]
        always("ioperm", &[0xffff_ffff, 1, 0]),
    ]
}

#[rustfmt::skip] // one row, one case
fn file_tree() -> Vec<Case> {
    let missing = text(MISSING);
    vec![
        always("mount", &[0, 0, 0, 0, 0]),
        always("umount2", &[missing, 0]),
        always("pivot_root", &[missing, missing]),
        always("open_tree", &[BAD, missing, 0]),
        always("open_tree_attr", &[BAD, missing, 0, 0, 0]),
        always("move_mount", &[BAD, missing, BAD, missing, 0xffff_ffff]),
        always("fsopen", &[0, 0xffff_ffff]),
        always("fsconfig", &[BAD, 0xffff, 0, 0, 0]),
        always("fsmount", &[BAD, 0, 0]),
        always("fspick", &[BAD, missing, 0]),
        always("mount_setattr", &[BAD, missing, 0, 0, 0]),
        always("open_by_handle_at", &[BAD, 0, 0]),
        case("memfd_create: executable", libc::SYS_memfd_create, &[&[text(c"x"), 0], &[text(c"x"), 0x10], &[text(c"x"), 1]], &[&[text(c"x"), 8], &[text(c"x"), 9]]),
    ]
}
