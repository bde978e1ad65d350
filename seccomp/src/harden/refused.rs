//! Calls outside a thread's list: refused as the kernel would, and counted.
//!
//! The filter raises SIGSYS; the handler counts the call and returns EPERM from it in the interrupted
//! thread. Unsafe for the handler: it touches nothing but atomics and the saved registers.
#![allow(unsafe_code, clippy::cast_ptr_alignment, reason = "read_unaligned takes any")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Above the highest call there is.
const CALLS: usize = 512;

static COUNTS: [AtomicU64; CALLS] = [const { AtomicU64::new(0) }; CALLS];

/// The calls that were refused so far: number and count. Empty as long as the lists are right.
pub fn refused() -> Vec<(usize, u64)> {
    let counts = COUNTS.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Installs the handler.
pub(super) fn count() -> io::Result<()> {
    // SAFETY: an all-zero action is valid: default flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler is a function of the form that SA_SIGINFO asks for.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// `_sigsys` of `siginfo_t`: after three integers and their padding, call address, number, architecture.
    const NUMBER_AT: usize = 24;
    // SAFETY: the kernel hands over a siginfo and the interrupted thread's context, which is restored from
    // the same memory on return.
    unsafe {
        let number = info.cast::<u8>().add(NUMBER_AT).cast::<libc::c_int>().read_unaligned();
        if let Some(count) = usize::try_from(number).ok().and_then(|number| COUNTS.get(number)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let context = &mut *context.cast::<libc::ucontext_t>();
        #[cfg(target_arch = "x86_64")]
        {
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = i64::from(-libc::EPERM);
        }
        #[cfg(target_arch = "aarch64")]
        {
            context.uc_mcontext.regs[0] = i64::from(-libc::EPERM).cast_unsigned();
        }
    }
}
