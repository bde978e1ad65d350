//! The witness's filter: hand-written, as `seccompiler` cannot emit USER_NOTIF.
//!
//! It is stacked beside the workload's filter. ERRNO outranks USER_NOTIF, which outranks ALLOW, so a
//! refusal stays a refusal and no filter the workload adds can let a noted call pass unseen.

use seccompiler::{BpfProgram, sock_filter};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// `offsetof(struct seccomp_data, …)`: `nr` at 0, `arch` at 4, `args` from 16, eight bytes each.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn low(arg: u32) -> u32 {
    16 + 8 * arg + if cfg!(target_endian = "big") { 4 } else { 0 }
}
const fn high(arg: u32) -> u32 {
    16 + 8 * arg + if cfg!(target_endian = "big") { 0 } else { 4 }
}

/// `AUDIT_ARCH_…` of this build: the ELF machine with the 64-bit and little-endian marks.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

const NOTIFY: sock_filter = sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF };
const ALLOW: sock_filter = sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };

const fn load(k: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k }
}
const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Notifies on `connect`; on `sendto` with an address; on `sendmsg` and `sendmmsg` with
/// `MSG_FASTOPEN`, which connects. Other `sendmsg` calls keep their address behind a pointer, and
/// every message would pay for it: the fence's log and sock_diag name those.
pub(crate) fn assemble() -> BpfProgram {
    let fast_open = libc::MSG_FASTOPEN as u32;
    vec![
        // Another architecture's numbers mean other calls; the workload's filter kills those.
        load(ARCH),
        jump(JUMP_EQUAL, NATIVE, 1, 0),
        ALLOW,
        load(NUMBER),
        jump(JUMP_EQUAL, libc::SYS_connect as u32, 0, 1),
        NOTIFY,
        // sendto(fd, buffer, length, flags, ADDRESS, length): a null pointer has no bit set.
        jump(JUMP_EQUAL, libc::SYS_sendto as u32, 0, 6),
        load(low(4)),
        jump(JUMP_EQUAL, 0, 0, 2),
        load(high(4)),
        jump(JUMP_EQUAL, 0, 1, 0),
        NOTIFY,
        ALLOW,
        // sendmsg(fd, message, FLAGS)
        jump(JUMP_EQUAL, libc::SYS_sendmsg as u32, 0, 4),
        load(low(2)),
        jump(JUMP_SET, fast_open, 0, 1),
        NOTIFY,
        ALLOW,
        // sendmmsg(fd, messages, count, FLAGS)
        jump(JUMP_EQUAL, libc::SYS_sendmmsg as u32, 0, 3),
        load(low(3)),
        jump(JUMP_SET, fast_open, 0, 1),
        NOTIFY,
        ALLOW,
    ]
}
