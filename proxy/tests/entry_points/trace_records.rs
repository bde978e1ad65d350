//! What holds for any bytes in the place of a ring of the kernel's trace.

use sluice::identity::replay_trace;

/// As Linux 6.18 on x86-64 describes `sock:inet_sock_set_state`.
const FORMAT: &str = "\
\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;
\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;
";
const HEADER_BYTES: usize = 8;
/// Two samples, each with header, thread, time, length, and its fields up to the states, or up to the v4 addresses.
const NOTE_BYTES: usize = (HEADER_BYTES + 20 + 24) + (HEADER_BYTES + 20 + 40);

/// A note takes two samples; what is cut short, or never existed, is none; and the same bytes say the same again.
pub(crate) fn trace_records(bytes: &[u8]) {
    let figures = replay_trace(FORMAT, bytes).expect("the format is known");
    assert!(figures.noted as usize * NOTE_BYTES <= bytes.len());
    assert!(figures.losses as usize <= bytes.len() / HEADER_BYTES + 1);
    assert_eq!(replay_trace(FORMAT, bytes), Some(figures));
    // Of any other layout too: offsets are only as good as the file they come from.
    for at in [0_usize, 70, 1 << 20, usize::MAX] {
        let format = FORMAT.replace("offset:24;", &format!("offset:{at};"));
        let _ = replay_trace(&format, bytes);
    }
}
