//! One processor's ring of perf records: opened, mapped, emptied.
//!
//! `perf_event_open(2)`; the page layout is `struct perf_event_mmap_page` of `linux/perf_event.h`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of records a ring holds: 512 KiB of 4 KiB pages, 5,000 records of a connect. A power of two.
const DATA_PAGES: usize = 128;
/// Where `data_head` is in the first page, in bytes: a fixed part of the interface. `data_tail` follows it.
const HEAD_AT: usize = 1024;
const TAIL_AT: usize = HEAD_AT + 8;
/// A ring with less room than this has turned records away, or is about to: no record of ours is as long.
const SLACK_BYTES: u64 = 4096;

/// `PERF_TYPE_TRACEPOINT`
const TRACEPOINT: u32 = 2;
/// `PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_RAW`
const TID_TIME_RAW: u64 = 1 << 1 | 1 << 2 | 1 << 10;
/// `disabled`
const DISABLED: u64 = 1;
/// `comm`, `task`, `comm_exec`: a record of each exec, fork and exit.
const PROGRAMS: u64 = 1 << 9 | 1 << 13 | 1 << 24;
/// `watermark`: wake who polls by bytes, not by records.
const WATERMARK: u64 = 1 << 14;
/// `sample_id_all`: thread and time at the end of every other record too.
const SAMPLE_ID_ALL: u64 = 1 << 18;
/// `use_clockid`: times are of the clock named below.
const USE_CLOCKID: u64 = 1 << 25;
/// `PERF_FLAG_FD_CLOEXEC`
const CLOEXEC: libc::c_ulong = 1 << 3;
/// `PERF_EVENT_IOC_ENABLE`
const ENABLE: libc::c_ulong = 0x2400;
/// `PERF_EVENT_IOC_SET_FILTER`
const SET_FILTER: libc::c_ulong = 0x4008_2406;

/// The first 112 bytes of `struct perf_event_attr` (PERF_ATTR_SIZE_VER5, Linux 4.1).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    breakpoint: u32,
    unused: [u64; 4],
    sample_stack_user: u32,
    clockid: i32,
    unused_too: [u64; 2],
}

/// An open event of one processor and its mapped ring.
#[derive(Debug)]
pub(super) struct Ring {
    event: OwnedFd,
    /// The mapping: one page about the ring, then its data.
    map: NonNull<u8>,
    map_bytes: usize,
    page_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and has nothing of the thread that made it; the kernel's side is
// synchronised by the two counters. All access but `has_news` needs `&mut`, and that reads one atomic.
unsafe impl Send for Ring {}

impl Ring {
    /// Starts recording on `cpu`: the tracepoint's samples that pass `filter`, and every exec and fork.
    pub(super) fn open(cpu: u32, tracepoint: u64, filter: &CStr) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        let attributes = Attributes {
            kind: TRACEPOINT,
            size: size_of::<Attributes>() as u32,
            config: tracepoint,
            sample_period: 1,
            sample_type: TID_TIME_RAW,
            flags: DISABLED | PROGRAMS | WATERMARK | SAMPLE_ID_ALL | USE_CLOCKID,
            wakeup_watermark: (DATA_PAGES * page_bytes / 4) as u32,
            clockid: libc::CLOCK_MONOTONIC,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads `size` bytes of the structure, which has them.
        let opened =
            unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, cpu, -1, CLOEXEC) };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a new descriptor, which nobody else owns.
        let event = unsafe { OwnedFd::from_raw_fd(opened as i32) };
        // SAFETY: the kernel copies the string, which ends with a NUL.
        check(unsafe { libc::ioctl(event.as_raw_fd(), SET_FILTER, filter.as_ptr()) })?;
        let map_bytes = (1 + DATA_PAGES) * page_bytes;
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let ring = Self { event, map, map_bytes, page_bytes };
        // SAFETY: takes no argument.
        check(unsafe { libc::ioctl(ring.event.as_raw_fd(), ENABLE, 0) })?;
        Ok(ring)
    }

    /// Appends all records that are there and gives their room back. True if the ring was so full that others were
    /// turned away, or may have been.
    pub(super) fn empty_into(&mut self, bytes: &mut Vec<u8>) -> bool {
        let (head, tail) = (self.counter(HEAD_AT), self.counter(TAIL_AT));
        let size = (DATA_PAGES * self.page_bytes) as u64;
        let tail_now = tail.load(Ordering::Relaxed); // only written below
        // Acquire: the records are there before the head that counts them.
        let length = head.load(Ordering::Acquire).wrapping_sub(tail_now).min(size);
        let (from, length_bytes) = ((tail_now % size) as usize, length as usize);
        let first = length_bytes.min(size as usize - from);
        // SAFETY: the data is `size` bytes from the second page on; `from + first <= size` and `length - first <= from`.
        // The kernel writes only outside tail..head until the tail is moved.
        let (end, start) = unsafe {
            let data = self.map.as_ptr().add(self.page_bytes);
            (
                std::slice::from_raw_parts(data.add(from), first),
                std::slice::from_raw_parts(data, length_bytes - first),
            )
        };
        bytes.extend_from_slice(end);
        bytes.extend_from_slice(start);
        // Release: everything has been read before the room is given back.
        tail.store(tail_now.wrapping_add(length), Ordering::Release);
        length > size - SLACK_BYTES
    }

    /// Whether there are records: one load.
    pub(super) fn has_news(&self) -> bool {
        self.counter(HEAD_AT).load(Ordering::Acquire) != self.counter(TAIL_AT).load(Ordering::Relaxed)
    }

    fn counter(&self, at: usize) -> &AtomicU64 {
        // SAFETY: both counters are aligned words within the first page, mapped as long as `self` lives, and written by
        // the kernel (head) and by us (tail) as whole words.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(at).cast()) }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, with its length; no slice of it outlives `empty_into`.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
