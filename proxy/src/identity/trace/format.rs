//! Reads the `format` of the tracepoint `sock:inet_sock_set_state`: where its fields are. Pure.
//!
//! Offsets are no part of the kernel's interface (`Documentation/trace/events.rst`): `protocol` was a byte up to
//! Linux 5.5, a word since.

/// Where a field is in the sample's raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub at: usize,
    pub bytes: usize,
}

/// The fields that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Address of the kernel's socket: its name as long as it lives.
    pub socket: Field,
    pub old_state: Field,
    pub new_state: Field,
    pub source_port: Field,
    pub target_port: Field,
    pub family: Field,
    pub source_v4: Field,
    pub target_v4: Field,
    pub source_v6: Field,
    pub target_v6: Field,
}

/// The layout a `format` file tells; the name of the first field that is missing or of another size otherwise.
pub(super) fn parse(format: &str) -> Result<Layout, &'static str> {
    let field = |name: &'static str, bytes: usize| {
        format
            .lines()
            .find_map(|line| field_named(line, name))
            .filter(|field| field.bytes == bytes)
            .ok_or(name)
    };
    Ok(Layout {
        socket: field("skaddr", size_of::<usize>())?,
        old_state: field("oldstate", 4)?,
        new_state: field("newstate", 4)?,
        source_port: field("sport", 2)?,
        target_port: field("dport", 2)?,
        family: field("family", 2)?,
        source_v4: field("saddr", 4)?,
        target_v4: field("daddr", 4)?,
        source_v6: field("saddr_v6", 16)?,
        target_v6: field("daddr_v6", 16)?,
    })
}

/// `field:__u8 saddr[4]; offset:32; size:4; signed:0;`, with tabs between.
fn field_named(line: &str, name: &str) -> Option<Field> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declared = parts.next()?.strip_prefix("field:")?.rsplit([' ', '*']).next()?;
    if declared.split('[').next()? != name {
        return None;
    }
    let at = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let bytes = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    Some(Field { at, bytes })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As Linux 6.18 on x86-64 prints it.
    pub(in super::super) const FORMAT: &str = "\
name: inet_sock_set_state
ID: 2287
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;
\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;

print fmt: \"family=%s protocol=%s sport=%hu\", REC->saddr";

    #[test]
    fn the_offsets_of_this_kernel_are_read() {
        let layout = parse(FORMAT).unwrap();
        assert_eq!(layout.socket, Field { at: 8, bytes: 8 });
        assert_eq!(layout.source_v4, Field { at: 32, bytes: 4 });
        assert_eq!(layout.target_v6, Field { at: 56, bytes: 16 });
    }

    #[test]
    fn a_field_that_is_missing_or_has_grown_is_named() {
        assert_eq!(parse(""), Err("skaddr"));
        assert_eq!(parse(&FORMAT.replace("dport", "port")), Err("dport"));
        assert_eq!(
            parse(&FORMAT.replace("oldstate;\toffset:16;\tsize:4", "oldstate;\toffset:16;\tsize:1")),
            Err("oldstate")
        );
    }
}
